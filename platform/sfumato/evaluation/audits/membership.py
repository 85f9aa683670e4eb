"""Membership inference: can it be told from a model whether an image was in its training set?

- **Loss threshold** (Yeom et al. 2018): an image that the model finds likely was in. The score is minus its
  bits per dimension.
- **Likelihood ratio**, as LiRA (Carlini et al. 2022, "Membership Inference Attacks From First Principles",
  algorithm 1): shadow models, each trained on a random part of the same images, say how likely this image is
  to a model that has seen it and to one that has not. The score is
  log N(s; mean_in, var_in) - log N(s; mean_out, var_out). Means are the image's own; variances are those of
  all images, as the paper has them for few shadow models. Departure: s is minus the bits, which are a
  log-likelihood already, not the logit of a class.

An attack that is right on a few images and silent on the rest is a leak, so what counts is the true positive
rate at very few false positives (there 0.1 %), not the area under the curve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from sfumato.evaluation.statistics import Float64Array, UInt8Array

Bools = npt.NDArray[np.bool_]
RATES = (0.001, 0.01, 0.1)
_LEAST_VARIANCE = 1e-12


def likelihood_ratio(
    score_N: Float64Array, shadow_SN: Float64Array, inside_SN: Bools
) -> tuple[Float64Array, Bools]:
    """LiRA's scores [N], and for which images they exist: those that some shadow models have seen, and some
    have not.

    `score_N` are the target's scores, higher for what it finds likelier, `shadow_SN` those of S shadow
    models, `inside_SN` whether each was trained on the image.

    Raises ValueError where no image has two shadow models on one side, so that no variance can be told.
    """
    inside, outside = (_moments(shadow_SN, mask_SN) for mask_SN in (inside_SN, ~inside_SN))
    usable_N: Bools = np.asarray(inside_SN.any(axis=0) & (~inside_SN).any(axis=0))
    logs = [
        -0.5 * np.log(variance) - (score_N - mean_N) ** 2 / (2 * variance)
        for mean_N, variance in (inside, outside)
    ]
    ratio_N: Float64Array = np.where(usable_N, logs[0] - logs[1], 0.0)
    return ratio_N, usable_N


def _moments(score_SN: Float64Array, mask_SN: Bools) -> tuple[Float64Array, float]:
    """Each image's mean over the shadow models of one side, and the variance around it, of all images."""
    count_N = mask_SN.sum(axis=0)
    mean_N = np.where(mask_SN, score_SN, 0.0).sum(axis=0) / np.maximum(count_N, 1)
    freedom = int(np.maximum(count_N - 1, 0).sum())
    if not freedom:
        raise ValueError("no image is on one side of two shadow models: train more of them")
    squares = float(np.square(np.where(mask_SN, score_SN - mean_N, 0.0)).sum())
    return mean_N, max(squares / freedom, _LEAST_VARIANCE)


def prints_of(blocks: Iterable[UInt8Array]) -> list[str]:
    """A checksum of the pixels of every image: what tells whether it is in a set, whatever its name there."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for block in blocks for image in block]
