"""How an adapter shows a network more than noise, time and texts.

What enters a network passes an `Entering`, which may add channels to the noisy image and tokens to the
states of texts. The first layer of a network that gets more channels is `Widened`: the base's layer stays as
it is, and a second one, which starts at zero, sees what is new (Brooks et al. 2023, sec. 3.2), so that the
first step draws what the base draws.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sfumato.families.diffusion.latent import LatentNetwork
from sfumato.text.network import TextConditioned
from sfumato.text.states import States

INSIDE = "base_layer"
LABEL = "label"
"""Among the inputs of a network without texts."""
FIRST_LAYERS = ("conv_in", "pos_embed.proj", "embed_patch", "embed_patch.0")
"""Of U-Nets, of transformers of diffusers, and of `dit`."""


class Entering(nn.Module, ABC):
    """Changes what a network sees; called with (x_BCHW, states or None, inputs)."""

    tokens: ClassVar[bool] = False
    """Whether it adds tokens, which only a network of texts has."""

    @abstractmethod
    def forward(
        self, x_BCHW: Tensor, text: States | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, States | None]:
        """The noisy images and the states that the network gets."""


class Concatenated(Entering):
    """More channels beside those of the noisy image."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def forward(
        self, x_BCHW: Tensor, text: States | None, inputs: Mapping[str, Tensor]
    ) -> tuple[Tensor, States | None]:
        """[B, C + E, H, W]."""
        return torch.cat([x_BCHW, inputs[self._name].to(x_BCHW.dtype)], dim=1), text


class Widened(nn.Module):
    """A first layer that sees more channels; equal to the base's as long as `added` is zero."""

    def __init__(self, layer: nn.Conv2d, extra: int) -> None:
        super().__init__()
        self.base_layer = layer
        self.added = nn.Conv2d(
            extra,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
            bias=False,
        )
        nn.init.zeros_(self.added.weight)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The sum of both layers."""
        own = self.base_layer.in_channels
        found: Tensor = self.base_layer(x_BCHW[:, :own]) + self.added(x_BCHW[:, own:])
        return found

    def whole(self, factor: float = 1.0) -> nn.Conv2d:
        """One layer of all channels, those that are new multiplied by `factor`."""
        layer = self.base_layer
        channels = layer.in_channels + self.added.in_channels
        found = nn.Conv2d(
            channels,
            layer.out_channels,
            layer.kernel_size,  # type: ignore[arg-type]
            layer.stride,  # type: ignore[arg-type]
            layer.padding,  # type: ignore[arg-type]
        )
        with torch.no_grad():
            found.weight.copy_(torch.cat([layer.weight, factor * self.added.weight], dim=1))
            assert found.bias is not None, "built with one"
            found.bias.copy_(layer.bias)  # type: ignore[arg-type]
        return found


def core(network: nn.Module) -> nn.Module:
    """The network itself, without its scale of latents and its text encoders."""
    inner = network.network if isinstance(network, LatentNetwork) else network
    return inner.network if isinstance(inner, TextConditioned) else inner


def conditioned(network: nn.Module) -> Any:
    """The part of a network that sees texts, a `TextConditioned`."""
    return next(module for module in network.modules() if isinstance(module, TextConditioned))


def first_layer(network: nn.Module) -> tuple[nn.Module, str] | None:
    """What holds the layer that sees the noisy image, and its name in there; None for an unknown network."""
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv2d, Widened)) and f".{name}".endswith(
            tuple(f".{each}" for each in FIRST_LAYERS)
        ):
            parent, _, child = name.rpartition(".")
            return network.get_submodule(parent), child
    return None


_WIDTHS = ("caption_channels", "joint_attention_dim", "cross_attention_dim")
"""diffusers' names for the width of a token's state; a PixArt projects it to the last one."""


def width_of_tokens(network: nn.Module) -> int | None:
    """The width of the states that the network attends to; None if it attends to none."""
    for module in network.modules():
        config = getattr(module, "config", None)
        for name in _WIDTHS:
            found = getattr(config, name, None)
            if isinstance(found, int) and module.__class__.__name__ != "ControlNetModel":
                return found
    return None


def widen(network: nn.Module, extra: int) -> None:
    """Let the first layer see `extra` more channels, in place."""
    found = first_layer(core(network))
    assert found is not None, "checked among the problems"
    holder, name = found
    setattr(holder, name, Widened(getattr(holder, name), extra))


def enter(network: nn.Module, entering: Entering) -> None:
    """Let what enters the network pass `entering`, in place."""
    inner = network.network if isinstance(network, LatentNetwork) else network
    if isinstance(inner, TextConditioned):
        inner.entering = entering
        return
    inner.add_module("entering", entering)
    inner.register_forward_pre_hook(_entered, with_kwargs=True)


def _entered(
    network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a network of labels: (x, t, inputs) becomes (x, t, label)."""
    x_BCHW, t, inputs = args
    x_BCHW, _ = network.entering(x_BCHW, None, inputs)
    return (x_BCHW, t, inputs.get(LABEL)), kwargs
