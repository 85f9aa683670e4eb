"""The networks: each takes (x_BCHW, t, label_B or None, return_dict=False) and returns a tuple of one tensor.

The first C channels of the output are the prediction; an objective may ask for C more. The signature is that
of diffusers' `UNet2DModel`, so that every objective trains every network. A network of texts takes their
`States` instead of labels. A file here is a network: its configuration, a `NetworkConfig` or
`TextNetworkConfig`, and what that builds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.components import Component, Components
from sfumato.errors import ConfigError
from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.states import TextShape


@dataclass(frozen=True, slots=True)
class Told:
    """What a network in training returns besides: its tokens after `depth` blocks, through a projector with
    hidden layers of `hidden` channels, as [B, T, channels]; with `convolution`, through one of 3x3 tokens."""

    depth: int
    hidden: int
    channels: int
    convolution: bool = False


class NetworkConfig(Component, ABC):
    """Kind and size of a network, which it builds."""

    several_sizes: ClassVar[bool] = False
    """Whether networks of this kind take images of several sizes."""
    for_diffusers: ClassVar[bool] = False
    """Whether diffusers' pipelines support the network."""
    of_pretrained: ClassVar[bool] = False
    """Whether only `model.pretrained` brings such a network."""
    tells_uncertainty: ClassVar[bool] = False
    """Whether `build` takes `uncertain=True`: networks that in training also return the logarithm of the
    variance of their error, [B]."""
    takes_changes: ClassVar[bool] = False
    """Whether `build` takes `changes=n`: networks that also see how an image was changed, by n numbers."""
    takes_spans: ClassVar[bool] = False
    """Whether `build` takes `spans=True`: networks that also see the length of a step."""

    @abstractmethod
    def build(self, data: DataSpec, *, conditional: bool, outputs: int = 1) -> nn.Module:
        """The network, with weights drawn from torch's global generator.

        It returns `outputs` times the channels of the data. A conditional one has one class embedding more
        than the data has classes: the last, index `data.num_classes`, stands for no class (Ho & Salimans
        2022).
        """

    def problems(self, data: DataSpec, what: str = "image") -> list[str]:
        """Why it cannot be built for a `what` (image, latent) of this shape, one line each."""
        return []

    def takes_several_sizes(self) -> bool:
        """Whether this one, with its settings, takes images of several sizes."""
        return self.several_sizes

    def middle(self) -> tuple[str, int] | None:
        """A layer in the middle that a discriminator can read: its name in the network, and its channels, the
        second dimension of [B, C, h, w] or the third of [B, T, C]. None if there is none."""
        return None

    def blocks_of_tokens(self) -> int | None:
        """How many blocks the tokens pass, after each of which `build` can have them told (`told=Told(...)`);
        None for a network that tells nothing."""
        return None

    def has_weights_of(self, other: NetworkConfig) -> bool:
        """Whether this network can start from the other's weights: they differ in dropout at most."""
        mine, theirs = (each.model_dump(exclude={"dropout"}) for each in (self, other))
        return mine == theirs

    def couples_rows(self) -> bool:
        """Whether a row's loss depends on the other rows, as with dropout, which draws for all at once."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineParts:
    """The parts of a pipeline. A scheduler is None if the model was trained by another kind of objective."""

    network: nn.Module
    """Built by `build_for_text`."""
    vae: Any
    encoders: Sequence[TextEncoderConfig]
    models: Sequence[tuple[Any, Any]]
    """Each encoder's model and tokenizer of transformers."""
    scheduler: Any
    """Of denoising on discrete noise levels."""
    flow: Any
    """Of rectified flow."""


class TextNetworkConfig(NetworkConfig, ABC):
    """Kind and size of a network that sees texts."""

    hides_padding: ClassVar[bool] = False
    """Whether the network sees nothing after the end of a text."""

    @abstractmethod
    def build_for_text(self, data: DataSpec, text: TextShape, *, outputs: int = 1) -> nn.Module:
        """The network of (x_BCHW, t, `States`), with weights drawn from torch's global generator."""

    def build(self, data: DataSpec, *, conditional: bool, outputs: int = 1) -> nn.Module:
        """Never called: `build_for_text` is."""
        raise AssertionError(f"{self.kind} needs texts")

    @property
    def inner(self) -> str:
        """The part of the built network that is diffusers' own."""
        return "transformer"

    @property
    def base_kind(self) -> str:
        """What adapters of it are told their base is: sd1, sd2, xl, or the kind of network."""
        return self.kind

    def text_problems(self, text: TextShape) -> list[str]:
        """Why it cannot see texts of this shape, one line each."""
        return []

    def pipeline(self, parts: PipelineParts) -> Any:
        """diffusers' pipeline of such a model. Raises ConfigError if there is none that draws the same."""
        raise ConfigError(f"diffusers has no pipeline for network {self.kind!r}; use --format safetensors")


NETWORKS: Components[NetworkConfig] = Components(
    "sfumato.families.diffusion.networks", NetworkConfig, default="unet"
)


def predict(
    network: nn.Module,
    x_BCHW: Tensor,
    t_B: Tensor,
    given: Tensor | Mapping[str, Tensor] | None,
    span_B: Tensor | None = None,
) -> Tensor:
    """The network's output [B, outputs * C, H, W] in float32, whatever autocast computes in.

    `span_B`, the length of a step, is for networks that were built with `spans`. The tuple form of the output
    is used because wrappers such as DDP look for tensors in tuples.
    """
    if span_B is None:
        output: Tensor = network(x_BCHW, t_B, given, return_dict=False)[0]
    else:
        output = network(x_BCHW, t_B, given, return_dict=False, span=span_B)[0]
    return output.float()
