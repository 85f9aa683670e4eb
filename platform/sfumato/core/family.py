"""The interface between a family of generators and everything that trains, samples and evaluates it.

A family declares its networks and the phases that train them. One loop runs the phases of any family
under any strategy; neither the loop nor a strategy ever asks which family it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec, Texts
from sfumato.core.conditions import Condition, Conditions
from sfumato.core.config import Config, Neutral
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.stored import StageSpec, Weights

Nets = Mapping[str, nn.Module]


@dataclass(frozen=True, slots=True)
class LossOut:
    """What a phase returns: the unreduced loss [B], and metrics, each a scalar or [B].

    `sums` are sums over the rows of the micro-batch, of any shape; they advance the family's state
    (`core.state`). `weights_B`, not negative and without gradient, weight the rows: training minimises
    sum(weights_B * loss_B) / sum(weights_B), both sums over the whole global batch. A phase returns weights
    always or never. If all of them are zero, so is the gradient.
    """

    loss_B: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    weights_B: Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainable:
    """A network that a phase trains: one network, one optimizer.

    `blocks` names, by patterns over dotted names (`("down_blocks.*", "mid_block")`), the parts that a
    strategy shards, recomputes or compiles one at a time; without it they are the entries of the network's
    outermost `ModuleList`s. The network must use a block by calling it.

    `weights` are its initial weights; without them it starts from the weights that `build` gives.

    `adapter` makes it an adapter on a frozen base: only the parameters and buffers whose names match one of
    its patterns (`("*.lora_*",)`) train. They alone are averaged, checkpointed and exported; `weights`
    locates the base. Modules of the base stay in eval mode: its statistics do not change and its dropout is
    off. Base parameters may have a different dtype from the adapter's; `build` sets it.
    """

    build: Callable[[], nn.Module]
    optimizer: OptimizerConfig
    blocks: tuple[str, ...] = ()
    weights: Weights | None = None
    adapter: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A network that is used but never trained.

    `weights` locates its stored weights; without it the weights are those that `build` gives. Its floating
    point parameters are cast to `dtype` (float16 or bfloat16) after loading; its inputs must then have that
    type, or the call must run under autocast. `shard` lets a strategy that shards parameters spread it
    over ranks, and keep it in host memory under `parallel.offload`; it is gathered, block by block, when it
    or one of its methods is called. Other strategies keep it whole.
    """

    build: Callable[[], nn.Module]
    weights: Weights | None = None
    dtype: torch.dtype | None = None
    shard: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EmaOf:
    """An exponential moving average of a trainable network's weights.

    `decay(progress)` is the weight of the old average in the update after a step: 0 copies the network, 1
    leaves the average as it is. With `train_mode`, each of its modules is in train mode whenever that of its
    source is, so that a loss that compares the two can give both the same dropout (`core.rng.repeatable`);
    without, it always is in eval mode.
    """

    source: str
    decay: Callable[[Progress], float]
    train_mode: bool = False


NetSpec = Trainable | Frozen | EmaOf
LossFn = Callable[[Nets, Batch, Progress, Rng], LossOut]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One kind of update: it trains exactly one network.

    A step runs each phase whose turn it is (`step % every == 0`) `repeats` times. The r-th repeat of
    every phase sees the r-th global batch that the step reads. The phase begins with the first step at or
    after `start_images` and ends before the first one at or after `stop_images`; schedules count all images,
    whether it runs or not. `second_order` declares that the loss differentiates through a gradient (R1,
    WGAN-GP), which some strategies cannot do. `float32` declares that it takes differences of nearly equal
    outputs, which bfloat16 would round away: it runs without autocast, whatever the recipe's precision.
    `reads_weights` declares that it uses the network's parameters beside calling it, which strategies that
    spread them do not allow.
    `clip_grad_norm` is the largest norm of its gradient (None: any), unless the recipe's
    `train.clip_grad_norm` gives one.
    """

    name: str
    trains: str
    loss: LossFn
    repeats: int = 1
    every: int = 1
    start_images: int = 0
    stop_images: int | None = None
    second_order: bool = False
    float32: bool = False
    reads_weights: bool = False
    clip_grad_norm: float | None = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """What to generate: `num` images, each steered by its row of every condition.

    `conditions` holds those that `FamilyConfig.conditions` names, each with `num` rows: required ones always,
    others if they were given (negative ones as `negative_NAME`). `options` is the family's own sampling
    configuration (`FamilyConfig.sampling`).
    """

    num: int
    options: Any
    conditions: Conditions = field(default_factory=dict)

    def tensor(self, name: str) -> Tensor | None:
        """The rows of a condition that is not text; None if it was not given."""
        value = self.conditions.get(name)
        assert value is None or isinstance(value, Tensor), f"{name} holds texts"
        return value

    def texts(self, name: str) -> Texts | None:
        """The rows of a text; None if it was not given."""
        value = self.conditions.get(name)
        assert value is None or isinstance(value, Texts), f"{name} holds no texts"
        return value


class Family(Protocol):
    """Networks, phases and sampling of one model. No method has side effects except on the nets."""

    @property
    def nets(self) -> Mapping[str, NetSpec]: ...
    @property
    def phases(self) -> Sequence[Phase]: ...
    @property
    def samplers(self) -> Sequence[str]:
        """The networks that `sample`, `reconstruct` and `bits_per_dim` use; an export keeps only these."""
        ...

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """Encode, tokenise or augment a batch, without gradients and under autocast.

        It runs once per micro-batch, however many phases and repeats use the result. The first phase that
        uses it continues `rng` where `prepare` left it; each later one has its own noise.
        """
        ...

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Images [N, C, H, W] float32 in [-1, 1], from networks trained up to `progress`."""
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """A family with a likelihood, or a bound on it.

    If that is the likelihood of another variable than the 8-bit image, such as its binarisation, the family
    names the variable in an attribute `likelihood_of: str`. Such figures compare only with their like.
    """

    def bits_per_dim(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """Negative log-likelihood (or its bound) in bits per dimension, [B]."""
        ...


EIGHT_BIT = "8-bit values; dequantised by the family, where it has a density"


def likelihood_of(family: HasLikelihood) -> str:
    """The variable whose likelihood the family's bits per dimension measure."""
    return str(getattr(family, "likelihood_of", EIGHT_BIT))


@runtime_checkable
class HasLatent(Protocol):
    """A family whose images are a smooth function of one vector drawn from a normal distribution."""

    def latents(self, nets: Nets, options: Any, progress: Progress, rng: SampleRng) -> Tensor:
        """Draws of the vector, [N, D] float32, the same as those of `sample` with these options."""
        ...

    def decode_latents(self, nets: Nets, z_ND: Tensor, request: SampleRequest, progress: Progress) -> Tensor:
        """The images [N, C, H, W] in [-1, 1] of any such vectors: deterministic, not rounded to 8-bit levels.

        A conditional model uses the request's conditions.
        """
        ...


@runtime_checkable
class EncodesLatent(Protocol):
    """A family, `HasLatent` too, that computes an image's vector, which otherwise must be searched for."""

    def encode_latents(
        self, nets: Nets, image_NCHW: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """The vectors [N, D] of images in [-1, 1]: a VAE's posterior mean, a flow's noise. Draws nothing.

        A conditional model uses the request's conditions.
        """
        ...


@runtime_checkable
class HasStyles(Protocol):
    """A family that makes one style of a latent vector for each of `style_layers` layers; 0: this member
    does not."""

    @property
    def style_layers(self) -> int: ...

    def latents(self, nets: Nets, options: Any, progress: Progress, rng: SampleRng) -> Tensor:
        """See `HasLatent`."""
        ...

    def decode_mixed(
        self,
        nets: Nets,
        z_ND: Tensor,
        other_ND: Tensor,
        layers: range,
        request: SampleRequest,
        progress: Progress,
    ) -> Tensor:
        """Images as those of `HasLatent.decode_latents`, with the other vectors' styles in these layers."""
        ...


@runtime_checkable
class KnowsOverfitting(Protocol):
    """A family that may measure, while it trains, how far it knows its training images by heart."""

    def overfitting(self, progress: Progress) -> float | None:
        """From its state: 0 for unknown images treated like known ones, 1 for the opposite; None if this
        member does not measure it."""
        ...


@runtime_checkable
class HasPlacement(Protocol):
    """A family, `HasLatent` too, whose networks can move and turn what an image shows, if `places`."""

    @property
    def places(self) -> bool: ...

    def decode_placed(
        self, nets: Nets, z_ND: Tensor, placed_N33: Tensor, request: SampleRequest, progress: Progress
    ) -> Tensor:
        """As `decode_latents`, neither rounded nor kept in [-1, 1], with what they show placed anew.

        The matrices map a place (x to the right, y down, in image sides from the centre, 1) to the one whose
        content appears there.
        """
        ...


@runtime_checkable
class Reconstructs(Protocol):
    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The batch's images after passing through the model's bottleneck: [B, C, H, W] in [-1, 1].

        Deterministic if the encoder has a mean: then it draws nothing from `rng`.
        """
        ...


@runtime_checkable
class InitialisesFromData(Protocol):
    def initialise(self, nets: Nets, batch: Batch, rng: Rng) -> None:
        """Initialise freshly built networks, in place, from the first rows that training will see.

        This happens before step 0. `nets` holds the trainable networks, raw and whole, and the frozen ones
        with their stored weights; averages are copied afterwards. Every rank uses the same rows. Resuming
        replaces the result with the checkpoint's weights.
        """
        ...


@runtime_checkable
class ExportsDiffusers(Protocol):
    def export_diffusers(self, nets: Nets, folder: str, options: Any) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained` loads."""
        ...


class FamilyConfig(Config, ABC):
    """The `model:` part of a recipe. A subclass sets `family: Literal["its_name"]` and its own fields.

    `sampling` holds the defaults of the options that `sfumato sample` lets the user change.
    """

    family: str
    sampling: Neutral[Config]

    @abstractmethod
    def build(self, data: DataSpec) -> Family:
        """Build the family for images of this kind."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """The smallest real instance."""

    @classmethod
    def variants(cls) -> Mapping[str, Self]:
        """The smallest instance of each member of the family, by name; contract and parity tests run each."""
        return {"tiny": cls.tiny()}

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """What steers the images; a class-conditional family returns only `core.conditions.LABEL`."""
        return ()

    def completed(self) -> Self:
        """The configuration with all that it takes over from the trained models that it names, once these are
        looked up; itself if nothing is left to take over."""
        return self

    @classmethod
    def of_library(cls, source: Config) -> Mapping[str, Any] | None:
        """The settings with which this family serves an autoencoder of a library as a first stage.

        `source` is a `core.pretrained.Pretrained` that holds a library's network. None if the family serves
        none; raises ConfigError for a network that it does not know.
        """
        return None

    def as_first_stage(self, data: DataSpec) -> StageSpec | None:
        """The network that other models may use as their frozen first stage, if there is one."""
        return None

    def samples(self, data: DataSpec) -> bool:
        """Whether the family can draw new images; an autoencoder without a prior only `Reconstructs`."""
        return True

    def couples_rows(self) -> bool:
        """Whether a row's loss depends on the other rows of its micro-batch: through batch normalisation, or
        through dropout, which draws for all of them at once.

        Such a model needs micro-batches that are the same for any number of workers.
        """
        return False

    def compared_rows(self) -> int:
        """How many rows of a micro-batch a part of the model compares with one another, as a group of its
        own: micro-batches must be a multiple of it."""
        return 1

    def takes_several_sizes(self) -> bool:
        """Whether one model trains on images of several sizes, one size per batch. `data` then has the most
        frequent size, and samples have that size."""
        return False

    def problems(self, data: DataSpec) -> list[str]:
        """Reasons why this configuration cannot train on this data, one line each, with the nearest fix."""
        return []

    def amount_problems(self, data: DataSpec, *, batch: int, samples: int | None) -> list[str]:
        """Reasons why it cannot train in global batches of so many rows, or on so many samples (None: not
        known yet), one line each."""
        return []
