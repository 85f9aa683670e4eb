"""The objectives: what the network learns, and the matching sampler.

A file (or a folder) here is an objective: its configuration, an `ObjectiveConfig`, with the class of its
sampling options, and the `Objective` that the configuration builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias

from pydantic import Field, model_validator
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.components import Component, Components
from sfumato.core.conditions import Condition
from sfumato.core.config import Config
from sfumato.core.family import LossOut, Nets, NetSpec, Phase
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.paths import Level
from sfumato.core.pretrained import Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.stored import Weights
from sfumato.errors import ConfigError
from sfumato.families.diffusion.networks import NetworkConfig
from sfumato.text.config import TextConfig

if TYPE_CHECKING:
    from sfumato.families.diffusion.guidance.labels import Conditioning, Guided

Output: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""A network's raw output [B, outputs * C, H, W] at (its input [B, C, H, W], its time [B])."""

DEFAULT_LABEL_DROPOUT = 0.1


class Objective(ABC):
    """A loss on the network called `network`, and the sampler that belongs to it.

    `phase` names the phase that trains; the noise of training depends on it. `float32` is that of
    `core.family.Phase`.
    """

    phase: str
    float32: bool = False
    outputs: int = 1
    """Values that the network returns for each value of the image."""
    uncertain: bool = False
    """Whether the network also tells how large its error is."""
    spans: bool = False
    """Whether the network also sees the length of a step, which `predict` takes."""
    changes: int = 0
    """By how many numbers the network is told how an image was changed; 0 if it is not."""

    @abstractmethod
    def loss(self, nets: Nets, batch: Batch, labels: Conditioning, progress: Progress, rng: Rng) -> LossOut:
        """One loss per row, [B], of `batch["image"]` [B, C, H, W]."""

    @abstractmethod
    def sample(
        self, network: Guided, noise_NCHW: Tensor, options: Any, rng: SampleRng, *, clip: bool, first: int = 0
    ) -> Tensor:
        """What the network makes of standard normal noise, [N, C, H, W].

        `options` is the objective's sampling configuration; `clip` bounds every predicted image. With `first`
        above 0 it begins at that one of the `noise_levels`, from an image that has its noise.
        """

    def noise_levels(self, options: Any) -> list[Level]:
        """The noise levels of the sampler's steps, from noise to image, the last of which is the image.

        Raises ConfigError for an objective whose samples have no path that others could enter.
        """
        raise ConfigError("this model draws images without a path of noise levels, so it edits none")

    def image(self, network: Guided, x_NCHW: Tensor, level: Level) -> Tensor:
        """The image that the network predicts from x at a level, [N, C, H, W], not clipped."""
        raise AssertionError("it has no levels")

    def diffusers_scheduler(self, options: Any, *, clip: bool) -> Any:
        """The scheduler that samples like this objective in diffusers' pipelines, or None."""
        return None

    def diffusers_flow(self, options: Any) -> Any:
        """The same for pipelines of rectified flow, or None."""
        return None

    def nets(self) -> Mapping[str, NetSpec]:
        """Further networks that the loss needs: averages of `network`, and trained or frozen ones."""
        return {}

    def weights(self) -> Weights | None:
        """What `network` starts from; None for fresh weights."""
        return None

    def further_phases(self, given: Conditioning) -> Sequence[Phase]:
        """Phases that train networks of `nets`; they run before that of `network`."""
        return ()


class BoundedObjective(Objective):
    """One that bounds the likelihood of 8-bit images."""

    @abstractmethod
    def bits_per_dim(self, network: Guided, x0_BCHW: Tensor, options: Any, rng: Rng) -> Tensor:
        """The bound in bits per dimension, [B]; `options.likelihood_steps` sets its cost."""


class DenoisingObjective(Objective):
    """One whose network says, at any noise level, which image a noisy image holds.

    Its models can teach others, whatever they were trained to predict.
    """

    @abstractmethod
    def image_in(self, output: Output, x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
        """D(x; sigma), the image predicted in x = y + sigma n with n ~ N(0, I), [B, C, H, W].

        It tends to x as sigma [B] tends to 0, and is affine in what `output` returns.
        """

    @abstractmethod
    def highest(self) -> float:
        """The largest noise level of training; math.inf if there is none."""


class GuidableObjective(Config):
    """Settings of an objective whose model may be guided."""

    label_dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of labels replaced by the null class in training, which guidance needs; null "
        f"means {DEFAULT_LABEL_DROPOUT} for a class-conditional model.",
    )


class SamplingBase(Config):
    """Options that all samplers have."""

    clip: bool | None = Field(
        None,
        description="Clip the predicted image to [-1, 1] in every step; null does so for a model of pixels "
        "and not for one of latents.",
    )
    adapter_scale: float = Field(
        1.0,
        ge=0,
        description="Factor on what an adapter that sees an image adds to the network; 0 leaves the image "
        "out.",
    )

    def problems(self, objective: Config, *, latents: bool) -> list[str]:
        """Conflicts of these options with this objective, of pixels or of latents, one line each."""
        return []

    @property
    def adds_noise(self) -> str:
        """That sampling adds noise on its way, in which the first noise is lost; empty if it does not."""
        return ""

    @property
    def measures_likelihood(self) -> bool:
        """Whether the likelihood of a `BoundedObjective` is asked for."""
        return False


class GuidedSampling(SamplingBase):
    """Options of a sampler that runs in steps and may be guided."""

    steps: int = Field(50, ge=1, description="Steps from noise to image.")
    guidance: float = Field(
        1.0,
        ge=0,
        description="Classifier-free guidance weight; 1 is the plain conditional model, any other value "
        "doubles the cost of a step.",
    )
    image_guidance: float = Field(
        1.0,
        ge=0,
        description="Weight of an image condition (s_I of Brooks et al. 2023, eq. 3), for models trained "
        "with it left out now and then; 1 is the plain model, any other value costs one more evaluation.",
    )
    guidance_interval: tuple[float, float] | None = Field(
        None,
        description="Noise levels sigma (of the noise over the image) above and up to which guidance acts "
        "(Kynkäänniemi et al. 2024); outside, a step costs one evaluation. null: at all.",
    )
    guidance_rescale: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How far guided predictions get the standard deviation of unguided ones (Lin et al. "
        "2023, eq. 16): 0 not at all, 1 wholly.",
    )
    guide: Pretrained | None = Field(
        None,
        description="Autoguidance (Karras et al. 2024): guide away from this smaller or less trained "
        "diffusion model of the same data instead of away from the null class.",
    )
    likelihood_steps: int | None = Field(
        None,
        ge=1,
        description="bits_per_dim: steps of the differential equation that carries the likelihood from image "
        "to noise, or timesteps per image of a variational bound; null does not measure it.",
    )

    @model_validator(mode="after")
    def _guidance_makes_sense(self) -> Self:
        given = [name for name in ("guidance_interval", "guidance_rescale", "guide") if getattr(self, name)]
        if given and self.guidance == 1 and self.image_guidance == 1:
            raise ValueError(
                f"{given[0]}: has no effect with guidance=1; set guidance above 1, or leave it out"
            )
        if (
            self.guidance_interval is not None
            and not 0 <= self.guidance_interval[0] < self.guidance_interval[1]
        ):
            low, high = self.guidance_interval
            raise ValueError(f"guidance_interval: got {low:g} to {high:g}, which must rise from 0 or more")
        return self

    @property
    def measures_likelihood(self) -> bool:
        """If it has steps."""
        return self.likelihood_steps is not None


class Model(Protocol):
    """The parts of a diffusion model's configuration that matter to another model."""

    @property
    def network(self) -> NetworkConfig: ...
    @property
    def objective(self) -> ObjectiveConfig: ...
    @property
    def first_stage(self) -> FirstStageConfig | None: ...
    @property
    def latent_scale(self) -> float | None: ...
    @property
    def latent_norm(self) -> str: ...
    @property
    def text(self) -> TextConfig | None: ...
    @property
    def pretrained(self) -> object: ...
    def conditions(self, data: DataSpec) -> tuple[Condition, ...]: ...
    def label_dropout(self, data: DataSpec) -> float: ...


class ObjectiveConfig(Component, ABC):
    """Settings of an objective, which they build."""

    Sampling: ClassVar[type[SamplingBase]]
    """The class of `model.sampling` with this objective."""
    output_units: ClassVar[tuple[str, ...]] = ()
    """The fields that give the network's output its meaning: outputs mix only between models that agree."""

    @abstractmethod
    def build(self, *, latents: bool = False) -> Objective:
        """The objective of a model of pixels, or of latents."""

    def couples_rows(self) -> bool:
        """Whether a row's loss depends on the other rows of its micro-batch."""
        return False

    def compared_rows(self) -> int:
        """Into groups of how many rows a micro-batch must divide."""
        return 1

    def problems(self, own: Model, data: DataSpec) -> list[str]:
        """Conflicts with the rest of the model's configuration `own`, one line each."""
        return []

    @classmethod
    def tiny_sampling(cls) -> SamplingBase:
        """The smallest options that sample with `tiny`."""
        return cls.Sampling()


OBJECTIVES: Components[ObjectiveConfig] = Components(
    "sfumato.families.diffusion.objectives", ObjectiveConfig, default="ddpm"
)
