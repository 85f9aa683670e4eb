"""The common part of the two first stages: a phase that reconstructs, an averaged network, no prior."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from sfumato.core.batch import Batch
from sfumato.core.family import EmaOf, LossOut, Nets, NetSpec, Phase, SampleRequest, Trainable
from sfumato.core.first_stage import FirstStage
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng, SampleRng
from sfumato.errors import CapabilityError
from sfumato.families.vae.latents import Parts


class AutoencoderFamily:
    """Implements `core.family.Family` and `Reconstructs`, given the network and its loss."""

    samplers: Sequence[str] = ("ema",)

    def __init__(
        self,
        parts: Parts,
        build: Callable[[], nn.Module],
        loss: Callable[[Nets, Batch, Progress, Rng], LossOut],
    ) -> None:
        self.nets: Mapping[str, NetSpec] = {
            "network": Trainable(build=build, optimizer=parts.optimizer),
            "ema": EmaOf(source="network", decay=parts.ema.decay),
        }
        self.phases: Sequence[Phase] = (Phase(name="reconstruction", trains="network", loss=loss),)

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


def distance(kind: Literal["l1", "l2"], x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """Mean absolute or squared difference of each image, [B]."""
    difference = (x_BCHW - y_BCHW).flatten(1)
    return (difference.abs() if kind == "l1" else difference**2).mean(dim=1)
