"""StyleGAN3's filters against scipy's, its layers by brute force, and what an image does when it is moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.special
import torch
from torch import Tensor
from torch.nn import functional as F

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.evaluation.metrics.equivariance import (
    PreparedRotations,
    PreparedTranslations,
    RotationEquivariance,
    TranslationEquivariance,
)
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet
from sfumato.evaluation.subjects.model_sources import LatentGenerator
from sfumato.evaluation.turned import as_if_rotated, rotated, rotation
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.networks import Generated
from sfumato.families.gan.networks.stylegan3 import MAGNITUDES, StyleGan3Config
from sfumato.families.gan.networks.stylegan3.filters import FilteredActivation, low_pass
from sfumato.sampling.generator import Generator

SIDE = 32
SPEC = DataSpec(1, SIDE, SIDE)
SMALL: dict[str, Any] = {"channel_base": 128, "channel_max": 8, "style": 8, "depth": 6}


def count(side: int, **settings: Any) -> int:
    network = StyleGan3Config(**settings)
    with torch.device("meta"):
        built = network.build_generator(DataSpec(3, side, side), latent=512, classes=0)
    return sum(parameter.numel() for parameter in built.parameters())


def test_published_sizes_have_the_published_numbers_of_parameters() -> None:
    """Those that the authors' code has at 64."""
    assert [count(64, configuration=each) for each in "tr"] == [37_768_199, 24_153_095]


@pytest.mark.parametrize("taps", [6, 12, 24])
def test_filters_are_those_that_scipy_designs(taps: int) -> None:
    cutoff, width, rate = 11.0, 9.0, 64.0
    expected = scipy.signal.firwin(taps, cutoff, width=width, fs=rate)
    np.testing.assert_allclose(low_pass(taps, cutoff, width, rate), expected, atol=1e-7)

    at = (np.arange(taps) - (taps - 1) / 2) / rate
    r = np.hypot(at[:, None], at)
    beta = scipy.signal.kaiser_beta(scipy.signal.kaiser_atten(taps, width / (rate / 2)))
    window = scipy.signal.windows.kaiser(taps, beta)
    jinc = scipy.special.j1(2 * np.pi * cutoff * r) / (np.pi * r) * np.outer(window, window)
    np.testing.assert_allclose(low_pass(taps, cutoff, width, rate, radial=True), jinc / jinc.sum(), atol=1e-7)


@pytest.mark.parametrize(("up", "down_by", "radial"), [(4, 2, False), (2, 2, True), (1, 1, False)])
def test_the_nonlinearity_is_that_of_the_finer_signal(up: int, down_by: int, radial: bool) -> None:
    """Against scipy: zeros between the pixels, a filter, a leaky ReLU, a filter, every n-th pixel."""
    before, rate = 9, 16 * up
    first = low_pass(6 * up if up > 1 else 1, 5.0, 6.0, rate)
    second = low_pass(6 * down_by if down_by > 1 else 1, 5.0, 6.0, rate, radial=radial)
    side = (before * up - 2) // down_by - 3
    layer = FilteredActivation(first, second, up=up, down_by=down_by, side=side)
    x = np.random.default_rng(0).normal(size=(before, before))
    found = layer(torch.tensor(x, dtype=torch.float32)[None, None])[0, 0].numpy()
    assert found.shape == (side, side)

    kernel = np.outer(first, first)
    fine = scipy.signal.convolve2d(np.kron(x, np.pad([[up**2]], ((0, up - 1), (0, up - 1)))), kernel)
    bent = np.sqrt(2) * np.where(fine > 0, fine, 0.2 * fine)
    after = second.numpy() if radial else np.outer(second, second)
    filtered = scipy.signal.convolve2d(bent, after)
    # Both filters delay by half their length; the centres of both maps are one point.
    centre = (len(first) - 1 + after.shape[0] - 1 + (before - 1) * up) / 2
    start = centre - (side - 1) / 2 * down_by
    near = math.floor(start) if up > 1 else round(start)
    cut = filtered[near : near + side * down_by : down_by, near : near + side * down_by : down_by]
    np.testing.assert_allclose(found, cut, atol=1e-5)


def generator(**changes: Any) -> tuple[Generator, torch.nn.Module]:
    config = GanConfig(latent=4, network=StyleGan3Config(**{**SMALL, **changes}))
    family = config.build(SPEC)
    with seeded(3):
        network = family.nets["generator"].build()  # type: ignore[union-attr]
    state = dict(family.state)  # type: ignore[attr-defined]
    progress = Progress(step=1, images=8, total_images=8, batch=8, state=state)
    # Magnitudes as after training: those of the network itself.
    z, label = (
        torch.randn(8, 4, generator=torch.Generator().manual_seed(0)),
        torch.zeros(8, dtype=torch.int64),
    )
    with torch.no_grad():
        for at in range(len(state[MAGNITUDES])):
            made = network(z, label, magnitudes=state[MAGNITUDES], details=True)
            state[MAGNITUDES][at] = made.measured[:, at].mean()
    return Generator(config, SPEC, {"ema": network}, progress=progress), network


def decibels(prepared: type[PreparedTranslations], metric: BaseMetric, model: Generator) -> float:
    source = LatentGenerator(model, {}, "cpu", None)  # type: ignore[arg-type]
    source.block = 3
    errors = prepared(3).block(source, 0, seed=1, labels_B=None)
    features = FeatureSet(np.zeros((1, 1), np.float32), inputs={prepared.stored_as: errors})
    found = metric.compute(features, features, None)  # type: ignore[attr-defined]
    assert found.error().value > 0
    return float(found.value)


@pytest.mark.parametrize("configuration", ["t", "r"])
def test_what_an_image_shows_moves_as_a_whole_and_turns_in_configuration_r(configuration: str) -> None:
    """The paper's trained networks have 61 to 67 decibels moved, and 13 (T) and 40 to 49 (R) turned."""
    model, network = generator(configuration=configuration)
    assert decibels(PreparedTranslations, TranslationEquivariance(), model) > 60
    turned = decibels(PreparedRotations, RotationEquivariance(), model)
    assert turned > 45 if configuration == "r" else turned < 30

    # By a fraction of a pixel: against a sinc with a wide window, far from the edges.
    placed = torch.eye(3)
    placed[0, 2], placed[1, 2] = -0.37 / SIDE, 0.21 / SIDE
    z, label, size = torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), model.progress.state[MAGNITUDES]
    with torch.no_grad():
        still, moved = (network(z, label, magnitudes=size, placed=each)[0] for each in (None, placed))
    taps = torch.arange(-10, 11)
    across, down = (
        torch.sinc(taps + by) * torch.special.i0(6 * (1 - (taps / 11) ** 2).sqrt()) for by in (0.37, -0.21)
    )
    kernel = (down / down.sum())[:, None] * (across / across.sum())
    expected = F.conv2d(still[None], kernel[None, None])[0]
    error = (expected - moved[:, 10:-10, 10:-10]).square().mean()
    assert 10 * math.log10(4 / float(error)) > 50


def test_a_movement_is_told_from_none() -> None:
    """A network that ignores where things are placed gets the decibels of two different images."""
    model, network = generator()
    network.waves.forward = lambda w, placed: type(network.waves).forward(network.waves, w, None)  # type: ignore[operator, method-assign, union-attr]
    assert decibels(PreparedTranslations, TranslationEquivariance(), model) < 45


def test_magnitudes_follow_the_inputs_with_their_half_life() -> None:
    config = GanConfig(latent=4, network=StyleGan3Config(**SMALL, magnitude_images=100))
    family = config.build(SPEC)
    state = family.state  # type: ignore[attr-defined]
    layers = len(state[MAGNITUDES])
    made = Generated(torch.zeros(2, 1), measured=torch.tensor([[3.0], [5.0]]).expand(2, layers))
    sums = config.network.sums(made)
    progress = Progress(step=1, images=100, total_images=100, batch=100)
    after = family.advance(state, sums, progress)[MAGNITUDES]  # type: ignore[attr-defined]
    torch.testing.assert_close(after, torch.full((layers,), 2.5, dtype=torch.float64))  # half of 1, half of 4
    skipped = {name: torch.zeros_like(value) for name, value in sums.items()}
    for none in ({}, skipped):
        assert torch.equal(family.advance(state, none, progress)[MAGNITUDES], state[MAGNITUDES])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({}, DataSpec(1, 24, 24), "power of two"),
        ({"critical": 14}, SPEC, "14 of 14 layers"),
        ({"first_stopband": 1.5}, SPEC, "not above first_cutoff"),
        ({"first_cutoff": 16.0, "first_stopband": 20.0}, SPEC, "holds fewer than 16"),
    ],
)
def test_settings_that_leave_no_room_are_named(
    settings: dict[str, Any], data: DataSpec, message: str
) -> None:
    (problem,) = StyleGan3Config(**settings).problems(data)
    assert message in problem and "\n" not in problem


def test_turning_is_right_for_what_both_images_can_hold() -> None:
    """Waves well within the frequencies, turned in closed form; the finer grid is read linearly, which is off
    by an eighth of the square of its step in radians."""
    at = torch.arange(40, dtype=torch.float64) - 19.5
    y, x = torch.meshgrid(at, at, indexing="ij")

    def waves(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([torch.sin(0.9 * x + 1.3 * y + 0.3), torch.cos(0.3 * x - 0.4 * y)])

    bounds = torch.tensor([0.9**2 + 1.3**2, 0.5**2]) / 4**2 / 8
    for angle in (0.4, -2.1, math.pi / 2):
        turn = rotation(-angle)
        expected = waves(turn[0, 0] * x + turn[0, 1] * y, turn[1, 0] * x + turn[1, 1] * y)
        found, known = rotated(waves(x, y), angle)
        assert known.sum() > 700
        assert ((found - expected)[:, known].abs().amax(1) < 1.1 * bounds + 5e-4).all()
        found, known = as_if_rotated(waves(x, y), angle)
        assert (found - waves(x, y))[:, known].abs().max() < 5e-4
    beyond = torch.cos(2.95 * (x + y))[None]  # in no image that was turned by 45 degrees
    left, known = as_if_rotated(beyond, math.pi / 4)
    assert left[:, known].abs().max() < 0.1
