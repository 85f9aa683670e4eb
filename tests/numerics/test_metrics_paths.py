"""Perceptual path length against torchmetrics' own, with the same random AlexNet and the same generator."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fidelity  # noqa: F401  # before torchmetrics, which imports torch-fidelity where it is installed
import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.lpips import Lpips, load
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.metrics.path_length import Ruler, trimmed
from sfumato.evaluation.subjects.latents import PathSettings, interpolated
from sfumato.evaluation.subjects.model_sources import LatentGenerator
from sfumato.families.gan.config import DcganConfig, GanConfig
from sfumato.sampling.generator import Generator

# The package has a function of the module's name in its place.
reference = importlib.import_module("torchmetrics.functional.image.perceptual_path_length")
SIDE = 32
SPEC = DataSpec(3, SIDE, SIDE)


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Random weights of AlexNet's convolutions."""
    with seeded(0, "alexnet"):
        state = Lpips().state_dict()
    path = tmp_path / "alexnet.pth"
    torch.save({name: value for name, value in state.items() if name.startswith("features.")}, path)
    monkeypatch.setenv("SFUMATO_ALEXNET_WEIGHTS", str(path))
    yield path
    load.cache_clear()


def gan(latent: int = 6, spec: DataSpec = SPEC) -> Generator:
    config = GanConfig(
        latent=latent,
        network=DcganConfig(channels=(16, 8), generator_norm="group", discriminator_norm="none"),
    )
    with seeded(1, "gan"):
        network = config.build(spec).nets["generator"].build()  # type: ignore[union-attr]
    for parameter in network.parameters():  # images that differ: fresh weights are small
        parameter.data.mul_(3)
    return Generator(config, spec, {"ema": network})


@pytest.mark.parametrize("how", ["slerp", "lerp"])
def test_interpolation_equals_torchmetrics(how: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    b[3] = 2 * a[3]  # parallel: no circle through them
    for t in (0.0, 1e-4, 0.3, 1.0):
        ours = interpolated(a, b, torch.full((9,), t, dtype=torch.float64), how)
        theirs = reference._interpolate(a, b, t, "slerp_any" if how == "slerp" else "lerp")
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(interpolated(a, b, torch.ones(9).double(), how), b)


class Theirs(nn.Module):
    """Our generator as torchmetrics wants one; `points` are the two ends that it is to draw."""

    def __init__(self, model: Generator, points: list[Tensor]) -> None:
        super().__init__()
        self._model, self._points = model, points

    def sample(self, num_samples: int) -> Tensor:
        return self._points.pop(0)

    def forward(self, z: Tensor) -> Tensor:
        request = _request(self._model, len(z))
        images = self._model.family.decode_latents(self._model.nets, z.float(), request, self._model.progress)  # type: ignore[attr-defined]
        return (images.double() + 1) * 127.5


def _request(model: Generator, rows: int) -> Any:
    from sfumato.core.family import SampleRequest

    return SampleRequest(num=rows, options=model.options())


@pytest.mark.parametrize(("sampling", "how"), [("end", "slerp"), ("end", "lerp"), ("full", "lerp")])
def test_the_path_length_equals_torchmetrics(
    weights: Path, monkeypatch: pytest.MonkeyPatch, sampling: Any, how: Any
) -> None:
    from sfumato.core.rng import SampleRng
    from sfumato.core.seeds import derive

    model = gan()
    settings = PathSettings(path_sampling=sampling, path_interpolation=how)
    source = LatentGenerator(model, {}, "cpu", None)  # type: ignore[arg-type]
    ours = Ruler.of(settings).lengths(*source.steps(0, seed=5, labels_B=None, settings=settings))

    rows = range(model.block)
    a, b = (SampleRng(derive(5, "path", end), rows).normal(6).double() for end in ("from", "to"))
    if sampling == "full":  # theirs starts at the first point and goes towards the second
        t = SampleRng(derive(5, "path", "place"), rows).uniform().double()[:, None]
        assert float(t.std()) > 0.2, "anywhere on the path"
        a, b = a + t * (b - a), a + t * (b - a) + (b - a)
    monkeypatch.setattr(reference, "_TORCHVISION_AVAILABLE", True)  # it is used for other networks alone
    mean, _, every = reference.perceptual_path_length(
        Theirs(model, [a, b]),
        num_samples=model.block,
        batch_size=model.block,
        interpolation_method="slerp_any" if how == "slerp" else "lerp",
        resize=None,
        lower_discard=None,
        upper_discard=None,
        sim_net=copy.deepcopy(load(weights)).double(),
    )
    assert float(mean) > 0
    np.testing.assert_allclose(ours, every.numpy(), rtol=1e-4)


def test_the_mean_leaves_the_ends_out_and_has_a_trimmed_means_error() -> None:
    length = np.random.default_rng(0).lognormal(size=1_000)
    value, error = trimmed(length)
    low, high = (np.percentile(length, q, method=m) for q, m in ((1, "lower"), (99, "higher")))  # type: ignore[call-overload]
    assert value == pytest.approx(length[(low <= length) & (length <= high)].mean(), rel=1e-12), "StyleGAN's"
    assert error == pytest.approx(
        float(scipy.stats.mstats.trimmed_stde(length, (9 / 1000, 9 / 1000))), rel=1e-9
    )


def test_a_model_that_does_not_move_has_length_nothing_and_a_livelier_one_is_longer() -> None:
    settings = PathSettings()
    found = []
    for factor in (0.0, 0.2, 1.0):
        model = gan()
        *_, last = (layer for layer in model.nets["ema"].modules() if hasattr(layer, "weight"))
        last.weight.data.mul_(factor)  # type: ignore[union-attr, operator]
        source = LatentGenerator(model, {}, "cpu", None)  # type: ignore[arg-type]
        steps = source.steps(0, seed=0, labels_B=None, settings=settings)
        found.append(trimmed(Ruler.of(settings).lengths(*steps))[0])
    assert found[0] == 0
    assert found[2] > 1.5 * found[1] > 0


def test_what_it_needs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = all_metrics()["perceptual_path_length"]
    (small,) = metric.problems(DataSpec(3, 28, 28))
    assert small == "lpips needs images of 31x31 or more, this data is 28x28: leave it out"
    settings = EvaluateSettings(metrics=metric.name, features="efficientnet_lite0")
    assert "latent_paths" in settings.select(SPEC, conditional=False, gives=lambda wanted: True).inputs
    with pytest.raises(
        ConfigError, match=r"needs a model with a latent vector \(gan, vae, flow\), but this one"
    ):
        settings.select(SPEC, conditional=False)
    features = FeatureSet(np.zeros((2, 1), np.float32), path_M=np.arange(100.0))
    result = metric.compute(features, features, MetricOptions())
    assert result.value == pytest.approx(49.5)
    assert result.error is not None
    monkeypatch.delenv("SFUMATO_ALEXNET_WEIGHTS")
    (without,) = metric.problems(SPEC)
    assert without.startswith("lpips needs AlexNet's weights, none given")
