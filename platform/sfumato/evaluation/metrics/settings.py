"""The class of `evaluate.metric_options`: what metrics share, and the settings that each owns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, ClassVar

from pydantic import create_model

from sfumato.core.config import Config
from sfumato.evaluation.metric_options import MetricSettings
from sfumato.evaluation.metrics import all_metrics, own_metric

_FIRST = ("kid", "inception_score", "fd_infinity", "memorisation", "classification_score")
"""Whose settings have always come first in a recipe that is written out; the others follow by name."""


class _Composed(MetricSettings):
    """A class that is made here is pickled as what it is made of."""

    own: ClassVar[tuple[str, ...]] = ()

    def __reduce__(self) -> tuple[Callable[..., MetricSettings], tuple[object, ...]]:
        return _rebuilt, (self.own, self.model_dump())


def _rebuilt(own: tuple[str, ...], content: Mapping[str, object]) -> MetricSettings:
    return settings_class(own).model_validate(content)


def settings_class(own: tuple[str, ...] = ()) -> type[MetricSettings]:
    """With the settings of every built-in metric, and of those with these import paths."""
    return _made(own)


@cache
def _made(own: tuple[str, ...]) -> type[MetricSettings]:
    metrics = all_metrics()
    ordered = [*_FIRST, *sorted(metrics.keys() - set(_FIRST))]
    kinds = [metrics[name].Settings for name in ordered]
    kinds += [getattr(own_metric(path), "Settings", None) for path in own]
    parts: list[type[Config]] = list(dict.fromkeys(kind for kind in kinds if kind is not None))
    # Fields of the last base come first.
    compose: Any = create_model  # a class known only now, of which type checkers expect fields
    made: type[_Composed] = compose(
        "MetricSettings",
        __base__=(_Composed, *reversed(parts)),
        __doc__="What single metrics let the user choose. Figures compare at equal settings only.",
        __module__=__name__,
    )
    made.own = own
    return made


def own_names(metrics: str | Iterable[str]) -> tuple[str, ...]:
    """The import paths among the names of metrics."""
    names = [metrics] if isinstance(metrics, str) else metrics
    return tuple(name for name in names if ":" in name)
