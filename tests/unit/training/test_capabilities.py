"""Groups of parameters are checked before training starts, without building a network in memory."""

from __future__ import annotations

from sfumato.core.batch import DataSpec
from sfumato.core.optimizer import OptimizerConfig, OptimizerGroup
from sfumato.families.gan.config import GanConfig
from sfumato.training.capabilities import optimizer_problems


def test_a_pattern_without_parameters_is_told_with_its_network() -> None:
    def problems(*patterns: str) -> list[str]:
        groups = tuple(OptimizerGroup(pattern=pattern) for pattern in patterns)
        optimizer = OptimizerConfig(groups=groups)
        config = GanConfig.tiny().model_copy(update={"generator_optimizer": optimizer})
        return optimizer_problems(config.build(DataSpec(1, 8, 8)).nets)

    assert problems("image.*", "*norm.gain.weight") == []
    (line,) = problems("image.*", "picture.*")
    assert line.startswith(
        "network 'generator': optimizer.groups: no parameter matches 'picture.*'; names are"
    )
