"""Metrics that read images, captions or likelihoods, against torchmetrics, formulas and real digits."""

from __future__ import annotations

import dataclasses

import fidelity  # noqa: F401  # before torchmetrics, which imports torch-fidelity where it is installed
import numpy as np
import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sfumato.core.batch import DataSpec
from sfumato.errors import DataError
from sfumato.evaluation.metrics import all_metrics, all_pair_metrics
from sfumato.evaluation.metrics.clip_score import clip_scores
from sfumato.evaluation.metrics.metric import FeatureSet, MetricOptions
from sfumato.evaluation.metrics.settings import settings_class
from sfumato.evaluation.statistics import Int64Array, UInt8Array


def pairs(channels: int, height: int, width: int) -> tuple[UInt8Array, UInt8Array]:
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (5, height, width, channels))
    noise = rng.normal(size=real.shape) * np.array([0, 2, 10, 40, 120])[:, None, None, None]
    return real.astype(np.uint8), (real + noise).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 20), (3, 6, 11)])
def test_psnr_and_ssim_equal_torchmetrics_image_by_image(channels: int, height: int, width: int) -> None:
    real, made = pairs(channels, height, width)
    x, y = (torch.from_numpy(images).permute(0, 3, 1, 2).double() for images in (real, made))
    for row in range(1, len(real)):
        theirs = peak_signal_noise_ratio(y[row : row + 1], x[row : row + 1], data_range=255.0)
        ours = all_pair_metrics()["psnr"].compare(real, made)[row]
        assert ours == pytest.approx(float(theirs), rel=1e-5)
    theirs_N = structural_similarity_index_measure(y, x, data_range=255.0, reduction="none")
    assert isinstance(theirs_N, torch.Tensor)
    np.testing.assert_allclose(
        all_pair_metrics()["ssim"].compare(real, made), theirs_N.numpy(), rtol=1e-4, atol=1e-6
    )


def test_a_perfect_reconstruction_has_a_finite_psnr_and_ssim_one() -> None:
    real, _ = pairs(3, 16, 16)
    np.testing.assert_allclose(all_pair_metrics()["psnr"].compare(real, real), 100.0)
    np.testing.assert_allclose(all_pair_metrics()["ssim"].compare(real, real), 1.0)
    assert all_pair_metrics()["ssim"].problems(DataSpec(1, 5, 9)) == [
        "ssim needs images of 6x6 or more, this data is 9x5: leave it out"
    ]


def test_clip_score_is_the_cut_cosine_in_percent() -> None:
    image = np.array([[2.0, 0], [1, 1], [1, 0]], np.float32)
    text = np.array([[5.0, 0], [3, 0], [-1, 0]], np.float32)
    np.testing.assert_allclose(clip_scores(image, text), [100, 100 / np.sqrt(2), 0], rtol=1e-6)
    generated = FeatureSet(image, text_ND=text)
    assert all_metrics()["clip_score"].compute(generated, generated, MetricOptions()).value == pytest.approx(
        np.mean([100, 100 / np.sqrt(2), 0])
    )
    with pytest.raises(DataError, match="needs images with captions"):
        all_metrics()["clip_score"].compute(generated, FeatureSet(image), MetricOptions())


def test_bits_per_dim_is_the_mean_over_real_images() -> None:
    bits = np.array([3.0, 4.0, 8.0])
    real = FeatureSet(np.zeros((3, 1), np.float32), bits_N=bits)
    result = all_metrics()["bits_per_dim"].compute(
        real, FeatureSet(np.zeros((3, 1), np.float32)), MetricOptions()
    )
    assert result.value == 5.0
    assert result.terms_M is bits
    with pytest.raises(DataError, match="needs a model with a likelihood"):
        all_metrics()["bits_per_dim"].compute(dataclasses.replace(real, bits_N=None), real, MetricOptions())


# Classification accuracy score --------------------------------------------------------------------------


def with_images(images_NHWC: UInt8Array, label_N: Int64Array) -> FeatureSet:
    halves = [images_NHWC[: len(images_NHWC) // 2], images_NHWC[len(images_NHWC) // 2 :]]
    return FeatureSet(np.zeros((len(label_N), 1), np.float32), label_N=label_N, images=lambda: iter(halves))


def digits() -> tuple[UInt8Array, Int64Array]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images.reshape(-1, 8, 8, 1) / 16 * 255).astype(np.uint8), labels.astype(np.int64)


def test_the_classification_score_sees_wrong_labels_and_lost_variety() -> None:
    images, labels = digits()
    test, train = slice(0, 400), slice(700, 1797)
    real = with_images(images[test], labels[test])
    options = MetricOptions(settings=settings_class()(cas_seen=2500))
    metric = all_metrics()["classification_score"]
    good = metric.compute(real, with_images(images[train], labels[train]), options)
    assert good.value > 0.85
    per_class = good.details["per_class"]
    assert isinstance(per_class, dict)
    weights = np.bincount(labels[test]) / len(labels[test])
    assert np.dot([per_class[str(k)] for k in range(10)], weights) == pytest.approx(good.value)
    # One image a class, repeated: each looks right, and little is learnt from them.
    first = np.array([np.flatnonzero(labels[train] == k)[0] for k in range(10)])
    repeated = np.tile(first, 100)
    collapsed = metric.compute(real, with_images(images[train][repeated], labels[train][repeated]), options)
    assert collapsed.value < good.value - 0.2


def test_the_classification_score_names_what_it_lacks() -> None:
    images, labels = digits()
    metric, real = all_metrics()["classification_score"], with_images(images[:300], labels[:300])
    few = with_images(images[:40], labels[:40])
    with pytest.raises(
        DataError, match=r"needs 10 samples of a class or more, class \d has \d: raise evaluate\.sam"
    ):
        metric.compute(real, few, MetricOptions())
    short = MetricOptions(settings=settings_class()(cas_seen=128))
    assert metric.compute(real, real, short).value == metric.compute(real, real, short).value
    with pytest.raises(DataError, match="class-conditional model"):
        metric.compute(real, dataclasses.replace(few, label_N=None), MetricOptions())
    assert metric.problems(DataSpec(1, 8, 8)) == [
        "classification_score needs 2 or more classes, this data has 0: leave it out of evaluate.metrics"
    ]
