"""C2PA: what is signed can be verified by the library itself, and every wrong file has one clear outcome."""

from __future__ import annotations

import io
import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from PIL import Image

from sfumato import cli
from sfumato.core.finding import built_in_only
from sfumato.errors import ConfigError, DataError, SfumatoError
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.provenance.facts import Facts, Maker
from sfumato.provenance.formats import MIME, SUFFIXES, Format
from sfumato.provenance.manifests import keys as chains
from sfumato.provenance.manifests.config import C2paSettings
from sfumato.provenance.manifests.reading import read_manifest
from sfumato.provenance.manifests.signing import Signing
from sfumato.provenance.metadata import COMPOSITE, TRAINED
from sfumato.provenance.stored import Provenance, read_provenance, write_provenance

EXPIRED = Path(__file__).parent / "expired"
"""A picture that was signed while its certificate was valid, for the last eight seconds."""
SERVICE: dict[str, Callable[[bytes], bytes]] = {}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    chains.write_keys(folder, name="Test & Sons")
    return folder


@pytest.fixture(scope="module")
def door(place: Path) -> Door:
    return Door(_signed_by(place), Maker("cats", "a1", "b2"))


def test_the_chain_is_one_that_openssl_accepts(place: Path) -> None:
    assert stat.S_IMODE((place / chains.KEY).stat().st_mode) == 0o600
    verified = subprocess.run(
        ["openssl", "verify", "-purpose", "smimesign", "-CAfile", place / chains.ROOT, place / chains.CHAIN],
        capture_output=True,
        text=True,
        check=False,
    )
    assert verified.returncode == 0, verified.stderr
    with pytest.raises(ConfigError, match=r"key\.pem exists|chain\.pem exists"):
        chains.write_keys(place)
    with pytest.raises(ConfigError, match="1 to 64 printable"):
        chains.write_keys(place / "other", name="a\nb")


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_signed_files_verify_in_every_format(kind: Format, door: Door, place: Path, tmp_path: Path) -> None:
    from c2pa import Context, Reader, Settings

    path = tmp_path / "x"
    applied = door.write(path, _picture(), Facts({"text": "a cat"}, seed=3, index=7), kind)
    assert set(applied) == {"metadata", "c2pa"}
    root = (place / chains.ROOT).read_text()
    context = Context(Settings.from_dict({"trust": {"trust_anchors": root}}))
    with Reader(MIME[kind], io.BytesIO(path.read_bytes()), context=context) as reader:
        assert reader.get_validation_state() == "Trusted"
        manifest = json.loads(reader.json())["manifests"][json.loads(reader.json())["active_manifest"]]
    assert manifest["claim_generator_info"][0]["name"] == "Sfumato"
    found = read_manifest(path, place / chains.ROOT)
    assert (found.outcome, found.codes, found.signer) == ("trusted", (), "Test & Sons")
    assert (found.source_type, found.actions) == (TRAINED, ("c2pa.created",))
    assert found.generation == {
        "model": "cats",
        "model_card_sha256": "a1",
        "recipe_digest": "b2",
        "seed": 3,
        "index": 7,
        "prompt": "a cat",
    }
    assert read_manifest(path).outcome == "untrusted"
    assert read_manifest(path, EXPIRED / "root.pem").outcome == "untrusted"


def test_equal_pixels_are_known_by_their_digest(door: Door, tmp_path: Path) -> None:
    one, two = (door.write(tmp_path / name, _picture()) for name in "ab")
    assert one == two
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes(), "say that files repeat, if they do"


def test_what_is_wrong_has_one_outcome(door: Door, place: Path, tmp_path: Path) -> None:
    content, root = door.file(_picture()), place / chains.ROOT
    path = tmp_path / "x.png"

    def outcome(changed: bytes) -> str:
        path.write_bytes(changed)
        return read_manifest(path, root).outcome

    def flipped(at: int) -> bytes:
        changed = bytearray(content)
        changed[at] ^= 1
        return bytes(changed)

    assert outcome(content) == "trusted"
    assert outcome(flipped(len(content) - 40)) == "tampered", "a pixel"
    assert outcome(flipped(content.index(b"trainedAlgorithmicMedia", content.index(b"caBX")))) == "tampered"
    assert outcome(flipped(content.index(b"Sfumato", content.index(b"c2pa.claim")))) == "tampered", (
        "the claim"
    )
    assert outcome(flipped(content.index(b"jumb"))) == "damaged"
    plain = io.BytesIO()
    _picture().save(plain, "PNG")
    assert outcome(plain.getvalue()) == "unsigned"
    assert read_manifest(EXPIRED / "signed.png", EXPIRED / "root.pem").outcome == "expired"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "neither a PNG nor"), (b"GIF89a", "neither a PNG nor"), (None, "no such file")],
)
def test_what_is_no_picture_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_manifest(path)


def test_trust_is_read_from_certificates_alone(door: Door, tmp_path: Path) -> None:
    door.write(tmp_path / "x.png", _picture())
    (tmp_path / "no.pem").write_text("hello")
    with pytest.raises(DataError, match=r"--trust .* holds no certificate"):
        read_manifest(tmp_path / "x.png", tmp_path / "no.pem")
    with pytest.raises(DataError, match=r"--trust .* cannot be read"):
        read_manifest(tmp_path / "x.png", tmp_path / "none.pem")


def test_edits_name_their_sources_with_what_was_wrong_with_them(
    door: Door, place: Path, tmp_path: Path
) -> None:
    foreign, tampered, bare, edit = (tmp_path / f"{name}.png" for name in ("signed", "bad", "bare", "edit"))
    door.write(foreign, _picture())
    content = bytearray(foreign.read_bytes())
    content[-40] ^= 1
    tampered.write_bytes(content)
    _picture().save(bare)
    applied = door.write(edit, _picture(), Facts(sources=(foreign, tampered, bare, EXPIRED / "signed.png")))
    assert "c2pa" in applied
    found = read_manifest(edit, place / chains.ROOT)
    assert (found.outcome, found.source_type) == ("trusted", COMPOSITE)
    assert found.actions == ("c2pa.opened", "c2pa.placed", "c2pa.placed", "c2pa.placed", "c2pa.edited") or (
        found.actions[0] == "c2pa.opened" and "c2pa.edited" in found.actions
    )
    assert {(part.title, part.relation, part.outcome) for part in found.ingredients} == {
        ("signed.png", "parentOf", "untrusted"),
        ("bad.png", "componentOf", "tampered"),
        ("bare.png", "componentOf", "unsigned"),
        ("signed.png", "componentOf", "expired"),
    }
    with pytest.raises(DataError, match="no picture that could be named as a source"):
        door.file(_picture(), Facts(sources=(place / chains.KEY,)))


@pytest.mark.parametrize("prompt", ['"}],"assertions":[{"label":"c2pa.ai"', "a\0b", "\ud800", "x" * 50_000])
def test_a_prompt_cannot_leave_its_field(prompt: str, door: Door, place: Path, tmp_path: Path) -> None:
    door.write(tmp_path / "x.png", _picture(), Facts({"text": prompt}))
    found = read_manifest(tmp_path / "x.png", place / chains.ROOT)
    assert found.outcome == "trusted"
    assert found.generation is not None
    assert set(found.generation) == {"model", "model_card_sha256", "recipe_digest", "prompt"}
    assert found.generation["prompt"] == prompt.replace("\ud800", "\ufffd")[:4096]


def test_keys_that_others_can_read_are_refused(place: Path, tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.write_bytes((place / chains.KEY).read_bytes())
    settings = C2paSettings(certificate=str(place / chains.CHAIN), key=str(key))
    for mode in (0o640, 0o604, 0o620):
        key.chmod(mode)
        with pytest.raises(
            ConfigError, match=rf"read or written by others \(mode {mode:04o}\); run `chmod 600"
        ):
            Signing(settings)
    key.chmod(0o600)
    Signing(settings)


def test_chains_and_keys_that_do_not_fit_are_refused(place: Path, tmp_path: Path) -> None:
    chain, key = str(place / chains.CHAIN), str(place / chains.KEY)
    other = chains.write_keys(tmp_path / "other")["key"]
    (tmp_path / "junk.pem").write_text("junk")
    (tmp_path / "junk.pem").chmod(0o600)
    junk = str(tmp_path / "junk.pem")
    for certificate, secret, message in (
        (chain, other, "is not the key of the certificate"),
        (chain, junk, "holds no private key"),
        (junk, key, "holds no certificate"),
        (str(EXPIRED / "chain.pem"), key, r"expired on 20\d\d-\d\d-\d\d; renew it"),
    ):
        with pytest.raises(ConfigError, match=message):
            Signing(C2paSettings(certificate=certificate, key=secret))
    for certificate, secret in (("no.pem", key), (chain, "no.pem")):
        (line,) = ProvenanceSettings(c2pa=C2paSettings(certificate=certificate, key=secret)).problems()
        assert "no.pem cannot be read: No such file or directory; `sfumato provenance keys DIR`" in line
    with pytest.raises(ValueError, match="one of the two"):
        C2paSettings(certificate=chain)


@pytest.mark.parametrize(
    "make", [ed25519.Ed25519PrivateKey.generate, lambda: rsa.generate_private_key(65537, 2048)]
)
def test_other_kinds_of_keys_sign_too(
    make: Callable[[], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    made = iter([ec.generate_private_key(ec.SECP256R1()), make()])
    monkeypatch.setattr(ec, "generate_private_key", lambda curve: next(made))
    chains.write_keys(tmp_path / "keys")
    Door(_signed_by(tmp_path / "keys")).write(tmp_path / "x.png", _picture())
    assert read_manifest(tmp_path / "x.png", tmp_path / "keys" / chains.ROOT).outcome == "trusted"


def test_a_service_signs_and_its_failure_is_told(place: Path, tmp_path: Path) -> None:
    own = Signing(C2paSettings(certificate=str(place / chains.CHAIN), key=str(place / chains.KEY)))
    settings = ProvenanceSettings(
        c2pa=C2paSettings(certificate=str(place / chains.CHAIN), signer=f"{__name__}:service")
    )
    _here()
    SERVICE["sign"] = own._sign  # a service gives DER
    Door(settings).write(tmp_path / "x.png", _picture())
    assert read_manifest(tmp_path / "x.png", place / chains.ROOT).outcome == "trusted"

    def away(content: bytes) -> bytes:
        raise ConnectionError("the key service is away")

    SERVICE["sign"] = away
    with pytest.raises(SfumatoError, match="could not be signed: ConnectionError: the key service is away"):
        Door(settings).write(tmp_path / "y.png", _picture())
    assert not (tmp_path / "y.png").exists()
    write_provenance(tmp_path, Provenance(settings))
    assert read_provenance(tmp_path, trust=True).settings == settings
    with pytest.raises(ConfigError, match=r"needs the signer .* runs its code"):
        read_provenance(tmp_path)
    with built_in_only(), pytest.raises(ConfigError, match="not part of Sfumato"):
        Door(settings).check(8, 8)


def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, "keys", "mine", "--name", "Me", "--days", "2") == 0
    said = capsys.readouterr().out
    assert "c2pa: {certificate: mine/chain.pem, key: mine/key.pem}" in said
    Door(_signed_by(tmp_path / "mine"), Maker("ca\x1b[31mts")).write("x.png", _picture())
    for arguments, status, word in (
        (["x.png", "--trust", "mine/root.pem"], 0, "trusted"),
        (["x.png"], 0, "untrusted"),
        (["x.png", "--trust", str(EXPIRED / "root.pem")], 1, "untrusted"),
        ([str(EXPIRED / "signed.png")], 1, "expired"),
    ):
        assert _run(monkeypatch, "show", *arguments) == status
        said = capsys.readouterr().out
        assert said.startswith(f"{word}: ")
        assert "\x1b" not in said
    assert _run(monkeypatch, "show", "x.png", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["outcome"], shown["metadata"]["DigitalSourceType"]) == ("untrusted", TRAINED)
    assert _run(monkeypatch, "show", "none.png") == 2
    assert _run(monkeypatch, "keys", "mine") == 2


def service(content: bytes) -> bytes:
    """Stands for a key management service."""
    return SERVICE["sign"](content)


def _here() -> None:
    """Make this module importable by its name, as a user's own would be."""
    import sys

    sys.modules.setdefault(__name__, __import__("sys").modules[__name__])


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["sfumato", "provenance", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    return int(left.value.code or 0)


def _signed_by(folder: Path) -> ProvenanceSettings:
    c2pa = C2paSettings(certificate=str(folder / chains.CHAIN), key=str(folder / chains.KEY))
    return ProvenanceSettings(c2pa=c2pa, metadata=True, prompt=True, require=("c2pa", "metadata"))


def _picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
