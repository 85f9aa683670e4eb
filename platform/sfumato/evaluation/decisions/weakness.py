"""Marks of figures that say little, and why: they travel with the figure into every table and decision.

A figure on features is weak if what is behind these features fails on held-out real images, a classifier or
captions that do not find their images: what it cannot tell apart, it cannot judge. Precision and density are
weak if they take uniform noise for real images (`noise.py`), as in a manifold of few images in many
dimensions. A Fréchet distance is weak if it takes a covariance of no more samples than dimensions: that
covariance is singular, and most of the distance is bias.

Marked figures are shown, and choose nothing: neither the best model, nor when training stops, nor whether a
gate opens, unless `evaluate.accept_weak_features` says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEAST_ACCURACY = 0.9
"""Held-out accuracy that features of a classifier must have."""
LEAST_RETRIEVAL = 0.5
"""Share of held-out captions that must find their own image among 100."""
MOST_OF_NOISE = 0.05
"""What uniform noise may get of a figure that is to refuse it."""
ACCEPT = "evaluate.accept_weak_features=true"

Marks = Mapping[str, Sequence[str]]
"""Why a figure is weak, one text per cause, by the figure's name; figures that are not have no entry."""


def of_features(name: str, facts: Mapping[str, object]) -> tuple[str, ...]:
    """Marks of every figure on features with these facts."""
    found = []
    accuracy, retrieval = facts.get("held_out_accuracy"), facts.get("held_out_retrieval")
    if isinstance(accuracy, float) and accuracy < LEAST_ACCURACY:
        found.append(f"features {name} recognise {accuracy:.3f} of held-out images, below {LEAST_ACCURACY}")
    if isinstance(retrieval, float) and retrieval < LEAST_RETRIEVAL:
        found.append(
            f"features {name} find {retrieval:.3f} of held-out images by their captions, below "
            f"{LEAST_RETRIEVAL}"
        )
    return tuple(found)


def of_samples(samples: int, dim: int) -> tuple[str, ...]:
    """Marks of a figure that takes the covariance of so many samples in so many dimensions."""
    return (f"{samples:,} samples for a covariance of {dim:,} dimensions",) if samples <= dim else ()


def of_noise(features: str, value: float) -> tuple[str, ...]:
    """Marks of a figure that uniform noise gets this value of."""
    if value < MOST_OF_NOISE:
        return ()
    return (f"uniform noise gets {value:.2f} on features {features}, and should get below {MOST_OF_NOISE}",)


def fit(metrics: Mapping[str, float], marks: Marks, *, accepted: bool) -> dict[str, float]:
    """The figures that may decide."""
    return {name: value for name, value in metrics.items() if accepted or not marks.get(name)}


def refusal(field: str, figure: str, marks: Sequence[str], *, fix: str) -> str:
    """One line: the figure chooses nothing, why, and what to do."""
    return f"{field}: {figure} is weak ({'; '.join(marks)}) and decides nothing: {fix}, or set {ACCEPT}"


def lines(marks: Marks) -> list[str]:
    """The marks as text, one line per cause with all its figures."""
    figures: dict[str, list[str]] = {}
    for figure, causes in marks.items():
        for cause in causes:
            figures.setdefault(cause, []).append(figure)
    return [f"{', '.join(names)}: {cause}" for cause, names in figures.items()]
