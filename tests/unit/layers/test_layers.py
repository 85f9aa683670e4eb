"""Layers without state: the same for any number of passes, right against linear algebra."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sfumato.core.rng import seeded
from sfumato.data.order.micro_batches import coupling_problems, plan
from sfumato.layers.batch_norm import BatchNorm, measure
from sfumato.layers.spectral import (
    SpectralConv2d,
    SpectralEmbedding,
    SpectralLinear,
    spectral_norm,
    start_vector,
)


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("shape", "tolerance"),
    [((64, 1, 4, 4), 1e-2), ((32, 64, 3, 3), 1e-2), ((1, 128), 1e-5), ((128, 128), 3e-2), ((3, 5), 1e-5)],
)
def test_spectral_norm_is_the_largest_singular_value(shape: tuple[int, ...], tolerance: float) -> None:
    for seed in range(3):
        given = weight(*shape, seed=seed)
        exact = torch.linalg.svdvals(given.flatten(1))[0].item()
        found = spectral_norm(given, start_vector(given)).item()
        assert found == pytest.approx(exact, rel=tolerance)
        assert found <= exact * (1 + 1e-5), "a lower bound"


def test_spectral_norm_has_the_gradient_of_the_singular_value() -> None:
    given = weight(6, 4).double().requires_grad_()
    (found,) = torch.autograd.grad(spectral_norm(given, start_vector(given)), given)
    (exact,) = torch.autograd.grad(torch.linalg.matrix_norm(given, 2), given)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_spectral_layers_apply_the_normalised_weight() -> None:
    with seeded(1):
        linear, conv, embedding = SpectralLinear(5, 3), SpectralConv2d(2, 3, 3, 1, 1), SpectralEmbedding(4, 3)
    x = weight(7, 5)
    unit = linear.weight / torch.linalg.matrix_norm(linear.weight, 2)
    torch.testing.assert_close(linear(x), x @ unit.T + linear.bias, rtol=1e-4, atol=1e-5)
    images = weight(2, 2, 4, 4)
    unit = conv.weight / torch.linalg.matrix_norm(conv.weight.flatten(1), 2)
    expected = nn.functional.conv2d(images, unit, conv.bias, padding=1)
    torch.testing.assert_close(conv(images), expected, rtol=1e-4, atol=1e-5)
    unit = embedding.weight / torch.linalg.matrix_norm(embedding.weight, 2)
    torch.testing.assert_close(embedding(torch.tensor([3, 0])), unit[[3, 0]], rtol=1e-4, atol=1e-5)


def test_a_zero_weight_stays_finite() -> None:
    with seeded(2):
        linear = SpectralLinear(5, 3)
    with torch.no_grad():
        linear.weight.zero_()
    assert linear(weight(2, 5)).isfinite().all()


@pytest.mark.parametrize(
    "layer", [SpectralConv2d(2, 4, 3, 1, 1), BatchNorm(2)], ids=lambda m: type(m).__name__
)
def test_passes_leave_no_trace(layer: nn.Module) -> None:
    """Neither how often a layer was called nor in which mode changes what it computes or saves."""
    fresh = copy.deepcopy(layer)
    x = weight(3, 2, 4, 4)
    for mode in (True, False, True):
        layer.train(mode)(weight(3, 2, 4, 4, seed=5))
    torch.testing.assert_close(layer(x), fresh(x), rtol=0, atol=0)
    assert layer.state_dict().keys() == fresh.state_dict().keys()
    assert all(torch.equal(value, fresh.state_dict()[key]) for key, value in layer.state_dict().items())


def test_batch_norm_is_torchs_in_training_in_both_modes() -> None:
    x, torchs = weight(5, 3, 4, 4), nn.BatchNorm2d(3, affine=False)
    for mode in (True, False):
        torch.testing.assert_close(BatchNorm(3).train(mode)(x), torchs(x))


def test_standing_statistics_are_those_of_all_passes() -> None:
    layer = BatchNorm(3)
    parts = [2 + weight(8, 3, 2, 2, seed=seed) for seed in range(4)]
    measure(layer, [lambda part=part: layer(part) for part in parts])
    whole = torch.cat(parts)
    mean, variance = whole.mean((0, 2, 3)), whole.var((0, 2, 3), correction=0)
    x = weight(1, 3, 2, 2, seed=9)
    expected = (x - mean[:, None, None]) / (variance + layer.eps).sqrt()[:, None, None]
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.state_dict() == {}


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("micro_batch", [None, 4, 8, 16, 32, 64, 128])
def test_coupled_rows_are_refused_where_workers_would_change_them(
    workers: int, micro_batch: int | None
) -> None:
    """Against the plans themselves: all ranks' micro-batches together are those of one worker, or not."""
    batch, streams = 128, 8

    def cuts(count: int) -> set[tuple[object, ...]]:
        return {cut for rank in range(count) for cut in plan(batch, streams, count, rank, micro_batch)}

    found = coupling_problems(batch, streams, workers, micro_batch)
    assert (not found) == (cuts(workers) == cuts(1))
    if found:
        assert found[0].endswith("parallel.workers=1")


def test_coupled_rows_bound_every_number_of_workers_of_an_elastic_run() -> None:
    batch, streams = 128, 8
    for micro_batch in (None, 4, 8, 16, 32, 64, 128):
        for least, most in ((1, 2), (1, 3), (2, 4), (4, 8), (8, 8)):
            single = [coupling_problems(batch, streams, n, micro_batch) for n in range(least, most + 1)]
            assert bool(coupling_problems(batch, streams, most, micro_batch, least=least)) == any(single)
    # 32 would do for 2 and 4 workers, but not for 3.
    (line,) = coupling_problems(batch, streams, 4, 32, least=2)
    assert "gives 3 workers other" in line and "train.micro_batch=16" in line


def test_the_nearest_micro_batch_is_offered() -> None:
    assert "train.micro_batch=64" in coupling_problems(128, 8, 2, None)[0]
    assert "train.micro_batch=16" in coupling_problems(128, 8, 3, None)[0]
