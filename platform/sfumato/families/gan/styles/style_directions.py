"""Directions in style space that change images most (SeFa: Shen & Zhou 2021, eq. 5).

The unit vectors n that maximise |A n|, where A holds the weights of all maps from styles to layers: the
eigenvectors of A^T A, in the order of their eigenvalues. They need no labels and no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.families.gan.sampling import SamplingConfig


@runtime_checkable
class HasStyles(Protocol):
    """A generator whose layers take linear maps of a style."""

    def affine_weights(self) -> list[Tensor]:
        """The maps [outputs, style]."""
        ...


def factorised(weights: list[Tensor]) -> Tensor:
    """The directions [style, style], a row each, the strongest first; its largest entry is positive."""
    a_OS = torch.cat([weight.detach().double().cpu() for weight in weights])
    vectors_SS: Tensor = torch.linalg.eigh(a_OS.T @ a_OS).eigenvectors.T.flip(0)
    largest_S1 = vectors_SS.gather(1, vectors_SS.abs().argmax(1, keepdim=True))
    return vectors_SS * largest_S1.sign()


def directions(generator: nn.Module, options: SamplingConfig) -> Mapping[str, Tensor]:
    """The generator's input that moves all styles as the options ask for; none if they do not."""
    if not options.distance:
        return {}
    assert isinstance(generator, HasStyles), "a configuration without styles refuses the option"
    weights = generator.affine_weights()
    move_S = options.distance * factorised(weights)[options.direction % weights[0].shape[1]]
    return {"moved": move_S.to(weights[0].device, torch.float32)}
