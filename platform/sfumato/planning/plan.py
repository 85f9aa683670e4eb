"""A recipe on so many GPUs: as it is written, and the layout that would be fastest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.core.family import Family
from sfumato.data.order import micro_batches
from sfumato.errors import ConfigError
from sfumato.parallel import STRATEGIES, ParallelSettings
from sfumato.planning.counting import count
from sfumato.planning.estimate import Assumptions, Estimate, Lasting, Work, estimate, lasting
from sfumato.planning.gpus import Gpu
from sfumato.planning.held import Layout
from sfumato.recipe import Recipe
from sfumato.training import capabilities
from sfumato.training.config import TrainSettings

_ALIKE = 0.02
"""Speeds that differ by less count as equal: then the simpler layout is proposed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found. `own` is None if the recipe's layout is refused, for the reasons in `refused`;
    `proposed` is None if nothing fits."""

    gpu: Gpu
    gpus: int
    assumed: Assumptions
    work: Work
    own: Estimate | None
    refused: tuple[str, ...]
    proposed: Estimate | None
    changes: tuple[str, ...]
    """The overrides that make the recipe the proposed one."""
    lasting: tuple[Lasting, ...]
    """Of the proposed one, or else of the recipe's own."""


def plan(
    recipe: Recipe,
    data: DataSpec,
    *,
    gpu: Gpu,
    gpus: int,
    bytes_per_image: float,
    assumed: Assumptions,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Estimate a recipe, whose references are resolved, on `gpus` GPUs.

    Raises ConfigError if its batch cannot be cut for so many, or its model cannot be counted.
    """
    parallel = recipe.parallel.model_copy(update={"workers": gpus, "min_workers": None})
    train = recipe.train
    if found := [
        *micro_batches.problems(train.batch, recipe.data.streams, gpus),
        *recipe.model.problems(data),
        *_uncountable(recipe, data),
    ]:
        raise ConfigError(*found)
    family = recipe.model.build(data)
    sizes = list(_sizes(recipe, gpus))
    if not sizes:
        raise ConfigError(
            *micro_batches.coupling_problems(train.batch, recipe.data.streams, gpus, train.micro_batch)
        )
    work = _counted(recipe, family, data, sizes, bytes_per_image, say)
    refused = tuple(_problems(train, parallel, family))
    own = None
    if not refused:
        rows = min(train.micro_batch or sizes[-1], sizes[-1])
        own = estimate(
            work, layout_of(parallel), gpu, assumed, rows, recompute=train.activation_checkpointing
        )
    found_best = _best(work, train, parallel, family, sizes, gpu, assumed)
    proposed, settings = found_best if found_best is not None else (None, parallel)
    shown = proposed or own
    return Plan(
        gpu,
        gpus,
        assumed,
        work,
        own,
        refused,
        proposed,
        () if proposed is None else _changes(recipe, settings, proposed, sizes[-1]),
        () if shown is None else tuple(lasting(work, shown, gpus, assumed)),
    )


def _uncountable(recipe: Recipe, data: DataSpec) -> list[str]:
    """Models of texts: these are dropped and cut into tokens on the host, by values that are not there."""
    if any(condition.kind in ("text", "tags") for condition in recipe.model.conditions(data)):
        why = "since texts are cut into tokens on the host; measure one on a GPU instead (make gpu-check)"
        return [f"model.text: a step of a model of texts cannot be counted without running it, {why}"]
    return []


def _sizes(recipe: Recipe, gpus: int) -> Iterator[int]:
    """Micro-batches into which a rank's share of the batch can be cut, rising."""
    train, streams = recipe.train, recipe.data.streams
    share = train.batch // gpus
    group = min(recipe.model.compared_rows(), share)
    for rows in range(1, share + 1):
        if share % rows or rows % group:
            continue
        size = None if rows == share and train.micro_batch is None else rows
        if micro_batches.problems(train.batch, streams, gpus, size):
            continue
        if recipe.model.couples_rows() and micro_batches.coupling_problems(train.batch, streams, gpus, size):
            continue
        yield rows


def _counted(
    recipe: Recipe,
    family: Family,
    data: DataSpec,
    sizes: list[int],
    bytes_per_image: float,
    say: Callable[[str], None],
) -> Work:
    train = recipe.train
    say(f"counting a step on {sizes[-1]} images a GPU (shapes only; nothing is computed)")
    many = count(family, data, train, sizes[-1])
    few = many
    if len(sizes) > 1:
        say(f"counting a step on {sizes[0]}")
        few = count(family, data, train, sizes[0])
    return Work(
        few,
        many,
        family.phases,
        train.batch,
        "bf16" if train.precision == "bf16" else "float32",
        train.images,
        train.checkpoint.every,
        bytes_per_image,
    )


def _problems(train: TrainSettings, parallel: ParallelSettings, family: Family) -> list[str]:
    return [
        *capabilities.problems(train, parallel),
        *capabilities.phase_problems(family.phases, parallel),
        *capabilities.adapter_problems(family.nets, parallel),
        *capabilities.matrix_problems(family.nets, parallel),
    ]


def layout_of(parallel: ParallelSettings) -> Layout:
    kind = STRATEGIES[parallel.strategy]
    return Layout(kind, kind.settings(parallel), parallel.workers)


def _best(
    work: Work,
    train: TrainSettings,
    parallel: ParallelSettings,
    family: Family,
    sizes: list[int],
    gpu: Gpu,
    assumed: Assumptions,
) -> tuple[Estimate, ParallelSettings] | None:
    """The fastest layout that fits; among those alike the one that cuts and recomputes least."""
    found: list[tuple[Estimate, ParallelSettings, int]] = []
    for settings in _alternatives(parallel):
        if _problems(train, settings, family):
            continue
        layout = layout_of(settings)
        for recompute in (False, True):
            for rows in sizes:
                one = estimate(work, layout, gpu, assumed, rows, recompute=recompute)
                found.append((one, settings, len(layout.strategy.cut)))
    fitting = [entry for entry in found if entry[0].fits]
    if not fitting:
        return None
    fastest = max(one.images_per_second for one, _, _ in fitting)
    alike = [entry for entry in fitting if entry[0].images_per_second >= (1 - _ALIKE) * fastest]
    one, settings, _ = min(alike, key=lambda entry: (entry[2], entry[0].recompute, -entry[0].micro_batch))
    return one, settings


def _alternatives(parallel: ParallelSettings) -> Iterator[ParallelSettings]:
    """The recipe's settings under every strategy, and under each with further settings of its own."""
    for name in STRATEGIES:
        plain = parallel.model_copy(update={"strategy": name})
        if name != parallel.strategy:
            plain = plain.model_copy(update={"options": {}})
        yield plain
        for options in STRATEGIES[name].further(parallel.workers):
            try:
                changed = plain.model_copy(update={"options": {**plain.options, **options}})
                STRATEGIES[name].settings(changed)
            except ValidationError:
                continue
            yield changed


def _changes(recipe: Recipe, settings: ParallelSettings, found: Estimate, share: int) -> tuple[str, ...]:
    """The overrides that turn the recipe into the one found."""
    before, train = recipe.parallel, recipe.train
    changed = [f"parallel.workers={settings.workers}"]
    if before.gpus_per_worker != 1:
        changed.append("parallel.gpus_per_worker=1")
    if settings.strategy != before.strategy:
        changed.append(f"parallel.strategy={settings.strategy}")
    changed += [
        f"parallel.options.{key}={value}"
        for key, value in settings.options.items()
        if before.options.get(key) != value
    ]
    if found.micro_batch != (train.micro_batch or share):
        changed.append(f"train.micro_batch={found.micro_batch}")
    if found.recompute != train.activation_checkpointing:
        changed.append(f"train.activation_checkpointing={str(found.recompute).lower()}")
    return tuple(changed)
