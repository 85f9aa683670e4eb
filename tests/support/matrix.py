"""Every member of every family under every strategy: which cases there are, and their results."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from launch import launch_together
from torch import Tensor

from sfumato import families
from sfumato.core.batch import DataSpec
from sfumato.core.family import Phase
from sfumato.errors import SfumatoError
from sfumato.parallel import STRATEGIES, ParallelSettings
from sfumato.training.capabilities import phase_problems

# Four passes a step on one rank, two on two, one on four; every phase of a mixed schedule gets its turn.
TRAIN = {
    "images": 192,
    "batch": 64,
    "micro_batch": 16,
    "log_every": 64,
    "preview_samples": 0,
    "clip_grad_norm": 1.0,  # also where the family would not clip: strategies do it differently
}
DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
Member = tuple[str, str]


@cache
def _phases() -> dict[Member, Sequence[Phase]]:
    """The phases of all that can be built for the digits without a file of the user's."""
    found: dict[Member, Sequence[Phase]] = {}
    for family in families.names():
        for variant, config in families.config_class(family).variants().items():
            with suppress(SfumatoError):
                found[family, variant] = config.build(DIGITS).phases
    return found


def reads_texts(member: Member) -> bool:
    """Whether the member is trained on captions."""
    family, variant = member
    taken = families.config_class(family).variants()[variant].conditions(DIGITS)
    return any(condition.kind == "text" for condition in taken)


def members() -> list[Member]:
    """(family, variant) of those."""
    return list(_phases())


def refused(member: Member, strategy: str) -> list[str]:
    return phase_problems(_phases()[member], ParallelSettings(strategy=strategy))


def strategies() -> list[str]:
    """What spreads work over ranks and is installed."""
    return [name for name, kind in STRATEGIES.items() if name != "single" and kind.unavailable() is None]


def cases(*, core: bool) -> list[tuple[str, Member]]:
    """(strategy, member) of all that a strategy does not refuse.

    The core has one member a family for the stages of ZeRO, which share most of their code.
    """
    firsts = {family: each for each in reversed(members()) for family in [each[0]]}
    return [
        (name, each)
        for name in strategies()
        for each in members()
        if not refused(each, name) and not (core and name.startswith("zero") and each != firsts[each[0]])
    ]


@dataclass
class Matrix:
    """Results of cases. Ranks compute those of a family under a strategy one after another, at the first
    question for one of them."""

    folder: Path
    data: Path
    captioned: Path
    """Digits with captions."""
    wanted: Collection[tuple[str, Member]]
    """The cases that will be asked for."""
    results: dict[tuple[str, Member, int], dict[str, Tensor] | str] = field(default_factory=dict)

    def reference(self, member: Member) -> dict[str, Tensor]:
        """What a single process computes."""
        return self.get("single", member, 1)

    def get(self, strategy: str, member: Member, world_size: int) -> dict[str, Tensor]:
        """The result of a case on so many ranks."""
        if (strategy, member, world_size) not in self.results:
            self._compute(strategy, member[0], world_size)
        result = self.results[strategy, member, world_size]
        if isinstance(result, str):
            raise AssertionError(result)
        return result

    def _compute(self, strategy: str, family: str, world_size: int) -> None:
        kin = [
            each
            for each in members()
            if each[0] == family and any(m == each and strategy in ("single", s) for s, m in self.wanted)
        ]
        found = launch_together(
            self.folder / f"{strategy}-{family}-{world_size}",
            [self._case(strategy, each) for each in kin],
            world_size=world_size,
        )
        for each, result in zip(kin, found, strict=True):
            self.results[strategy, each, world_size] = result

    def _case(self, strategy: str, member: Member) -> dict[str, Any]:
        family, variant = member
        texts = reads_texts(member)
        return {
            "family": family,
            "variant": variant,
            "strategy": strategy,
            "data": str(self.captioned if texts else self.data),
            "reading": {"text": texts},
            "train": TRAIN,
        }
