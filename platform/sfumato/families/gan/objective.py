"""The `model.objective:` part of a recipe: the game that the networks play, its penalties and remedies."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sfumato.core.config import Config
from sfumato.core.earlier_defaults import Before
from sfumato.core.optimizer import OptimizerConfig
from sfumato.families.gan.augmentations import AUGMENTATIONS, Augmentation
from sfumato.families.gan.losses import LOSSES, Loss
from sfumato.families.gan.losses.nonsaturating import Nonsaturating
from sfumato.families.gan.penalties import PENALTIES, Penalty
from sfumato.families.gan.penalties.r1 import R1, R1Config
from sfumato.families.gan.remedies.consistency import ConsistencyConfig
from sfumato.families.gan.remedies.consolidation import ConsolidationConfig
from sfumato.families.gan.remedies.overfitting import HeldOutConfig
from sfumato.families.gan.remedies.path_length import PathLengthConfig
from sfumato.families.gan.remedies.replay import ReplayConfig
from sfumato.families.gan.slopes import SlopePenalty


class ObjectiveConfig(Config):
    """The game that the two networks play."""

    loss: Annotated[Loss, LOSSES] = Field(
        Nonsaturating(),
        description="nonsaturating (Goodfellow et al. 2014), hinge (Lim & Ye 2017), wasserstein (Arjovsky et "
        "al. 2017), least_squares (Mao et al. 2017), minimax (Goodfellow et al. 2014), relativistic (Huang "
        "et al. 2024).",
    )
    critic_steps: int = Field(
        1,
        ge=1,
        description="Updates of the discriminator per update of the generator, each on its own batch.",
    )
    gradient_penalty: float = Field(
        0.0,
        ge=0,
        description="lambda of lambda (|grad D| - 1)^2 between real and generated images (Gulrajani et al. "
        "2017); 10 is usual with wasserstein, 0 leaves it out.",
    )
    gradient_penalty_centre: Literal[0, 1] = Field(
        1,
        exclude_if=lambda value: value == 1,
        description="The length of gradient that gradient_penalty asks for: 1 (Gulrajani et al. 2017), or 0 "
        "(Thanh-Tung, Tran, Venkatesh 2019).",
    )
    r1: R1Config | None = Field(None, description="Gradient penalty on real images; null leaves it out.")
    penalties: tuple[Annotated[Penalty, PENALTIES], ...] = Field(
        (),
        exclude_if=lambda value: not value,
        description="Further penalties on the discriminator, such as {kind: r1, weight: 1}.",
    )
    corrected_adam: Annotated[bool, Before(2, False)] = Field(
        True,
        description="Whether the discriminator's Adam takes its learning rate times c and its betas to the "
        "power of c, where c = n / (n + sum of 1 / every over the penalties) and n = critic_steps. Every "
        "penalty is a step of its own, by which Adam would move further and forget faster (Karras et al. "
        "2020, app. B).",
    )

    path_length: PathLengthConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Path-length regularisation of a generator with styles (Karras et al. 2020); null leaves "
        "it out.",
    )
    feature_matching: float = Field(
        0.0,
        ge=0,
        exclude_if=lambda value: not value,
        description="Factor, in the generator's loss, of the squared distance between the mean features of "
        "real and generated images (Salimans et al. 2016, sec. 3.1); 0 leaves it out.",
    )
    class_weight: float = Field(
        1.0,
        gt=0,
        exclude_if=lambda value: value == 1,
        description="Factor of the classes' cross-entropy in both losses, with label_score=auxiliary.",
    )
    augmentation: Annotated[Augmentation, AUGMENTATIONS] | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Augmentation of what the discriminator sees: diffaugment (Zhao et al. 2020), ada "
        "(Karras et al. 2020); null leaves it out.",
    )

    consistency: ConsistencyConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Consistency regularisation of the discriminator (Zhang et al. 2020; Zhao et al. 2021); "
        "null leaves it out.",
    )
    replay: ReplayConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Images of an earlier self in the place of some real ones, against forgetting with "
        "data.curriculum (Shin et al. 2017); null leaves it out.",
    )

    held_out: HeldOutConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Hold a share of the images out from the discriminator, to see how far it knows the "
        "others by heart (Karras et al. 2020, ADA); null leaves it out.",
    )
    consolidation: ConsolidationConfig | None = Field(
        None,
        exclude_if=lambda value: value is None,
        description="Hold the generator's weights where stages of data.curriculum left them, each as firmly "
        "as the stage needs it (elastic weight consolidation, Kirkpatrick et al. 2017); null leaves it out.",
    )

    @property
    def all_penalties(self) -> dict[str, Penalty]:
        """Those of `r1` and `penalties`, by the names of their phases."""
        found: dict[str, Penalty] = {} if self.r1 is None else {"r1": R1.of(self.r1)}
        for penalty in self.penalties:
            name = penalty.kind.rpartition(":")[2].lower()
            found[name if name not in found else f"{name}_{len(found)}"] = penalty
        return found

    @property
    def joined(self) -> dict[str, SlopePenalty]:
        """Those that are part of the discriminator's own loss."""
        return {
            name: penalty
            for name, penalty in self.all_penalties.items()
            if isinstance(penalty, SlopePenalty) and penalty.joined
        }

    @property
    def lazy(self) -> dict[str, Penalty]:
        """Those that are phases."""
        return {name: penalty for name, penalty in self.all_penalties.items() if name not in self.joined}

    def corrected(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The discriminator's optimizer, corrected for the steps that its penalties add."""
        added = sum(1 / penalty.every for penalty in self.lazy.values())
        return self._corrected(optimizer, self.critic_steps, added)

    def corrected_generator(self, optimizer: OptimizerConfig) -> OptimizerConfig:
        """The generator's optimizer, corrected for the steps that the path length adds."""
        return self._corrected(optimizer, 1, 1 / self.path_length.every if self.path_length else 0)

    def _corrected(self, optimizer: OptimizerConfig, steps: int, added: float) -> OptimizerConfig:
        if not self.corrected_adam or not added or optimizer.name == "sgd":
            return optimizer
        c = steps / (steps + added)
        first, second = optimizer.betas
        rate = optimizer.lr.model_copy(update={"peak": optimizer.lr.peak * c})
        return optimizer.model_copy(update={"lr": rate, "betas": (first**c, second**c)})
