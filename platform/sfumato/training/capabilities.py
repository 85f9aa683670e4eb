"""Checks what a recipe asks of its strategy against what the strategy can do, before anything starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import ValidationError

from sfumato.core.family import NetSpec, Phase, Trainable
from sfumato.core.rng import seeded
from sfumato.core.stored import matches
from sfumato.core.validation import explain
from sfumato.errors import ConfigError
from sfumato.parallel import STRATEGIES, ParallelSettings, Strategy
from sfumato.parallel.capabilities import Feature, refusals
from sfumato.training.config import TrainSettings


def problems(train: TrainSettings, parallel: ParallelSettings) -> list[str]:
    """Requests in the settings that the strategy cannot fulfil, one line each with the field to change."""
    try:
        strategy = STRATEGIES[parallel.strategy]
    except ConfigError as error:
        return [f"parallel.strategy: {problem}" for problem in error.problems]
    found = refusals(strategy, _wanted(train, parallel), STRATEGIES.values())
    found += _own_problems(strategy, parallel)
    if reason := strategy.unavailable():
        found.append(reason)
    if parallel.fsdp.bf16_parameters and train.precision != "bf16":
        found.append("parallel.fsdp.bf16_parameters=true needs train.precision=bf16")
    return found


def phase_problems(phases: Sequence[Phase], parallel: ParallelSettings) -> list[str]:
    """Requirements of a family's phases that the strategy cannot fulfil, one line each."""
    rounded = [
        f"parallel.fsdp.bf16_parameters=true: phase {phase.name!r} takes differences that bfloat16 rounds "
        "away; set it to false"
        for phase in phases
        if phase.float32 and parallel.fsdp.bf16_parameters
    ]
    return rounded + [
        problem
        for phase in phases
        for problem in refusals(STRATEGIES[parallel.strategy], _needs(phase), STRATEGIES.values())
    ]


def adapter_problems(nets: Mapping[str, NetSpec], parallel: ParallelSettings) -> list[str]:
    """Adapters of a family that the strategy cannot train, one line each."""
    return [
        problem
        for name, spec in nets.items()
        if isinstance(spec, Trainable) and spec.adapter
        for problem in refusals(
            STRATEGIES[parallel.strategy],
            {Feature.ADAPTERS: f"network {name!r} is an adapter"},
            STRATEGIES.values(),
        )
    ]


def matrix_problems(nets: Mapping[str, NetSpec], parallel: ParallelSettings) -> list[str]:
    """Optimizers that update whole matrices under a strategy that cuts them anywhere, one line each."""
    return [
        problem
        for name, spec in nets.items()
        if isinstance(spec, Trainable) and spec.optimizer.needs_whole_matrices
        for problem in refusals(
            STRATEGIES[parallel.strategy],
            {Feature.WHOLE_MATRICES: f"the optimizer {spec.optimizer.name} of network {name!r}"},
            STRATEGIES.values(),
        )
    ]


def optimizer_problems(nets: Mapping[str, NetSpec]) -> list[str]:
    """Problems with the parameter groups of a family's optimizers, one line each."""
    found = []
    for name, spec in nets.items():
        if isinstance(spec, Trainable) and spec.optimizer.groups:
            with torch.device("meta"), seeded("names of parameters"):  # their names, without memory
                parameters = {
                    key: parameter
                    for key, parameter in spec.build().named_parameters()
                    if not spec.adapter or matches(key, spec.adapter)
                }
            try:
                spec.optimizer.grouped(parameters)
            except ConfigError as error:
                found += [f"network {name!r}: {problem}" for problem in error.problems]
    return found


def _wanted(train: TrainSettings, parallel: ParallelSettings) -> dict[Feature, str]:
    """The features that the settings ask for, each with the field that asks."""
    asked = {
        Feature.BF16: train.precision == "bf16" and "train.precision=bf16",
        Feature.RECOMPUTE: train.activation_checkpointing and "train.activation_checkpointing=true",
        Feature.COMPILE: train.compile and "train.compile=true",
    }
    return {feature: field for feature, field in asked.items() if field} | parallel.wanted()


def _needs(phase: Phase) -> dict[Feature, str]:
    """The features that a phase asks for, each with why."""
    asked = {
        Feature.SECOND_ORDER: phase.second_order
        and f"phase {phase.name!r} differentiates through a gradient",
        Feature.READ_WEIGHTS: phase.reads_weights and f"phase {phase.name!r} reads its network's weights",
    }
    return {feature: why for feature, why in asked.items() if why}


def _own_problems(strategy: type[Strategy], parallel: ParallelSettings) -> list[str]:
    """Problems with the strategy's own settings."""
    try:
        strategy.settings(parallel)
    except ValidationError as error:
        return explain(error, strategy.Settings, ("parallel", "options"))
    return strategy.problems(parallel)
