"""Grids of samples from fixed noise while training, made by all ranks together."""

from __future__ import annotations

import logging
import math

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.family import Family, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.parallel.strategy import Strategy
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.sampling.grid import image_grid
from sfumato.sampling.pixels import to_uint8
from sfumato.tracking.run import Tracker

log = logging.getLogger(__name__)


class Previews:
    """Draws a grid, and keeps it in the run's folder and in MLflow. Every rank calls it at the same step."""

    def __init__(
        self,
        recipe: Recipe,
        family: Family,
        strategy: Strategy,
        data: DataSpec,
        folder: RunFolder,
        tracker: Tracker | None,
    ) -> None:
        self._recipe, self._family, self._strategy, self._data = recipe, family, strategy, data
        self._folder, self._tracker = folder, tracker

    def __call__(self, progress: Progress) -> None:
        model = self._recipe.model
        if not model.samples(self._data):
            return
        num = self._recipe.train.preview_samples
        image = preview(
            self._family,
            self._strategy,
            self._data,
            model.sampling,
            progress,
            num=num,
            seed=self._recipe.seed,
        )
        if image is not None and self._tracker is not None:
            path = self._folder.path / "previews" / f"images-{progress.images:012d}.png"
            try:
                path.parent.mkdir(exist_ok=True)
                image.save(path)
            except OSError as error:  # a full disk; the picture is worth less than the training
                log.warning("the preview at %s images was not kept: %s", f"{progress.images:,}", error)
            self._tracker.image("samples", image, step=progress.images)


def preview(
    family: Family,
    strategy: Strategy,
    data: DataSpec,
    options: Config,
    progress: Progress,
    *,
    num: int,
    seed: int,
) -> Image.Image | None:
    """A grid of `num` samples on rank 0, None elsewhere. Sample i has the same noise and class every time.

    Every rank must call it: under a sharded strategy all of them put the networks together.
    """
    placement = strategy.placement
    share = math.ceil(num / placement.world_size)
    indices = [min(placement.rank * share + i, num - 1) for i in range(share)]
    labels = [i % data.num_classes for i in indices] if data.num_classes else None
    request = SampleRequest(
        num=share,
        labels_N=None if labels is None else torch.tensor(labels, device=placement.device),
        options=options,
    )
    with torch.no_grad(), strategy.whole(family.samplers) as nets:
        images = family.sample(nets, request, progress, SampleRng(seed, indices, placement.device))
    mine = torch.from_numpy(to_uint8(images)).to(placement.device)
    parts = _gather(mine, placement.world_size)
    if placement.rank != 0:
        return None
    return image_grid(torch.cat(parts)[:num].cpu().numpy(), columns=data.num_classes or None)


def _gather(tensor: Tensor, world_size: int) -> list[Tensor]:
    if world_size == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(parts, tensor)
    return parts
