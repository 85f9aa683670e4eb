"""Standard error of a squared maximum mean discrepancy over the samples, the reference being fixed.

With the reference fixed, the unbiased estimate is a U-statistic of order 2 in the samples,

    U = mean over i != j of h(x_i, x_j),   h(x, y) = k(x, y) - c(x) - c(y) + constant,

where c(x) is the mean of k(x, .) over the reference. Its variance is (Hoeffding 1948, eq. 5.13)

    Var U = (4 (M - 2) zeta_1 + 2 zeta_2) / (M (M - 1)),

zeta_1 the variance of E[h(x, .)] and zeta_2 that of h. Near equal distributions the second term counts, which
a jackknife counts twice. Both are estimated without bias from the rows' sums and the sum of squares.

What a sample adds to U is twice the deviation of its mean h over the number of samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfumato.evaluation.kernels import BLOCK, Kernel
from sfumato.evaluation.neighbours.cloud import blocks
from sfumato.evaluation.statistics import Float64Array, Int64Array

LEAST_FREEDOM, ROWS_PER_FREEDOM = 9.0, 50


@dataclass(frozen=True, slots=True)
class Variances:
    """Hoeffding's variances of h: `first` of its mean over one argument, `second` of h itself.

    `freedom`: the estimated variance of the estimate varies like one of 8 to 29 degrees of freedom at 500
    samples (two over its squared coefficient of variation), which grow with the samples.
    """

    first: float
    second: float
    freedom: float
    deviation_M: Float64Array
    """Of each sample's mean h over the others, from that of its class or of all."""

    def of_estimate(self, samples: int) -> float:
        """The variance of the unbiased estimate from this many samples."""
        return (4 * (samples - 2) * self.first + 2 * self.second) / (samples * (samples - 1))

    def deviations_of_estimate(self, samples: int) -> Float64Array:
        """What each sample adds [M]; squares sum to the variance's first term (from this many samples)."""
        added_M: Float64Array = 2 * self.deviation_M / np.sqrt(samples * len(self.deviation_M))
        return added_M


def variances(
    made_MD: Tensor, real_ND: Tensor, kernel: Kernel, label_M: Int64Array | None = None
) -> Variances:
    """From samples and the whole reference, in blocks; needs four samples or more.

    With labels, whose numbers are not random, only the spread within a class counts in the first.
    """
    mean_M = _mean_over(made_MD, real_ND, kernel)
    row_M, squares = _sums(made_MD, mean_M, kernel)
    size = len(row_M)
    pairs = size * (size - 1)
    centre = float(row_M.sum()) / pairs
    deviation_M = row_M - (size - 1) * centre
    second = squares / pairs - centre**2
    for label in () if label_M is None else np.unique(label_M):
        deviation_M[label_M == label] -= deviation_M[label_M == label].mean()
    # Sums over distinct i, j, l of (h_ij - centre) (h_il - centre): rows squared, less the terms with j = l.
    triples = float(np.square(deviation_M).sum()) - pairs * second
    estimate = (4 * triples + 2 * pairs * second) / (pairs * (size - 2) * (size - 3))
    first = (estimate * pairs - 2 * second) / (4 * (size - 2))
    freedom = max(LEAST_FREEDOM, size / ROWS_PER_FREEDOM)
    return Variances(max(0.0, first), max(0.0, second), freedom, deviation_M / (size - 1))


def _mean_over(x_MD: Tensor, real_ND: Tensor, kernel: Kernel) -> Tensor:
    norm_M, norm_N = x_MD.square().sum(1), real_ND.square().sum(1)
    mean_M = torch.zeros(len(x_MD), dtype=torch.float64)
    for i, j in blocks(len(x_MD), BLOCK):
        for m, n in blocks(len(real_ND), BLOCK):
            values = kernel(x_MD[i:j] @ real_ND[m:n].T, norm_M[i:j], norm_N[m:n])
            mean_M[i:j] += values.sum(1).double()
    return mean_M / len(real_ND)


def _sums(x_MD: Tensor, mean_M: Tensor, kernel: Kernel) -> tuple[Float64Array, float]:
    """Sums of h(x_i, x_j) over j != i [M], and of its square over all i != j, up to a constant in h."""
    norm_M, offset_M = x_MD.square().sum(1), (mean_M - mean_M.mean() / 2).to(x_MD.dtype)
    row_M, squares = torch.zeros(len(x_MD), dtype=torch.float64), 0.0
    for i, j in blocks(len(x_MD), BLOCK):
        for m, n in blocks(len(x_MD), BLOCK):
            values = kernel(x_MD[i:j] @ x_MD[m:n].T, norm_M[i:j], norm_M[m:n])
            values.sub_(offset_M[i:j, None]).sub_(offset_M[None, m:n])
            if m == i:
                values.fill_diagonal_(0)
            row_M[i:j] += values.sum(1).double()
            squares += float(values.square_().sum(1).double().sum())
    return row_M.numpy(), squares
