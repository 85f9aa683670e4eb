"""The capabilities of strategies by name, from which the README's table and the refusals are generated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import ClassVar, Protocol


class Feature(Enum):
    """Something that a recipe may ask for. The value is its name in the table."""

    MANY_WORKERS = "more than one worker"
    ACCUMULATION = "gradient accumulation"
    CLIPPING = "gradient clipping"
    BF16 = "bf16 autocast"
    BF16_PARAMETERS = "bf16 parameters in transit"
    RECOMPUTE = "activation checkpointing"
    COMPILE = "torch.compile"
    SECOND_ORDER = "second-order losses"
    READ_WEIGHTS = "losses that read weights"
    OFFLOAD = "offload to host memory"
    RESHARD = "choice of resharding"
    HYBRID = "replicas of sharded groups"
    ADAPTERS = "adapters on a frozen base"
    WHOLE_MATRICES = "updates of whole matrices"
    SHARDED_OPTIMIZER = "optimizer state sharded"
    SHARDED_PARAMETERS = "parameters and averages sharded"


class Part(Enum):
    """Something that takes memory and that a strategy may cut over ranks."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer"
    AVERAGES = "averages"


class Able(Protocol):
    """A strategy, as far as its capabilities go."""

    name: ClassVar[str]
    features: ClassVar[frozenset[Feature]]


def refusals(
    strategy: type[Able], wanted: Mapping[Feature, str], strategies: Iterable[type[Able]]
) -> list[str]:
    """One line per wanted feature that the strategy lacks: the field that asks for it, and who has it.

    `wanted` maps a feature to the setting that asks for it, such as `train.compile=true`.
    """
    found = []
    for feature, asked in wanted.items():
        if feature not in strategy.features:
            able = [other.name for other in strategies if feature in other.features]
            found.append(
                f"{asked}: parallel.strategy={strategy.name} has no {feature.value}; change the one, or use "
                f"parallel.strategy={' or '.join(able)}"
            )
    return found


def table(strategies: Iterable[type[Able]]) -> str:
    """Strategies by features, as a Markdown table."""
    columns = list(strategies)
    rows = [
        ["", *(f"`{strategy.name}`" for strategy in columns)],
        ["---", *(":-:" for _ in columns)],
        *(
            [feature.value, *("yes" if feature in strategy.features else "-" for strategy in columns)]
            for feature in Feature
        ),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"
