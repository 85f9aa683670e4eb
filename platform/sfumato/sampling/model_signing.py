"""Signs a model folder with the certificate of its `provenance:` block, or another one."""

from __future__ import annotations

from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.provenance.manifests.config import C2paSettings
from sfumato.provenance.manifests.models import read_model, sign_model
from sfumato.provenance.manifests.signed import Signer
from sfumato.provenance.manifests.signing import Signing
from sfumato.sampling.model_folder import read_model_card


def sign_folder(folder: Path, settings: C2paSettings | None = None, *, trust: bool = False) -> list[Path]:
    """Write a manifest beside each file of the model; without settings, by those of its `provenance:` block.

    Returns the manifests. Raises CheckpointError for no model, ConfigError where there is nothing to sign
    with.
    """
    model = read_model_card(folder, trust=trust)
    settings = settings or model.provenance.settings.c2pa
    if settings is None:
        raise ConfigError(
            f"{folder}: its recipe has no provenance.c2pa; give --certificate and --key (`sfumato provenance "
            "keys` makes them for development)"
        )
    about = {
        "model": model.name,
        "model_card_sha256": model.digest,
        "recipe_digest": model.provenance.recipe_digest,
        "family": model.config.family,
        "data_digest": model.trained_on,
        "images_seen": model.progress.images,
        **{key: value for key, value in model.notes.items() if key == "license"},
    }
    return sign_model(folder, Signer(Signing(settings)), about)


def signed(folder: Path) -> None:
    """Sign a model whose block asks for signatures, unless it is signed as it is."""
    if read_model_card(folder, trust=True).provenance.settings.c2pa is None:
        return
    if any(found.outcome not in ("trusted", "untrusted") for _, found in read_model(folder)):
        sign_folder(folder, trust=True)
