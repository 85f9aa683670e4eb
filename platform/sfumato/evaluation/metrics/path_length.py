"""Perceptual path length (Karras et al. 2019, eq. 2 and 3): how evenly images change along a path of latents.

    l = E[ d(G(i(z1, z2; t)), G(i(z1, z2; t + eps))) / eps^2 ],   t ~ U(0, 1),   eps = 1e-4

d is LPIPS, i spherical interpolation for normal latents (eq. 2) or linear interpolation (eq. 3). As in the
authors' program the distances below the 1st and above the 99th percentile are left out. `path_sampling: end`
takes t = 0, as in Karras et al. 2020.

Departures: LPIPS is that of AlexNet, the authors' that of VGG16, and images are compared at their own size
without a crop, so figures compare only with one another, not with published ones. The two latents of a
conditional model share a class. Spherical interpolation keeps the norms of its ends (White 2016), which
StyleGAN, whose mapping network divides by the norm, need not. Images are not rounded to 8 bits: a step of
1e-4 seldom moves a byte. LPIPS runs in float64; the model's own float32 rounding remains, and is a floor for
models whose images hardly move.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.errors import DataError
from sfumato.evaluation.features.extractor import device, one_thread, placed
from sfumato.evaluation.features.resize import three_channels
from sfumato.evaluation.features.weights import sha256_of
from sfumato.evaluation.intervals.standard_errors import StandardError
from sfumato.evaluation.metric_inputs import Made, MetricInput, Prepared, Setting
from sfumato.evaluation.metrics.lpips import Lpips, given, load, problems_of
from sfumato.evaluation.metrics.metric import BaseMetric, FeatureSet, Metric, MetricOptions, MetricResult
from sfumato.evaluation.statistics import Float64Array, Int64Array
from sfumato.evaluation.subjects.latents import PathSettings
from sfumato.evaluation.subjects.source import Kind, SampleSource, WalksLatents

NAME = "perceptual_path_length"
DISCARDED = 0.01
"""Share of the distances that is left out at either end."""


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures steps by LPIPS. It is sent to the workers with its network: they need no file of weights."""

    network: Lpips
    settings: PathSettings
    weights_sha256: str

    @classmethod
    def of(cls, settings: PathSettings) -> Ruler:
        """With the weights that the environment names. Raises CapabilityError if it names none."""
        path = given()
        return cls(copy.deepcopy(load(path)).double(), settings, sha256_of(path))

    @property
    def identity(self) -> list[object]:
        """All that a length depends on besides the model and the seed, as JSON values."""
        chosen = self.settings
        return [
            chosen.path_epsilon,
            chosen.path_interpolation,
            chosen.path_sampling,
            self.weights_sha256,
        ]

    def lengths(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Float64Array:
        """d(a, b) / eps^2 of each pair of images [B] in [-1, 1]."""
        network = placed(self.network)
        with one_thread(), torch.inference_mode():
            a, b = (three_channels(x.to(device()).double()) for x in (a_BCHW, b_BCHW))
            length_B: Float64Array = (network(a, b) / self.settings.path_epsilon**2).cpu().numpy()
        return length_B


@dataclass(frozen=True)
class PreparedPaths(Prepared):
    """Measures a length for each pair, in separate blocks."""

    ruler: Ruler
    stored_as = "path"
    labelled = True

    @property
    def rows(self) -> int:
        """One a pair."""
        return self.ruler.settings.path_pairs

    @property
    def identity(self) -> object:
        """That of the ruler."""
        return self.ruler.identity

    def block(
        self, source: SampleSource, index: int, *, seed: int, labels_B: Int64Array | None
    ) -> Float64Array:
        """Lengths of the model's steps."""
        assert isinstance(source, WalksLatents)
        a_BCHW, b_BCHW = source.steps(index, seed=seed, labels_B=labels_B, settings=self.ruler.settings)
        return self.ruler.lengths(a_BCHW, b_BCHW)

    def of_generated(self, features: FeatureSet, name: str, made: Made) -> FeatureSet:
        """With the lengths."""
        return replace(features, path_M=made.own)


class LatentPaths(MetricInput):
    """Lengths of steps in the model's latents."""

    name = "latent_paths"

    def given_by(self, source: SampleSource) -> bool:
        """By a model that draws from a latent vector."""
        return isinstance(source, WalksLatents)

    def lacking(self, kind: Kind | None) -> str:
        """What else is needed."""
        of = "but these are images" if kind == "images" else "but this one has none"
        return f"a model with a latent vector (gan, vae, flow), {of}"

    def prepare(self, setting: Setting, opened: object) -> PreparedPaths:
        """With the weights that the environment names. Raises CapabilityError if it names none."""
        return PreparedPaths(Ruler.of(setting.options.of(PathSettings)))


def trimmed(length_M: Float64Array) -> tuple[float, float]:
    """The mean between the 1st and the 99th percentile, and its standard error.

    The error is that of a trimmed mean (Tukey & McLaughlin 1963): the deviation of the winsorised values over
    the share that is kept and the root of the number.
    """
    total = len(length_M)
    cut = int(DISCARDED * (total - 1))
    ordered_M = np.sort(length_M)
    kept = ordered_M[cut : total - cut]
    winsorised_M = np.clip(ordered_M, kept[0], kept[-1])
    error = float(winsorised_M.std(ddof=1)) / ((1 - 2 * cut / total) * total**0.5)
    return float(kept.mean()), error


class PerceptualPathLength(BaseMetric):
    """0 and up, lower is smoother; for families with a latent vector (GAN, VAE, flow)."""

    name = NAME
    inputs = (LatentPaths(),)
    reads_features = False
    Settings = PathSettings

    def problems(self, data: DataSpec) -> list[str]:
        """Missing weights of LPIPS, small images, other channels."""
        return problems_of(data)

    def compute(self, reference: FeatureSet, generated: FeatureSet, options: MetricOptions) -> MetricResult:
        length_M = generated.path_M
        if length_M is None:
            raise DataError(
                f"{self.name} needs a model with a latent vector: leave it out of evaluate.metrics"
            )
        value, error = trimmed(length_M)
        settings = options.of(PathSettings)
        details: dict[str, object] = {
            "pairs": len(length_M),
            "epsilon": settings.path_epsilon,
            "interpolation": settings.path_interpolation,
            "sampling": settings.path_sampling,
            "distance": "LPIPS of AlexNet",
            "left_out_at_either_end": DISCARDED,
            "median": float(np.median(length_M)),
        }
        spread = StandardError(error, "standard error of a trimmed mean", len(length_M) - 1, low=0)
        return MetricResult(self.name, value, details, error=lambda: spread)


METRICS: tuple[Metric, ...] = (PerceptualPathLength(),)
