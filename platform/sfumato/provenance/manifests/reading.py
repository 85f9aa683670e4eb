"""What a picture's manifest says, and whether that can be believed: one outcome for every file."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sfumato.errors import DataError
from sfumato.provenance.manifests.signed import GENERATION, LIBRARY
from sfumato.provenance.manifests.signing import require_libraries

Outcome = Literal["trusted", "untrusted", "unsigned", "tampered", "expired", "damaged", "invalid"]

MEANING: dict[Outcome, str] = {
    "trusted": "signed by a chain that you trust; unchanged since",
    "untrusted": "unchanged since it was signed, by somebody whom nothing here vouches for",
    "unsigned": "no manifest: this says neither that it is real nor that it is generated",
    "tampered": "changed after it was signed",
    "expired": "signed with a certificate outside its time",
    "damaged": "its manifest cannot be read",
    "invalid": "its manifest breaks the rules of C2PA",
}
_CHANGED = ("mismatch", "assertion.missing", "assertion.undeclared", "hardBindings.missing", "claim.missing")
_EXPIRED = ("signingCredential.expired", "claimSignature.outsideValidity")
_BEGINNINGS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"RIFF.{4}WEBP": "image/webp",
}
"""Of files, so that one with damaged content is judged and not refused."""
_UNKNOWN_SIGNER = "signingCredential.untrusted"
LARGEST = 256 * 2**20
"""Bytes of a file, at most."""


@dataclass(frozen=True, slots=True)
class Ingredient:
    """A picture that this one was made from: what its own manifest said when it was used."""

    title: str
    relation: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Shown:
    """A file's outcome and, unless there is none to read, the content of its manifest."""

    outcome: Outcome
    codes: tuple[str, ...] = ()
    """What failed, in the words of C2PA's specification (section 15.2)."""
    signer: str = ""
    generator: str = ""
    source_type: str = ""
    actions: tuple[str, ...] = ()
    generation: Mapping[str, Any] | None = None
    """What Sfumato says of the model, if it made the picture."""
    ingredients: tuple[Ingredient, ...] = ()


def read_manifest(path: Path, trust: Path | None = None) -> Shown:
    """The manifest in a picture; nothing is fetched from the network.

    `trust` is a PEM file of the certificates that are trusted; without it, nobody is.

    Raises DataError: no such file, one that is no PNG, JPEG or WebP, or no certificate in `trust`.
    """
    context = readable(trust)
    from c2pa import C2paError, Reader

    content, mime = _picture(path)
    try:
        with Reader(mime, io.BytesIO(content), context=context) as reader:
            found = json.loads(reader.json())
    except C2paError as error:
        return failed(error)
    return shown(found)


def readable(trust: Path | None) -> Any:
    """What the library reads with. Raises ConfigError without it, DataError for no certificate in `trust`."""
    require_libraries()
    from c2pa import Context, Settings

    settings = dict(LIBRARY)
    if trust is not None:
        settings = {**settings, "trust": {"trust_anchors": _anchors(trust)}}
    return Context(Settings.from_dict(settings))


def failed(error: Exception) -> Shown:
    """The outcome of what the library cannot read."""
    if str(error).startswith("ManifestNotFound"):
        return Shown("unsigned")
    return Shown("damaged", (" ".join(str(error).split()),))


def _picture(path: Path) -> tuple[bytes, str]:
    try:
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: more than {LARGEST // 2**20} MiB, too large to be a picture")
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    for beginning, mime in _BEGINNINGS.items():
        if re.match(beginning, content, re.DOTALL):
            return content, mime
    raise DataError(f"{path}: neither a PNG nor a JPEG nor a WebP file")


def _anchors(path: Path) -> str:
    from cryptography import x509

    try:
        content = path.read_text("ascii", "replace")
        x509.load_pem_x509_certificates(content.encode("ascii", "replace"))
    except OSError as error:
        raise DataError(f"--trust {path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise DataError(f"--trust {path}: holds no certificate in PEM form") from None
    return content


def shown(found: Mapping[str, Any], about: str = GENERATION) -> Shown:
    """The outcome and content of a manifest store; `about` is the label of Sfumato's own assertion."""
    active = found.get("manifests", {}).get(found.get("active_manifest"), {})
    results = found.get("validation_results", {}).get("activeManifest", {})
    codes = _codes(results)
    assertions = {part.get("label"): part.get("data") for part in active.get("assertions", [])}
    actions = next((v for k, v in assertions.items() if str(k).startswith("c2pa.actions")), None) or {}
    done = actions.get("actions", [])
    signature = active.get("signature_info", {})
    generators = active.get("claim_generator_info") or [{}]
    return Shown(
        outcome_of(codes, trusted=found.get("validation_state") == "Trusted"),
        tuple(codes),
        signer=str(signature.get("issuer") or signature.get("common_name") or ""),
        generator=f"{generators[0].get('name', '')} {generators[0].get('version', '')}".strip(),
        source_type=next((str(a["digitalSourceType"]) for a in done if a.get("digitalSourceType")), ""),
        actions=tuple(str(action.get("action", "")) for action in done),
        generation=assertions.get(about),
        ingredients=tuple(_ingredient(part) for part in active.get("ingredients", [])),
    )


def _ingredient(part: Mapping[str, Any]) -> Ingredient:
    results = part.get("validation_results", {}).get("activeManifest")
    outcome: Outcome = "unsigned" if results is None else outcome_of(_codes(results), trusted=False)
    return Ingredient(str(part.get("title", "")), str(part.get("relationship", "")), outcome)


def _codes(results: Mapping[str, Any]) -> list[str]:
    return [str(entry.get("code", "")) for entry in results.get("failure", [])]


def outcome_of(codes: Iterable[str], *, trusted: bool) -> Outcome:
    """The worst of what failed."""
    failed = [code for code in codes if code != _UNKNOWN_SIGNER]
    if any(part in code for code in failed for part in _CHANGED):
        return "tampered"
    if any(code in _EXPIRED for code in failed):
        return "expired"
    if failed:
        return "invalid"
    return "trusted" if trusted else "untrusted"
