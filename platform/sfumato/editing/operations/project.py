"""Inversion by optimisation: the vector from which a GAN, a VAE or a flow makes an image nearest to a given
one (Zhu et al. 2016, sec. 4.1; Abdal et al. 2019), found by Adam from several starts.

    minimise mean (G(z) - x)^2 + prior |z|^2 / D
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.core.config import Config
from sfumato.core.family import HasLatent, SampleRequest
from sfumato.editing.operations import Block, Operation
from sfumato.sampling.generator import Generator


class Project(Operation):
    """The nearest image that the model can make."""

    kind: Literal["project"] = Field("project", description="Selects inversion by optimisation.")
    steps: int = Field(300, ge=1, description="Steps of Adam.")
    rate: float = Field(0.05, gt=0, description="Its learning rate; it falls to zero along a cosine.")
    starts: int = Field(
        4, ge=1, description="Vectors to start from; the one whose image ends nearest counts."
    )
    prior: float = Field(0.001, ge=0, description="Weight of the vector's own length.")

    def problems(self, model: Generator, options: Config) -> list[str]:
        """A model whose images are no smooth function of one normal vector."""
        if isinstance(model.family, HasLatent):
            return []
        return [f"--by project: a {model.config.family} model has no latent vector; use vae, flow or gan"]

    def edited(self, model: Generator, block: Block) -> Tensor:
        """What the vectors found decode to."""
        return decoded(model, block.request, self.found(model, block))

    def found(self, model: Generator, block: Block) -> Tensor:
        """The vectors [N, D]."""
        best_ND, least_N = None, None
        for _ in range(self.starts):
            z_ND, error_N = self._from_one(model, block)
            if best_ND is None or least_N is None:
                best_ND, least_N = z_ND, error_N
                continue
            nearer_N = error_N < least_N
            best_ND = torch.where(nearer_N.unsqueeze(1), z_ND, best_ND)
            least_N = torch.where(nearer_N, error_N, least_N)
        assert best_ND is not None, "there is at least one start"
        return best_ND

    def _from_one(self, model: Generator, block: Block) -> tuple[Tensor, Tensor]:
        family = model.family
        assert isinstance(family, HasLatent), "checked among the problems"
        z_ND = family.latents(model.nets, block.request.options, model.progress, block.rng)
        z_ND = z_ND.to(block.images.device).detach().clone().requires_grad_()
        adam = torch.optim.Adam([z_ND], lr=self.rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.steps)
        with torch.enable_grad():
            for _ in range(self.steps):
                error_N = self._error(model, block, z_ND)
                loss_N = error_N + self.prior * z_ND.square().mean(dim=1)
                (z_ND.grad,) = torch.autograd.grad(loss_N.sum(), [z_ND])
                adam.step()
                falling.step()
        z_ND = z_ND.detach()
        return z_ND, self._error(model, block, z_ND)

    def _error(self, model: Generator, block: Block, z_ND: Tensor) -> Tensor:
        images = decoded(model, block.request, z_ND)
        return (images - block.images).square().mean(dim=(1, 2, 3))


def decoded(model: Generator, request: SampleRequest, z_ND: Tensor) -> Tensor:
    """The images of vectors, [N, C, H, W]."""
    family = model.family
    assert isinstance(family, HasLatent), "checked among the problems"
    return family.decode_latents(model.nets, z_ND, request, model.progress)


COMPONENT = Project
