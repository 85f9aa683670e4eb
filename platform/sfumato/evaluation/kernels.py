"""Maximum mean discrepancy (Gretton et al. 2012) by blocks, for the kernels of KID and CMMD.

A kernel takes the scalar products [B, C] of two blocks and the squared lengths of their rows, and returns
its values, in place if it can.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sfumato.evaluation.neighbours.cloud import blocks

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]

BLOCK = 512
"""Rows and columns of a block: its products (1 MiB in float32) stay in the cache between operations."""
SUBSET_BLOCK = 1024
"""The same when products dominate."""


def cubic(dim: int) -> Kernel:
    """(x.y / D + 1)^3, the kernel of KID (Bińkowski et al. 2018, section 4)."""

    def kernel(product_BC: Tensor, _: Tensor, __: Tensor) -> Tensor:
        base_BC = product_BC.div_(dim).add_(1)
        return base_BC.square().mul_(base_BC)

    return kernel


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(product_BC: Tensor, norm_B: Tensor, norm_C: Tensor) -> Tensor:
        squared_BC = product_BC.mul_(-2).add_(norm_B[:, None]).add_(norm_C[None]).clamp_(min=0)
        return squared_BC.mul_(-0.5 / sigma**2).exp_()

    return kernel


def less(kernel: Kernel, constant: float) -> Kernel:
    """The kernel less a constant: no unbiased discrepancy changes, and its sums keep more digits."""

    def shifted(product_BC: Tensor, norm_B: Tensor, norm_C: Tensor) -> Tensor:
        return kernel(product_BC, norm_B, norm_C).sub_(constant)

    return shifted


def sum_between(x_ND: Tensor, y_MD: Tensor, kernel: Kernel, block: int = BLOCK) -> float:
    """Sum of k(x, y) over all pairs of two sets; added in float64."""
    norm_N, norm_M = x_ND.square().sum(1), y_MD.square().sum(1)
    total = 0.0
    for i, j in blocks(len(x_ND), block):
        for m, n in blocks(len(y_MD), block):
            values = kernel(x_ND[i:j] @ y_MD[m:n].T, norm_N[i:j], norm_M[m:n])
            total += float(values.sum(1).double().sum())
    return total


def sum_within(x_ND: Tensor, kernel: Kernel, *, diagonal: bool, block: int = BLOCK) -> float:
    """Sum of k(x, x') over ordered pairs of one set; without `diagonal`, only of different rows.

    A kernel is symmetric: blocks above the diagonal count twice.
    """
    norm_N = x_ND.square().sum(1)
    total = 0.0
    for i, j in blocks(len(x_ND), block):
        for m, n in blocks(len(x_ND), block):
            if m < i:
                continue
            values = kernel(x_ND[i:j] @ x_ND[m:n].T, norm_N[i:j], norm_N[m:n])
            if m == i and not diagonal:
                values.fill_diagonal_(0)
            total += (1 if m == i else 2) * float(values.sum(1).double().sum())
    return total


def subset_sums(
    x_ND: Tensor, y_MD: Tensor, pick_NS: Tensor, pick_MS: Tensor, kernel: Kernel, offset: float, *, same: bool
) -> tuple[Tensor, float]:
    """Sums of k(x, y) - offset over the pairs inside each of S subsets, [S] float64, and over all pairs.

    `pick_NS` and `pick_MS` are 1 where a row belongs to a subset. With `same`, both sets are one, and pairs
    of a row with itself are left out. One pass over all pairs serves every subset.
    """
    norm_N, norm_M = x_ND.square().sum(1), y_MD.square().sum(1)
    sum_S, total = torch.zeros(pick_NS.shape[1], dtype=torch.float64), 0.0
    for i, j in blocks(len(x_ND), SUBSET_BLOCK):
        for m, n in blocks(len(y_MD), SUBSET_BLOCK):
            if same and m < i:
                continue
            values = kernel(x_ND[i:j] @ y_MD[m:n].T, norm_N[i:j], norm_M[m:n]).sub_(offset)
            if same and m == i:
                values.fill_diagonal_(0)
            weight = 2 if same and m > i else 1
            sum_S += weight * (pick_NS[i:j] * (values @ pick_MS[m:n])).double().sum(0)
            total += weight * float(values.sum(1).double().sum())
    return sum_S, total


def unbiased_mmd2(x_ND: Tensor, y_MD: Tensor, kernel: Kernel) -> float:
    """Squared discrepancy, unbiased (Gretton et al. 2012, eq. 3); may be below 0."""
    n, m = len(x_ND), len(y_MD)
    within = sum_within(x_ND, kernel, diagonal=False) / (n * (n - 1))
    within += sum_within(y_MD, kernel, diagonal=False) / (m * (m - 1))
    return within - 2 * sum_between(x_ND, y_MD, kernel) / (n * m)


def biased_mmd2(x_ND: Tensor, y_MD: Tensor, kernel: Kernel) -> float:
    """Squared discrepancy of the two empirical measures (Gretton et al. 2012, eq. 5); never below 0."""
    within = sum_within(x_ND, kernel, diagonal=True) / len(x_ND) ** 2
    within += sum_within(y_MD, kernel, diagonal=True) / len(y_MD) ** 2
    return max(0.0, within - 2 * sum_between(x_ND, y_MD, kernel) / (len(x_ND) * len(y_MD)))
