"""Sfumato: distributed training of generative image models on Ray.

import sfumato
images = sfumato.load("models/digits").sample(64, seed=0)     # uint8 [64, H, W, C]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sfumato.version import __version__

if TYPE_CHECKING:
    import os

    import torch

    from sfumato.sampling.generator import Generator


__all__ = ["__version__", "load"]


def load(
    path: str | os.PathLike[str],
    *,
    device: str | torch.device = "cpu",
    trust: bool = False,
    base: str | os.PathLike[str] | None = None,
) -> Generator:
    """The generator in a model folder, ready to sample.

    `trust` allows a folder whose family is not part of Sfumato to import that family, that is, to run
    code. `base` is where the base of an adapter is, if it is no longer where it was in training. Raises
    CheckpointError or ConfigError, each one line, for a folder that cannot be loaded.
    """
    from sfumato.sampling.generator import Generator  # torch loads with the first model, not with sfumato

    return Generator.load(path, device=device, trust=trust, base=base)
