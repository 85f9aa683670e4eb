"""A first stage that works on large pictures piece by piece, so that memory does not grow with them.

Pieces overlap, and the weight of a piece rises linearly from its border over the overlap, so that no seams
show where neighbours differ. At the border of the picture a piece counts in full. A network that sees no
further than a place gives what it gives for the whole picture, others something near to it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sfumato.core.first_stage import FirstStage, Latent, OpenStage


class Tiles:
    """Implements `core.first_stage.FirstStage` by another one, applied to pieces."""

    def __init__(self, stage: FirstStage, *, factor: int, side: int, overlap: int) -> None:
        """`factor` is the pixels of a place of the latents, along a side; pieces of `side` places overlap by
        `overlap` places, fewer than half of them."""
        if not 0 <= overlap <= side // 2:
            raise ValueError(f"pieces of {side} places overlap by 0 to {side // 2}, got {overlap}")
        self._stage, self._factor, self._side, self._overlap = stage, factor, side, overlap

    def encode(self, image_BCHW: Tensor) -> Latent:
        """The latents of the whole picture [B, C, h, w]."""
        factor = self._factor
        size = (image_BCHW.shape[2] // factor, image_BCHW.shape[3] // factor)

        def part(top: int, left: int, bottom: int, right: int) -> Tensor:
            piece = image_BCHW[:, :, top * factor : bottom * factor, left * factor : right * factor]
            return torch.cat(self._stage.encode(piece), 1)

        mean, std = self._joined(size, 1, part).chunk(2, 1)
        return Latent(mean, std)

    def decode(self, latent_BChw: Tensor) -> Tensor:
        """The whole picture [B, C, H, W] in [-1, 1]."""

        def part(top: int, left: int, bottom: int, right: int) -> Tensor:
            return self._stage.decode(latent_BChw[:, :, top:bottom, left:right])

        height, width = latent_BChw.shape[2:]
        return self._joined((height, width), self._factor, part)

    def _joined(
        self, size: tuple[int, int], scale: int, part: Callable[[int, int, int, int], Tensor]
    ) -> Tensor:
        """The weighted mean of all pieces; `scale` is the values of a place, along a side."""
        ranges = [spans(side, self._side, self._overlap) for side in size]
        whole: Tensor | None = None
        for top, bottom in ranges[0]:
            for left, right in ranges[1]:
                piece = part(top, left, bottom, right).float()
                if whole is None:
                    shape = (*piece.shape[:2], size[0] * scale, size[1] * scale)
                    whole, total = piece.new_zeros(shape), piece.new_zeros(shape[2:])
                ramp = partial(_ramp, overlap=self._overlap * scale, device=piece.device)
                weight_HW = torch.outer(
                    ramp(piece.shape[2], begins=top > 0, ends=bottom < size[0]),
                    ramp(piece.shape[3], begins=left > 0, ends=right < size[1]),
                )
                rows, columns = slice(top * scale, bottom * scale), slice(left * scale, right * scale)
                whole[:, :, rows, columns] += piece * weight_HW
                total[rows, columns] += weight_HW
        assert whole is not None, "there is at least one piece"
        return whole / total


def tiled(network: FirstStage, stage: OpenStage) -> FirstStage:
    """The network of an opened first stage, which works in pieces if its configuration asks for it."""
    if stage.config.tile is None:
        return network
    factor = stage.data.height // stage.spec.latent[1]
    side = stage.config.tile // factor
    return Tiles(network, factor=factor, side=side, overlap=side // 4)


def spans(length: int, side: int, overlap: int) -> list[tuple[int, int]]:
    """Where pieces begin and end along a side of `length` places; the last one is moved back to fit."""
    if length <= side:
        return [(0, length)]
    starts = [*range(0, length - side, side - overlap), length - side]
    return [(start, start + side) for start in starts]


def _ramp(length: int, *, overlap: int, begins: bool, ends: bool, device: torch.device) -> Tensor:
    """Weights [length] of a piece's rows: rising at an edge inside the picture, falling at the other one."""
    weight_L = torch.ones(length, device=device)
    rise = (torch.arange(min(overlap, length), device=device) + 1) / (overlap + 1)
    if begins and overlap:
        weight_L[: len(rise)] = rise
    if ends and overlap:
        weight_L[-len(rise) :] = torch.minimum(weight_L[-len(rise) :], rise.flip(0))
    return weight_L
