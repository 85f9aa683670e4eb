"""Averages of any length after training, from snapshots of two (EDM2: Karras et al. 2023, sec. 3.2, App. C).

During training, two further power-function averages of each averaged network are kept, and written every so
many images as separate checkpoints: sharded as the networks are, in float16. The profile of any other power
function is close to a linear combination of the snapshots' profiles; a small linear system gives the best
coefficients in the L2 sense.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sfumato.core.family import EmaOf, Family
from sfumato.core.progress import Progress
from sfumato.core.schedules import power_decay, power_exponent
from sfumato.errors import CheckpointError

F64 = NDArray[np.float64]
_MARK = "~"
"""Separates a network's name from its average's width; network names never contain it."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A power-function average of relative width `sigma_rel`, taken at `images`."""

    images: int
    sigma_rel: float


def ema_name(source: str, sigma_rel: float) -> str:
    return f"{source}{_MARK}{sigma_rel:g}"


def emas(family: Family, sigma_rels: Sequence[float]) -> dict[str, EmaOf]:
    """The averages to keep for snapshots: one per width of every network that the family averages."""
    sources = {spec.source for spec in family.nets.values() if isinstance(spec, EmaOf)}
    return {
        ema_name(source, sigma): EmaOf(source=source, decay=partial(_decay, sigma))
        for source in sorted(sources)
        for sigma in sigma_rels
    }


def _decay(sigma_rel: float, progress: Progress) -> float:
    return power_decay(sigma_rel, progress)


def snapshot(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a strategy's state that reconstruction needs, with floating point tensors as float16."""
    return {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
        if name.startswith("nets/") and _MARK in name.split("/")[1]
    }


def correlation(a: Profile, b: Profile) -> float:
    """Inner product of two profiles over training time (EDM2, eq. 151)."""
    gamma_a, gamma_b = power_exponent(a.sigma_rel), power_exponent(b.sigma_rel)
    ratio = a.images / b.images
    power = ratio**gamma_b if a.images < b.images else ratio**-gamma_a
    scale = (gamma_a + gamma_b + 1) * max(a.images, b.images)
    return float((gamma_a + 1) * (gamma_b + 1) * power / scale)


def coefficients(given: Sequence[Profile], wanted: Profile) -> F64:
    """The weights of the given averages that make up the wanted one; they sum to 1 (EDM2, Algorithm 3)."""
    products = np.array([[correlation(a, b) for b in given] for a in given])
    target = np.array([correlation(a, wanted) for a in given])
    found: F64 = np.linalg.lstsq(products, target, rcond=1e-12)[0]
    normalised: F64 = found / found.sum()
    return normalised


def error(given: Sequence[Profile], wanted: Profile, weights: F64) -> float:
    """Relative L2 distance between the wanted profile and the combination."""
    products = np.array([[correlation(a, b) for b in given] for a in given])
    target = np.array([correlation(a, wanted) for a in given])
    norm = correlation(wanted, wanted)
    square = norm - 2 * weights @ target + weights @ products @ weights
    return float(np.sqrt(max(0.0, square) / norm))


def widths(names: Sequence[str], source: str) -> list[float]:
    """The widths that a snapshot holds for a network. Raises CheckpointError if it holds none."""
    found = {
        float(net.split(_MARK)[1]) for name in names if (net := name.split("/")[1]).startswith(source + _MARK)
    }
    if not found:
        raise CheckpointError(f"the snapshots hold no average of network {source!r}")
    return sorted(found)


def reconstruct(
    snapshots: Sequence[tuple[int, Mapping[str, Tensor]]], source: str, wanted: Profile
) -> tuple[dict[str, Tensor], float]:
    """A network's average of any width at any time, and the distance of its profile from the true one.

    `snapshots` are (images, tensors) as returned by `snapshot`; each is read once, tensor by tensor, and
    summed in float64. Tensors that are not floating point come from the last one.
    """
    parts = [
        (Profile(images, sigma), tensors)
        for images, tensors in snapshots
        for sigma in widths(list(tensors), source)
    ]
    given = [profile for profile, _ in parts]
    weights = coefficients(given, wanted)
    total: dict[str, Tensor] = {}
    for (profile, tensors), weight in zip(parts, weights, strict=True):
        prefix = f"nets/{ema_name(source, profile.sigma_rel)}/"
        for name in tensors:
            if not name.startswith(prefix):
                continue
            key, tensor = name.removeprefix(prefix), tensors[name]
            if not tensor.is_floating_point():
                total[key] = tensor
            else:
                part = tensor.double() * float(weight)
                total[key] = total[key] + part if key in total else part
    single = {key: t.float() if t.dtype == torch.float64 else t for key, t in total.items()}
    return single, error(given, wanted, weights)
