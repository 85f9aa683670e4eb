"""LPIPS against torchmetrics' own network on the same random AlexNet weights."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import fidelity  # noqa: F401  # before torchmetrics, which imports torch-fidelity where it is installed
import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image import lpips as reference

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.errors import CapabilityError
from sfumato.evaluation.metrics import all_metrics, all_pair_metrics
from sfumato.evaluation.metrics.lpips import load, pairs_within
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.statistics import UInt8Array


def alexnet_features() -> nn.Sequential:
    """torchvision's `alexnet().features`, written out."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
    )


@pytest.fixture(scope="module")
def backbone() -> nn.Sequential:
    with seeded(0, "alexnet"):
        return alexnet_features().eval()


@pytest.fixture
def weights(backbone: nn.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "alexnet.pth"
    torch.save({f"features.{name}": value for name, value in backbone.state_dict().items()}, path)
    monkeypatch.setenv("SFUMATO_ALEXNET_WEIGHTS", str(path))
    yield path
    load.cache_clear()


def images(num: int, side: int, seed: int) -> UInt8Array:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side + 3, 3), dtype=np.uint8)


def test_lpips_equals_torchmetrics(
    backbone: nn.Sequential, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "_get_tv_model_features", lambda *_, **__: backbone)
    theirs = reference._LPIPS(net="alex")
    a, b = images(5, 40, 0), images(5, 40, 1)
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() / 127.5 - 1 for v in (a, b))
    with torch.no_grad():
        expected = theirs(x, y).flatten().numpy()
    ours = all_pair_metrics()["lpips"].compare(a, b)
    assert expected.min() > 0
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
    np.testing.assert_allclose(all_pair_metrics()["lpips"].compare(a, a), 0, atol=1e-9)
    sent = pickle.dumps(all_pair_metrics()["lpips"])
    monkeypatch.delenv("SFUMATO_ALEXNET_WEIGHTS")  # as on a worker of another machine
    received = pickle.loads(sent)  # noqa: S301  # our own bytes
    np.testing.assert_array_equal(received.compare(a, b), ours)


def test_diversity_is_the_mean_within_classes_and_none_for_repeats(weights: Path) -> None:
    pictures, label = images(12, 32, 0), np.array([0, 1, 2] * 4)
    real = FeatureSet(
        np.zeros((12, 1), np.float32), label_N=label, images=lambda: iter(np.split(pictures, 4))
    )
    same = pictures[label]
    repeating = FeatureSet(np.zeros((12, 1), np.float32), label_N=label, images=lambda: iter([same]))
    metric = all_metrics()["lpips_diversity"]
    result = metric.compute(real, repeating, MetricOptions())
    assert result.value == pytest.approx(0, abs=1e-9)
    first, second = pairs_within(label, 100, MetricOptions().settings.seed)
    expected = all_pair_metrics()["lpips"].compare(pictures[first], pictures[second]).mean()
    assert result.details["of_real_images"] == pytest.approx(expected, rel=1e-6)


def test_pairs_are_disjoint_and_of_one_class() -> None:
    label = np.array([0, 0, 0, 1, 1, 2, 0, 1])
    first, second = pairs_within(label, 100, 0)
    assert len(first) == 3
    assert len({*first.tolist(), *second.tolist()}) == 6
    np.testing.assert_array_equal(label[first], label[second])
    assert len(pairs_within(label, 2, 0)[0]) == 2


def test_missing_weights_and_small_images_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SFUMATO_ALEXNET_WEIGHTS", raising=False)
    small, without = all_metrics()["lpips_diversity"].problems(DataSpec(3, 28, 28))
    assert small == "lpips needs images of 31x31 or more, this data is 28x28: leave it out"
    assert without.startswith("lpips needs AlexNet's weights, none given: set SFUMATO_ALEXNET_WEIGHTS=FILE")
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CapabilityError, match="does not hold AlexNet's weights"):
        load(tmp_path / "other.pth")
