"""LPIPS (Zhang et al. 2018, eq. 1): perceptual distance of two images, with AlexNet and calibrated weights.

The calibrated ("linear") weights come with torchmetrics. No package provides AlexNet's ImageNet weights:
SFUMATO_ALEXNET_WEIGHTS names their file, as published by torchvision (alexnet-owt-7be5be79.pth).
`lpips` judges reconstructions; `lpips_diversity` is the mean distance between samples of one class (of all,
if there are no classes): 0 for a model that repeats itself, and best near the figure of real images, which
`details` hold.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.errors import CapabilityError, DataError
from sfumato.evaluation.features.extractor import device, exact_float32, one_thread, placed
from sfumato.evaluation.features.resize import channel_problems, three_channels
from sfumato.evaluation.metrics.metric import (
    BaseMetric,
    FeatureSet,
    Metric,
    MetricOptions,
    MetricResult,
    PairMetric,
)
from sfumato.evaluation.statistics import Float64Array, Int64Array, UInt8Array

VARIABLE = "SFUMATO_ALEXNET_WEIGHTS"
FILE = "alexnet-owt-7be5be79.pth"
CHANNELS = (64, 192, 384, 256, 256)
CONVOLUTIONS = (0, 3, 6, 8, 10)
"""Places of the convolutions in torchvision's `features`, which name the weights."""
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
SMALLEST = 31
"""Below this side the last pooling has no room."""
PAIRS = 2000
BATCH = 32


class Lpips(nn.Module):
    """Distances [B] of two batches of images [B, 3, H, W] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        inner, outer = (3, *CHANNELS[:-1]), CHANNELS
        shapes = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
        self.features = nn.ModuleDict(
            {
                str(place): nn.Conv2d(i, o, size, stride=stride, padding=padding)
                for place, i, o, (size, stride, padding) in zip(
                    CONVOLUTIONS, inner, outer, shapes, strict=True
                )
            }
        )
        for layer, channels in enumerate(CHANNELS):
            self.register_buffer(f"weight_{layer}", torch.zeros(1, channels, 1, 1))
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        total_B = torch.zeros(len(a_BCHW), device=a_BCHW.device)
        for layer, (a, b) in enumerate(zip(self._layers(a_BCHW), self._layers(b_BCHW), strict=True)):
            weighted = (_unit(a) - _unit(b)).square() * self.get_buffer(f"weight_{layer}")
            total_B = total_B + weighted.sum(1).mean(dim=(1, 2))
        return total_B

    def _layers(self, x_BCHW: Tensor) -> list[Tensor]:
        x = (x_BCHW - self.get_buffer("shift")) / self.get_buffer("scale")
        found = []
        for layer, convolution in enumerate(self.features.values()):
            x = F.relu(convolution(x if layer in (0, 3, 4) else F.max_pool2d(x, 3, stride=2)))
            found.append(x)
        return found


def _unit(x_BCHW: Tensor) -> Tensor:
    return x_BCHW / torch.sqrt(x_BCHW.square().sum(1, keepdim=True) + 1e-8)


@cache
def load(path: Path) -> Lpips:
    """The network with AlexNet's weights from a file. Raises CapabilityError for any other file."""
    network = Lpips()
    calibrated = torch.load(_calibrated(), map_location="cpu", weights_only=True)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        wanted = {name: state[name] for name in network.state_dict() if name.startswith("features.")}
        wanted |= {
            f"weight_{layer}": calibrated[f"lin{layer}.model.1.weight"] for layer in range(len(CHANNELS))
        }
        network.load_state_dict(wanted, strict=False)
    except (RuntimeError, OSError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise CapabilityError(f"lpips: {path} does not hold AlexNet's weights; get {FILE}") from error
    return network.eval().requires_grad_(False)


def _calibrated() -> Path:
    """A file of the package torchmetrics, found without importing it."""
    spec = importlib.util.find_spec("torchmetrics")
    if spec is None or spec.origin is None:
        raise CapabilityError("lpips needs torchmetrics, not installed: pip install torchmetrics")
    return Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"


def distances(a_NHWC: UInt8Array, b_NHWC: UInt8Array, network: Lpips) -> Float64Array:
    """LPIPS of pairs of images [N], in small batches."""
    parts = []
    with one_thread(), exact_float32(), torch.inference_mode():
        for start in range(0, len(a_NHWC), BATCH):
            x, y = (
                three_channels(
                    torch.from_numpy(np.ascontiguousarray(images[start : start + BATCH]))
                    .to(device())
                    .permute(0, 3, 1, 2)
                    .float()
                )
                / 127.5
                - 1
                for images in (a_NHWC, b_NHWC)
            )
            parts.append(placed(network)(x, y).double().cpu().numpy())
    return np.concatenate(parts)


def given() -> Path:
    """The file of AlexNet's weights. Raises CapabilityError if none is named."""
    value = os.environ.get(VARIABLE)
    if not value or not Path(value).is_file():
        got = f"{value!r} is not a file" if value else "none given"
        raise CapabilityError(f"lpips needs AlexNet's weights, {got}: set {VARIABLE}=FILE ({FILE})")
    return Path(value)


def problems_of(data: DataSpec) -> list[str]:
    """Why LPIPS cannot be computed for such images on this machine, one line each."""
    found = [line.replace("features ", "") for line in channel_problems("lpips", data)]
    if min(data.height, data.width) < SMALLEST:
        size = f"{data.width}x{data.height}"
        found.append(
            f"lpips needs images of {SMALLEST}x{SMALLEST} or more, this data is {size}: leave it out"
        )
    try:
        given()
    except CapabilityError as error:
        found += error.problems
    return found


class LpipsOfPairs:
    """LPIPS of an image and its reconstruction; lower is better.

    It is sent to the workers with its network: they need no file of weights.
    """

    name = "lpips"
    higher_is_better = False

    def __init__(self, network: Lpips | None = None) -> None:
        """Without a network, the one with the environment's weights is loaded when needed."""
        self._network = network

    def __reduce__(self) -> tuple[type[LpipsOfPairs], tuple[Lpips]]:
        return (type(self), (self._network or load(given()),))

    def problems(self, data: DataSpec) -> list[str]:
        """Missing weights, small images, other channels."""
        return problems_of(data)

    def compare(self, real_NHWC: UInt8Array, made_NHWC: UInt8Array) -> Float64Array:
        """Distances [N]."""
        return distances(real_NHWC, made_NHWC, self._network or load(given()))


def pairs_within(label_N: Int64Array, num: int, seed: int) -> tuple[Int64Array, Int64Array]:
    """At most `num` disjoint random pairs of rows with equal labels."""
    order_N = np.random.default_rng(seed).permutation(len(label_N))
    order_N = order_N[np.argsort(label_N[order_N], kind="stable")]
    ends = [np.flatnonzero(label_N[order_N] == label) for label in np.unique(label_N)]
    first = np.concatenate([order_N[places[0 : len(places) // 2 * 2 : 2]] for places in ends])
    second = np.concatenate([order_N[places[1 : len(places) // 2 * 2 : 2]] for places in ends])
    some = np.random.default_rng(seed).permutation(len(first))[:num]
    return first[some], second[some]


class LpipsDiversity(BaseMetric):
    """Mean LPIPS between samples of one class; higher is more diverse."""

    name = "lpips_diversity"
    higher_is_better = True
    needs_images = True

    def least_samples(self, options: MetricOptions) -> int:
        """One pair."""
        return 2

    def problems(self, data: DataSpec) -> list[str]:
        """Missing weights, small images, other channels."""
        return problems_of(data)

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        network, seed = load(given()), options.settings.seed
        by_class = generated.label_N is not None and reference.label_N is not None
        made_M = _diversity(generated, network, seed, by_class=by_class)
        real_M = _diversity(reference, network, seed, by_class=by_class)
        details = {"pairs": len(made_M), "of_real_images": float(real_M.mean()), "within_classes": by_class}
        return MetricResult(self.name, float(made_M.mean()), details, made_M)


def _diversity(features: FeatureSet, network: Lpips, seed: int, *, by_class: bool) -> Float64Array:
    if features.images is None:
        raise DataError("lpips_diversity needs the images themselves, and they were not kept")
    label_N = features.label_N if by_class else None
    if label_N is None:
        label_N = np.zeros(len(features), dtype=np.int64)
    first, second = pairs_within(label_N, PAIRS, seed)
    if not len(first):
        raise DataError("lpips_diversity needs two images of one class: raise evaluate.samples")
    wanted = np.unique(np.concatenate([first, second]))
    kept, start = [], 0
    for block in features.images():
        inside = wanted[(wanted >= start) & (wanted < start + len(block))]
        kept.append(block[inside - start])
        start += len(block)
    images = np.concatenate(kept)
    return distances(images[np.searchsorted(wanted, first)], images[np.searchsorted(wanted, second)], network)


METRICS: tuple[Metric, ...] = (LpipsDiversity(),)
PAIR_METRICS: tuple[PairMetric, ...] = (LpipsOfPairs(),)
