"""The common part of the first stages: a phase that reconstructs, an averaged network, no prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from sfumato.core.batch import Batch, DataSpec
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import FirstStage
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.core.state import State
from sfumato.errors import CapabilityError
from sfumato.families.vae.latents import Parts
from sfumato.families.vae.sharpening import DISCRIMINATOR


class AutoencoderFamily:
    """Implements `core.family.Family` and `Reconstructs`, given the network and its loss.

    With a discriminator whose weight adapts it also implements `core.state.HasState`.
    """

    samplers: Sequence[str] = ("ema",)

    def __init__(
        self,
        parts: Parts,
        data: DataSpec,
        build: Callable[[], nn.Module],
        loss: Callable[[Nets, Batch, Progress, Rng], LossOut],
        remake: Callable[[Nets, Batch, Progress, Rng], Tensor],
    ) -> None:
        """`remake` is the reconstruction that the discriminator sees, without gradients."""
        self._remake = remake
        self.sharpening = parts.sharpening
        sharp = parts.sharpening.nets(data)
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=build, optimizer=parts.optimizer),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
            **sharp,
        }
        phases = [Phase(name="reconstruction", trains="network", loss=loss)]
        if DISCRIMINATOR in sharp:
            start = parts.sharpening.start_images
            phases.append(
                Phase(name=DISCRIMINATOR, trains=DISCRIMINATOR, loss=self._discriminate, start_images=start)
            )
        self.phases: Sequence[Phase] = phases

    def prepare(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Batch:
        """The batch unchanged."""
        return batch

    def sample(self, nets: Nets, request: SampleRequest, progress: Progress, rng: SampleRng) -> Tensor:
        """Raises CapabilityError: there is no prior over the latents."""
        raise CapabilityError(
            "an autoencoder without a prior cannot draw images: train a model on it (diffusion or "
            "autoregressive with model.first_stage.run), or use model.latent.kind=gaussian"
        )

    def reconstruct(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> Tensor:
        """The decoded mean of the latents, [B, C, H, W] in [-1, 1]; draws nothing."""
        network = nets["ema"]
        assert isinstance(network, FirstStage)
        return network.decode(network.encode(batch["image"]).mean)

    def _discriminate(self, nets: Nets, batch: Batch, progress: Progress, rng: Rng) -> LossOut:
        """The discriminator's loss."""
        with torch.no_grad():
            made_BCHW = self._remake(nets, batch, progress, rng)
        found = self.sharpening.discriminate(nets, batch["image"], made_BCHW)
        return LossOut(found.loss_B, found.metrics)


class StatePart(Protocol):
    """Some values of a family's state: where they start, and how they advance."""

    @property
    def state(self) -> State: ...
    def advance(self, state: State, sums: State) -> State:
        """The part's own values after a step with these sums, given the whole state."""
        ...


class Stateful:
    """Mixed into a family whose parts have state (`core.state.HasState`): the parts' states side by side."""

    state_parts: Sequence[StatePart]

    @property
    def state(self) -> State:
        """The initial values of all parts."""
        return {name: value for part in self.state_parts for name, value in part.state.items()}

    def advance(self, state: State, sums: State, progress: Progress) -> State:
        """All parts after a step."""
        return {name: value for part in self.state_parts for name, value in part.advance(state, sums).items()}


def distance(kind: Literal["l1", "l2"], x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Mean absolute or squared difference of each image, [B]."""
    difference = (x_BCHW - y_BCHW).flatten(1)
    return (difference.abs() if kind == "l1" else difference**2).mean(dim=1)
