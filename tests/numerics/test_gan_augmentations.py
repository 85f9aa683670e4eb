"""Augmentations of the discriminator's images against brute force, and their strength against its target."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng
from sfumato.families.gan.augmentations import AUGMENTATIONS
from sfumato.families.gan.augmentations.ada import Ada, P, blit
from sfumato.families.gan.augmentations.diffaugment import DiffAugment, colour, cutout, translation
from sfumato.families.gan.config import GanConfig
from sfumato.layers import transforms

DATA = DataSpec(1, 8, 8, classes=("a", "b"))


def rng(rows: int, images: int = 0) -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=images, phase="p")


def images(rows: int, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(rows, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_colours_change_as_the_paper_says() -> None:
    x, noise = images(5), rng(5)
    bright, saturated, contrast = noise.uniform(3, 1, 1, 1).unbind(1)
    for row in range(5):
        expected = x[row] + bright[row] - 0.5
        grey = expected.mean(0)
        expected = grey + 2 * saturated[row] * (expected - grey)
        expected = expected.mean() + (contrast[row] + 0.5) * (expected - expected.mean())
        torch.testing.assert_close(colour(x, rng(5))[row], expected)


def test_translation_moves_by_whole_pixels_with_zeros_beyond() -> None:
    x, noise = images(40), rng(40)
    found, down, right = translation(x, rng(40)), noise.integers(3), noise.integers(3)
    for row in range(40):
        moved = ndimage.shift(x[row].numpy(), (0, 1 - down[row].item(), 1 - right[row].item()), order=0)
        torch.testing.assert_close(found[row], torch.from_numpy(moved), rtol=0, atol=1e-6)
    assert len({(int(a), int(b)) for a, b in zip(down, right, strict=True)}) == 9


def test_cutout_removes_a_square_of_half_the_side() -> None:
    found = cutout(images(200) * 0 + 1, rng(200))[:, 0]
    removed = (found == 0).sum((1, 2))
    assert removed.max() == 16 and removed.min() >= 4
    for hole in found[:20] == 0:
        rows, columns = hole.any(1), hole.any(0)
        assert hole.sum() == rows.sum() * columns.sum(), "a rectangle"


def test_changes_are_differentiable_and_are_the_same_for_a_row_in_any_batch() -> None:
    for kind in (DiffAugment(), Ada(fixed=0.8)):
        state, x = kind.first(), images(6).requires_grad_()
        whole = kind.augment(x, rng(6), state)
        whole.square().sum().backward()
        assert x.grad is not None and x.grad.flatten(1).any(1).all()
        part = StreamRng((Piece(0, 2, 2),), rows_per_stream=6, seed=0, images=0, phase="p")
        torch.testing.assert_close(kind.augment(x[2:4], part, state), whole[2:4], rtol=1e-5, atol=1e-5)


def test_warping_is_that_of_scipy() -> None:
    """A turn, a stretch and a move together, bilinear, mirrored at the border."""
    x = images(1, 1, 9)
    angle, by = torch.tensor([0.4]), (torch.tensor([1.3]), torch.tensor([-0.6]))
    matrix = transforms.rotation(angle) @ transforms.scaling(torch.tensor([1.2]), torch.tensor([0.9]))
    matrix = matrix @ transforms.translation(*by)
    swap = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])  # scipy has rows first
    m = (swap @ matrix[0] @ swap).double().numpy()
    centre = [4.0, 4.0]
    offset = m[:2, 2] + centre - m[:2, :2] @ centre
    expected = ndimage.affine_transform(x[0, 0].numpy(), m[:2, :2], offset, order=1, mode="reflect")
    torch.testing.assert_close(
        transforms.warped(x, matrix)[0, 0], torch.from_numpy(expected), rtol=0, atol=1e-4
    )


def test_colour_matrices_keep_what_they_should() -> None:
    grey, red = torch.tensor([1.0, 1, 1, 1]), torch.tensor([1.0, 0, 0, 1])
    angle = torch.tensor([2 * math.pi / 3])
    torch.testing.assert_close(transforms.hue(angle)[0] @ grey, grey)
    green, third = torch.tensor([0.0, 1, 0, 1]), torch.tensor([1 / 3, 1 / 3, 1 / 3, 1])
    torch.testing.assert_close(transforms.hue(angle)[0] @ red, green, atol=1e-6, rtol=0)
    torch.testing.assert_close(transforms.saturation(torch.tensor([0.0]))[0] @ red, third)
    negative = torch.tensor([-1.0, -1, -1, 1])
    torch.testing.assert_close(transforms.grey_flip(torch.tensor([1.0]))[0] @ grey, negative)
    x = images(2)
    same = transforms.recoloured(x, transforms.colour_shift(torch.tensor([0.1, -0.2])))
    torch.testing.assert_close(same, x + torch.tensor([0.1, -0.2])[:, None, None, None])


def test_without_probability_nothing_changes() -> None:
    """Exactly, so that a run whose p stays zero is a run without augmentation."""
    x = images(8)
    assert torch.equal(Ada(fixed=0.0).augment(x, rng(8), Ada().first()), x)


def test_changes_do_not_leak() -> None:
    """Below p = 1 an unchanged image is the most frequent, by the paper's shares (app. C): turns by quarters
    make a matrix 1 - p + p / 4 on the diagonal and p / 4 elsewhere, which has an inverse, so that only
    generated images that look like real ones give what real ones give."""
    p, rows = 0.8, 20_000
    corner = torch.zeros(1, 1, 2, 2)
    corner[..., 0, 0] = 1
    found = blit(corner.expand(rows, -1, -1, -1), rng(rows), torch.tensor(p)).flatten(1).argmax(1)
    share = (found == 0).float().mean().item()
    mirrored = p / 2  # and turned by any quarter, a corner lies in any place equally often
    still = (1 - p) * (1 - mirrored)
    turned = p / 4
    assert share == pytest.approx(turned + still, abs=0.012)
    transition = torch.eye(4) * (1 - p) + p / 4
    assert torch.linalg.cond(transition).item() == pytest.approx(1 / (1 - p), rel=1e-3)


def test_strength_follows_its_target() -> None:
    """A discriminator that is the less sure, the stronger the augmentation: E sign = 1 - p. p settles at
    0.4."""
    ada = Ada(target=0.6, images=4_000, interval=2)
    state, draws = ada.first(), torch.Generator().manual_seed(0)
    for step in range(1, 401):
        sure = (1 + (1 - state[P])) / 2
        score = torch.where(torch.rand(64, generator=draws) < sure, 1.0, -1.0)
        state = ada.advance(state, ada.sums(score), Progress(step, 64 * step, 64 * 400, 64))
    assert state[P].item() == pytest.approx(0.4, abs=0.1)


def test_strength_moves_as_fast_as_it_says_and_no_further_than_one() -> None:
    ada, sure = Ada(target=0.6, images=1_000, interval=4), torch.ones(50)
    state = ada.first()
    for step in range(1, 5):
        state = ada.advance(state, ada.sums(sure), Progress(step, 50 * step, 9_999, 50))
    assert state[P].item() == pytest.approx(4 * 50 / 1_000)
    for step in range(5, 41):
        state = ada.advance(state, ada.sums(sure), Progress(step, 50 * step, 9_999, 50))
    assert state[P].item() == 1.0
    for step in range(41, 45):
        state = ada.advance(state, ada.sums(-sure), Progress(step, 50 * step, 9_999, 50))
    assert state[P].item() == pytest.approx(0.8)


def test_sizes_of_changes_are_distributed_as_in_the_paper() -> None:
    """Brightness: N(0, 0.2^2), for all images at p near 1."""
    p = 1 - 1e-6
    x = torch.zeros(4_000, 1, 1, 1)
    noise = rng(4_000)
    from sfumato.families.gan.augmentations.ada import _Chance

    shift = _Chance(noise, torch.tensor(p)).of(0.2 * noise.normal(), 0.0)
    found = transforms.recoloured(x, transforms.colour_shift(shift)).flatten()
    assert stats.kstest(found.numpy(), stats.norm(0, 0.2).cdf).pvalue > 1e-3


def test_every_augmentation_is_part_of_the_losses() -> None:
    for name in AUGMENTATIONS.names():
        config = GanConfig.model_validate({"latent": 4, "objective": {"augmentation": name}})
        assert config.problems(DATA) == []
        assert config.model_dump()["objective"]["augmentation"] == name
