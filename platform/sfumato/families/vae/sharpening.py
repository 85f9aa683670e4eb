"""What makes reconstructions sharp: a perceptual distance, and a discriminator that starts late.

Esser et al. 2021 ("Taming transformers", eq. 5 to 7) and Rombach et al. 2022 (app. G):

    loss = R + weight * lambda * A,     R = distance + perceptual,     A = -D(reconstruction)
    lambda = |dR / dW| / (|dA / dW| + 1e-4),  at most 1e4,             W: the last layer's weights

lambda is of the whole global batch, whose gradients are sums over rows; it is part of the family's state, so
that every rank uses the same, that of the step before. The gradients of R and A in the reconstruction itself
are found once, and give both dR / dW and dA / dW (the last layer is a convolution of known input) and the
loss's gradient in the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.family import Nets, NetSpec, Trainable
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.schedules import LearningRate
from sfumato.core.state import State
from sfumato.families.vae.patch_discriminator import GROUPS, PatchDiscriminator, least_side
from sfumato.families.vae.perceptual import PerceptualConfig

Distance = Callable[[Tensor, Tensor], Tensor]
"""Of images and their reconstructions, [B]."""
DISCRIMINATOR, PERCEPTUAL = "discriminator", "perceptual"
_LEAST, _MOST = 1e-4, 1e4


class AdversarialConfig(Config):
    """The patch discriminator of an autoencoder, and the weight of its loss (Esser et al. 2021)."""

    weight: float = Field(0.8, ge=0, description="Factor on the adaptive weight (latent diffusion: 0.5).")
    start_images: int = Field(
        100_000, ge=0, description="Images after which the discriminator trains and counts."
    )
    adaptive: bool = Field(
        True, description="Balance the gradients in the last layer; otherwise `weight` is the whole weight."
    )
    loss: Literal["hinge", "vanilla"] = Field("hinge", description="The discriminator's loss.")
    width: int = Field(64, ge=4, multiple_of=GROUPS, description="Channels of its first convolution.")
    layers: int = Field(3, ge=1, description="Convolutions that halve the side.")
    optimizer: OptimizerConfig = Field(
        OptimizerConfig(name="adam", lr=LearningRate(peak=4.5e-6 * 32), betas=(0.5, 0.9)),
        description="How the discriminator is trained.",
    )

    def problems(self, data: DataSpec) -> list[str]:
        """Images too small for it."""
        side, least = min(data.height, data.width), least_side(self.layers)
        if side >= least:
            return []
        fits = [layers for layers in range(1, self.layers) if least_side(layers) <= side]
        fix = f"use {fits[-1]}" if fits else "leave model.adversarial out"
        needs = f"{self.layers} need images of at least {least} pixels, got {side}"
        return [f"model.adversarial.layers: {needs}; {fix}"]


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A reconstruction, and how the last layer made it: its input, and the shape of its weights."""

    image_BCHW: Tensor
    into_last_BWHW: Tensor
    weight_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sharpened:
    """The reconstruction's loss, [B], whose gradient is right; and what goes with it."""

    loss_B: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)


def rebuilt(decoder: nn.Module, z_BChw: Tensor) -> Rebuilt:
    """The image that a decoder of diffusers makes."""
    last = decoder.conv_out
    assert isinstance(last, nn.Conv2d)
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    try:
        image: Tensor = decoder(z_BChw)
    finally:
        handle.remove()
    shape = (last.out_channels, last.in_channels, *last.kernel_size)
    return Rebuilt(image.float(), seen[0].detach(), shape)


class Sharpening:
    """The parts of a family for it, and the loss."""

    def __init__(
        self, adversarial: AdversarialConfig | None, perceptual: PerceptualConfig | None, weight: float
    ) -> None:
        """`weight` is that of the perceptual distance."""
        self._adversarial, self._perceptual, self._weight = adversarial, perceptual, weight

    def nets(self, data: DataSpec) -> Mapping[str, NetSpec]:
        """Discriminator and feature network, where there are any."""
        found: dict[str, NetSpec] = {}
        if (given := self._adversarial) is not None:
            found[DISCRIMINATOR] = Trainable(
                build=lambda: PatchDiscriminator(data.channels, given.width, given.layers),
                optimizer=given.optimizer,
            )
        if self._perceptual is not None:
            found[PERCEPTUAL] = self._perceptual.frozen()
        return found

    @property
    def state(self) -> State:
        """lambda, before there is a gradient."""
        adaptive = self._adversarial is not None and self._adversarial.adaptive
        return {"adaptive_weight": torch.zeros((), dtype=torch.float64)} if adaptive else {}

    def advance(self, state: State, sums: State) -> State:
        """lambda of the step's global batch."""
        rows = sums.get("adaptive.rows")
        if not self.state or rows is None or not rows > 0:
            return {name: state[name] for name in self.state}
        good, bad = (sums[f"adaptive.{name}"].norm() / rows for name in ("reconstruction", "adversarial"))
        return {"adaptive_weight": (good / (bad + _LEAST)).clamp(max=_MOST)}

    @property
    def start_images(self) -> int:
        """When the discriminator starts."""
        return 0 if self._adversarial is None else self._adversarial.start_images

    def starts(self, progress: Progress) -> bool:
        """Whether the discriminator counts."""
        return self._adversarial is not None and progress.images >= self._adversarial.start_images

    def loss(
        self, nets: Nets, made: Rebuilt, x_BCHW: Tensor, distance: Distance, progress: Progress
    ) -> Sharpened:
        """R + weight lambda A of a reconstruction of `x_BCHW`."""
        image, given = made.image_BCHW, self._adversarial
        if given is None or not self.starts(progress):
            return self._reconstruction(nets, x_BCHW, image, distance)
        if not given.adaptive:
            plain = self._reconstruction(nets, x_BCHW, image, distance)
            against_B = _against(nets, image)
            metrics = {**plain.metrics, "adversarial": against_B.detach()}
            return Sharpened(plain.loss_B + given.weight * against_B, metrics)
        balance = progress.state["adaptive_weight"].float()
        with torch.enable_grad():
            leaf = image.detach().requires_grad_()
            plain, against_B = self._reconstruction(nets, x_BCHW, leaf, distance), _against(nets, leaf)
            good, bad = (torch.autograd.grad(part.sum(), leaf)[0] for part in (plain.loss_B, against_B))
        metrics = {**plain.metrics, "adversarial": against_B.detach(), "adaptive_weight": balance}
        sums = {
            "adaptive.reconstruction": _in_last(made, good),
            "adaptive.adversarial": _in_last(made, bad),
            "adaptive.rows": torch.tensor(float(len(image)), dtype=torch.float64, device=image.device),
        }
        value_B = (plain.loss_B + given.weight * balance * against_B).detach()
        # Zero, with the gradient of the loss in the reconstruction, which is known already.
        slope_B = ((image - image.detach()) * (good + given.weight * balance * bad)).flatten(1).sum(dim=1)
        return Sharpened(value_B + slope_B, metrics, sums)

    def _reconstruction(self, nets: Nets, x_BCHW: Tensor, image: Tensor, distance: Distance) -> Sharpened:
        """R."""
        loss_B = distance(x_BCHW, image)
        metrics = {"distance": loss_B.detach()}
        if self._perceptual is not None:
            far_B = nets[PERCEPTUAL](x_BCHW, image)
            loss_B, metrics["perceptual"] = loss_B + self._weight * far_B, far_B.detach()
        return Sharpened(loss_B, metrics)

    def discriminate(self, nets: Nets, real_BCHW: Tensor, made_BCHW: Tensor) -> Sharpened:
        """The discriminator's loss: half that of real images and half that of reconstructions."""
        assert self._adversarial is not None
        real, made = (nets[DISCRIMINATOR](image).flatten(1) for image in (real_BCHW, made_BCHW.detach()))
        if self._adversarial.loss == "hinge":
            each = F.relu(1 - real) + F.relu(1 + made)
        else:
            each = F.softplus(-real) + F.softplus(made)
        metrics = {"real_score": real.detach().mean(dim=1), "made_score": made.detach().mean(dim=1)}
        return Sharpened(0.5 * each.mean(dim=1), metrics)


def _against(nets: Nets, image_BCHW: Tensor) -> Tensor:
    """A, [B]."""
    scores: Tensor = nets[DISCRIMINATOR](image_BCHW)
    return -scores.flatten(1).mean(dim=1)


def _in_last(made: Rebuilt, gradient_BCHW: Tensor) -> Tensor:
    """The gradient in the last layer's weights of the sum over rows, float64."""
    with torch.autocast(gradient_BCHW.device.type, enabled=False):
        gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            made.into_last_BWHW.float(), made.weight_shape, gradient_BCHW.float(), padding=1
        )
    return gradient.double()
