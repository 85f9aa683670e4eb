"""First stages on pieces of large pictures, against the whole picture."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.first_stage import FirstStage, Latent
from sfumato.core.tiles import Tiles, spans


class Pooled:
    """Places of 2x2 pixels: mean and deviation of each; decodes by repeating."""

    def __init__(self) -> None:
        self.largest = 0

    def encode(self, image_BCHW: Tensor) -> Latent:
        self.largest = max(self.largest, *image_BCHW.shape[2:])
        mean = F.avg_pool2d(image_BCHW, 2)
        return Latent(mean, (F.avg_pool2d(image_BCHW**2, 2) - mean**2).clamp(min=0).sqrt())

    def decode(self, latent_BChw: Tensor) -> Tensor:
        self.largest = max(self.largest, *latent_BChw.shape[2:])
        return latent_BChw.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(("size", "overlap"), [((22, 14), 2), ((8, 40), 1), ((8, 8), 0), ((9 * 2, 16), 0)])
def test_pieces_of_a_local_network_give_the_whole(size: tuple[int, int], overlap: int) -> None:
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    whole, inner = Pooled(), Pooled()
    tiles = Tiles(inner, factor=2, side=4, overlap=overlap)
    assert isinstance(tiles, FirstStage)
    latent, expected = tiles.encode(image), whole.encode(image)
    torch.testing.assert_close(latent.mean, expected.mean)
    torch.testing.assert_close(latent.std, expected.std)
    torch.testing.assert_close(tiles.decode(latent.mean), whole.decode(expected.mean))
    assert inner.largest <= 8, "no piece is larger than 4 places"


def test_neighbours_that_differ_are_blended_without_a_jump() -> None:
    """Each piece decodes to a constant, one more than the last: the value rises linearly over the overlap."""

    class Counting(Pooled):
        def decode(self, latent_BChw: Tensor) -> Tensor:
            self.largest += 1
            return torch.full((1, 1, 4 * 2, latent_BChw.shape[3] * 2), float(self.largest))

    row = Tiles(Counting(), factor=2, side=8, overlap=4).decode(torch.zeros(1, 1, 4, 12))[0, 0, 0]
    torch.testing.assert_close(row[:8], torch.ones(8))
    torch.testing.assert_close(row[8:16], 1 + (torch.arange(8) + 1) / 9)
    torch.testing.assert_close(row[16:], torch.full((8,), 2.0))


def test_spans_cover_a_side_and_no_more() -> None:
    for length in range(1, 40):
        found = spans(length, 7, 3)
        assert found[0][0] == 0 and found[-1][1] == length
        assert all(b[0] <= a[1] - min(3, length) for a, b in pairwise(found))
        assert all(stop - start == min(7, length) for start, stop in found)
    with pytest.raises(ValueError, match="overlap by 0 to 2"):
        Tiles(Pooled(), factor=2, side=4, overlap=3)
