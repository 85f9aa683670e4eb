"""Manifests beside a model's files: each change has one clear outcome."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sfumato.core.batch import DataSpec
from sfumato.core.family import EmaOf
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.families import config_class
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.manifests import keys as chains
from sfumato.provenance.manifests.config import C2paSettings
from sfumato.provenance.manifests.models import MODEL, files_of, read_model, worst
from sfumato.provenance.manifests.reading import Outcome
from sfumato.provenance.stored import Provenance
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import read_model_card, save_model_folder
from sfumato.sampling.model_signing import sign_folder, signed

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    chains.write_keys(folder, name="Test & Sons")
    return folder


@pytest.fixture
def folder(tmp_path: Path, keys: Path) -> Path:
    """A signed model of the smallest flow."""
    config, data = config_class("flow").tiny(), DataSpec(1, 8, 8)
    family = config.build(data)
    nets = {}
    for name in family.samplers:
        spec = family.nets[name]
        source = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
        assert not isinstance(source, EmaOf)
        with seeded("test"):
            nets[name] = source.build().state_dict()
    c2pa = C2paSettings(certificate=str(keys / chains.CHAIN), key=str(keys / chains.KEY))
    provenance = Provenance(ProvenanceSettings(c2pa=c2pa), "b2")
    place = tmp_path / "model"
    save_model_folder(place, config, data, nets, name="cats", progress=Progress.at(7), provenance=provenance)
    assert worst(read_model(place)) == "unsigned"
    signed(place)
    return place


def test_a_model_is_signed_and_says_what_it_is(folder: Path, keys: Path) -> None:
    found = read_model(folder, keys / chains.ROOT)
    assert [name for name, _ in found] == [
        "config.json",
        *sorted(f.name for f in folder.glob("*.safetensors")),
    ]
    for _, one in found:
        assert (one.outcome, one.signer) == ("trusted", "Test & Sons")
        about = dict(one.generation or {})
        assert about.pop("model_card_sha256") == read_model_card(folder).digest
        assert about == {"model": "cats", "recipe_digest": "b2", "family": "flow", "images_seen": 7}
    assert worst(read_model(folder)) == "untrusted"
    before = [file.stat().st_mtime_ns for file in folder.glob("*.c2pa")]
    signed(folder)
    assert [file.stat().st_mtime_ns for file in folder.glob("*.c2pa")] == before, "it was signed"
    Generator.load(folder)


def _grown(folder: Path) -> None:
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")


def _swapped(folder: Path) -> None:
    one, two = (Path(f"{file}.c2pa") for file in files_of(folder)[:2])
    content = one.read_bytes()
    shutil.copyfile(two, one)
    two.write_bytes(content)


def _without(folder: Path) -> None:
    next(folder.glob("*.safetensors.c2pa")).unlink()


def _cut(folder: Path) -> None:
    manifest = next(folder.glob("*.safetensors.c2pa"))
    manifest.write_bytes(manifest.read_bytes()[:1000])


def _relabelled(folder: Path) -> None:
    """Another model's name, of the same length, in the signed statement."""
    for manifest in folder.glob("*.c2pa"):
        content = manifest.read_bytes()
        assert MODEL.encode() in content
        manifest.write_bytes(content.replace(b"cats", b"dogs"))


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (_grown, "tampered"),
        (_swapped, "tampered"),
        (_without, "unsigned"),
        (_cut, "damaged"),
        (_relabelled, "tampered"),
    ],
)
def test_a_changed_model_is_told(
    change: Callable[[Path], None], outcome: Outcome, folder: Path, keys: Path, sfumato_here: Command
) -> None:
    change(folder)
    code, out, _ = sfumato_here(
        "provenance", "show", str(folder), "--trust", str(keys / chains.ROOT), "--json"
    )
    assert (code, json.loads(out)["outcome"]) == (1, outcome)


def test_the_commands(folder: Path, keys: Path, tmp_path: Path, sfumato_here: Command) -> None:
    for manifest in folder.glob("*.c2pa"):
        manifest.unlink()
    code, out, _ = sfumato_here("provenance", "sign", str(folder), "--json")
    assert (code, len(json.loads(out)["manifests"])) == (0, len(files_of(folder)))
    code, out, _ = sfumato_here("provenance", "show", str(folder))
    assert (code, "untrusted:" in out, "cats" in out) == (0, True, True)
    (folder / "provenance.json").unlink()
    code, _, err = sfumato_here("provenance", "sign", str(folder))
    assert (code, "has no provenance.c2pa; give --certificate and --key" in err) == (2, True)
    given = ("--certificate", str(keys / chains.CHAIN), "--key", str(keys / chains.KEY))
    assert sfumato_here("provenance", "sign", str(folder), *given)[0] == 0
    for place in (tmp_path / "nothing.safetensors", tmp_path):
        code, _, err = sfumato_here("provenance", "show", str(place))
        assert (code, "no model folder" in err) == (2, True)
    assert sign_folder(folder, C2paSettings(certificate=given[1], key=given[3]))
