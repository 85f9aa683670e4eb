"""Which stages of a pipeline are finished, which would run, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sfumato.errors import ConfigError, SfumatoError
from sfumato.runtime.pipeline import graph
from sfumato.runtime.pipeline.records import Records, StageRecord
from sfumato.runtime.pipeline.settings import Pipeline
from sfumato.runtime.pipeline.stage import Outputs, StageSettings, digest

_MOST_NAMED = 3
_LONGEST = 30


@dataclass(frozen=True, slots=True)
class Step:
    """A stage's status: finished, to be run, or undecided until others finish."""

    name: str
    kind: str
    state: Literal["done", "run", "wait"]
    why: str
    record: StageRecord | None = None
    """The outputs of a finished stage."""
    settings: StageSettings | None = None
    """The stage with its references resolved, once their values exist."""
    inputs: dict[str, Any] | None = None
    """What its key is computed from, once that is known."""


def again_from(pipeline: Pipeline, first: str | None) -> frozenset[str]:
    """The stage of `--from` and all that depend on it. Raises ConfigError if there is no such stage."""
    if first is None:
        return frozenset()
    if first not in pipeline.needs:
        raise ConfigError(f"--from {first}: there is no such stage{graph.near(first, pipeline.order)}")
    return frozenset(graph.after(pipeline.needs, [first]))


def preview(pipeline: Pipeline, *, first: str | None = None) -> list[Step]:
    """The plan, without running anything."""
    return plan(pipeline, Records(pipeline.state), again_from(pipeline, first))


def plan(pipeline: Pipeline, records: Records, again: frozenset[str] = frozenset()) -> list[Step]:
    """All stages in order, treating those in `again` as if a rerun had been requested. Changes nothing.

    Raises SfumatoError, naming the stage, for one whose inputs are wrong.
    """
    steps: list[Step] = []
    outputs: dict[str, Outputs] = {}
    for name in pipeline.order:
        missing = [other for other in pipeline.order if other in pipeline.needs[name] - outputs.keys()]
        if missing:
            steps.append(_waiting(pipeline, records, name, missing, name in again or records.again(name)))
            continue
        try:
            step = examine(pipeline, records, name, outputs, ordered=name in again)
        except ConfigError as error:
            raise ConfigError(*(_named(name, line) for line in error.problems)) from None
        except SfumatoError as error:
            raise ConfigError(_named(name, str(error))) from None
        steps.append(step)
        if step.record is not None:
            outputs[name] = step.record.outputs
    return steps


def examine(
    pipeline: Pipeline,
    records: Records,
    name: str,
    outputs: Mapping[str, Outputs],
    *,
    ordered: bool = False,
) -> Step:
    """Decide about a stage whose dependencies are all finished, given their outputs."""
    settings = pipeline.stage(name, outputs)
    inputs = inputs_of(pipeline, name, settings, outputs)
    latest = records.latest(name)
    found = None if inputs is None else records.find(name, digest(inputs))
    if ordered or records.again(name):
        why = "asked for by --from"
    elif found is not None and settings.in_place(found.outputs, pipeline.place):
        return Step(name, settings.kind, "done", "its inputs are unchanged", found, settings, inputs)
    elif found is not None:
        why = "its output is missing or was changed"
    elif latest is None:
        why = "not done yet"
    elif inputs is None:
        why = "its data is not there"
    elif "recipe" in latest.inputs and "schema" not in latest.inputs["recipe"]:
        why = "recorded by an earlier version; what its run has finished is kept"
    else:
        why = ", ".join(differences(latest.inputs, inputs))
    return Step(name, settings.kind, "run", why, settings=settings, inputs=inputs)


def inputs_of(
    pipeline: Pipeline, name: str, settings: StageSettings, outputs: Mapping[str, Outputs]
) -> dict[str, Any] | None:
    """Everything a stage's outputs depend on; None if that is unknown before its dependencies ran."""
    identity = settings.identity(pipeline.place)
    if identity is None:
        return None
    upstream = {other: outputs[other]["digest"] for other in sorted(pipeline.needs[name])}
    plain = json.dumps({"kind": settings.kind, **identity, "needs": upstream})
    return dict(json.loads(plain))  # as it will be read again, tuples as lists


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between the earlier and the current inputs, readable: dotted fields, old and new values."""
    before, after = dict(_flat(old)), dict(_flat(new))
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    lines = [
        _difference(key, *(_value(part, key) for part in (before, after))) for key in changed[:_MOST_NAMED]
    ]
    more = len(changed) - _MOST_NAMED
    return [*lines, f"and {more} more"] if more > 0 else lines


def _value(inputs: Mapping[str, Any], key: str) -> Any:
    """A recipe's and an evaluation's identity leave out what has its default."""
    absent = "default" if key.startswith(("recipe.", "settings.")) else None
    return inputs.get(key, absent)


def _difference(key: str, old: Any, new: Any) -> str:
    if key.startswith("needs."):
        return f"{key.removeprefix('needs.')} produced another output"
    key = key.removeprefix("recipe.")
    if any(len(str(value)) > _LONGEST for value in (old, new)):  # a digest, most likely
        return f"{key} changed"
    return f"{key}: {old} -> {new}"


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), content


def _waiting(pipeline: Pipeline, records: Records, name: str, missing: list[str], ordered: bool) -> Step:
    kind = str(pipeline.settings.stages[name]["kind"])
    after = f"after {', '.join(missing)}"
    if ordered:
        return Step(name, kind, "wait", f"{after}: asked for by --from")
    if records.latest(name) is None:
        return Step(name, kind, "wait", f"{after}: not done yet")
    return Step(name, kind, "wait", f"{after}: runs if they produce another output than before")


def _named(name: str, line: str) -> str:
    return line if line.startswith("stages.") else f"stages.{name}: {line}"
