"""Every member of every family under every strategy: which cases there are, and their results.

All cases of one number of ranks run in the same processes, started once and lazily; a test looks up its
case. Starting a process group costs more than training twenty tiny members.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from launch import launch_all
from torch import Tensor

from sfumato import families
from sfumato.core.batch import DataSpec
from sfumato.errors import SfumatoError
from sfumato.parallel import STRATEGIES, ParallelSettings
from sfumato.training.capabilities import phase_problems

# Four passes a step on one rank, two on two, one on four; every phase of a mixed schedule gets its turn.
TRAIN = {"images": 192, "batch": 64, "micro_batch": 16, "log_every": 64, "preview_samples": 0}
DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
Member = tuple[str, str]


@cache
def members() -> list[Member]:
    """(family, variant) of all that can be built for the digits without a file of the user's."""
    found = []
    for family in families.names():
        for variant, config in families.config_class(family).variants().items():
            try:
                config.build(DIGITS)
            except SfumatoError:
                continue
            found.append((family, variant))
    return found


@cache
def refused(member: Member, strategy: str) -> list[str]:
    family, variant = member
    config = families.config_class(family).variants()[variant]
    return phase_problems(config.build(DIGITS).phases, ParallelSettings(strategy=strategy))


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
    """Results of the cases, by strategy, member and number of ranks."""

    folder: Path
    data: Path
    results: dict[tuple[str, Member, int], dict[str, Tensor] | str] = field(default_factory=dict)

    def reference(self, member: Member) -> dict[str, Tensor]:
        """What a single process computes."""
        return self.get("single", member, 1, [("single", each) for each in members()])

    def get(
        self, strategy: str, member: Member, world_size: int, together: list[tuple[str, Member]]
    ) -> dict[str, Tensor]:
        """The result of a case; the first call runs all of `together` on so many ranks."""
        if (strategy, member, world_size) not in self.results:
            wanted = [case for case in together if (*case, world_size) not in self.results]
            found = launch_all(
                self.folder / f"{len(self.results)}-{world_size}",
                [self._case(*case) for case in wanted],
                world_size=world_size,
            )
            self.results |= {(*case, world_size): result for case, result in zip(wanted, found, strict=True)}
        result = self.results[strategy, member, world_size]
        if isinstance(result, str):
            raise AssertionError(f"{strategy} on {world_size} ranks: {member}: {result}")
        return result

    def _case(self, strategy: str, member: Member) -> dict[str, Any]:
        family, variant = member
        return {
            "family": family,
            "variant": variant,
            "strategy": strategy,
            "data": str(self.data),
            "train": TRAIN,
        }
