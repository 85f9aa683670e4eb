"""Draws grids of samples from fixed noise during training, by all ranks together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import LABEL, Conditions, Source, complete, conditions_of
from sfumato.core.config import Config
from sfumato.core.family import Family, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.parallel.strategy import Strategy
from sfumato.provenance.door import Door
from sfumato.recipe import Recipe
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.sampling.conditions import Asked, Takes
from sfumato.sampling.grid import image_grid, prompt_grid
from sfumato.sampling.marked_noise import shape_of
from sfumato.sampling.pixels import to_uint8
from sfumato.tracking.run import Tracker

log = logging.getLogger(__name__)


class Previews:
    """Draws a grid and stores it in the run's folder and in MLflow. Every rank calls it at the same step."""

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
        self._source: Source | None = None
        self._door = Door.of(recipe.marking(), recipe.name)

    def __call__(self, progress: Progress) -> None:
        model = self._recipe.model
        if not model.samples(self._data):
            return
        num = self._recipe.train.preview_samples
        if num and self._source is None:
            self._source = preview_source(self._recipe, self._data)
        image = preview(
            self._family,
            self._strategy,
            self._conditions,
            model.sampling,
            progress,
            num=num,
            seed=self._recipe.seed,
            columns=self._columns,
            door=self._door,
            prompts=self._recipe.train.preview_conditions.prompts,
        )
        if image is not None and self._tracker is not None:
            path = self._folder.path / "previews" / f"images-{progress.images:012d}.png"
            try:
                path.parent.mkdir(exist_ok=True)
                self._door.write(path, self._door.sheet(image))
            except OSError as error:  # a full disk; the picture is worth less than the training
                log.warning("the preview at %s images was not kept: %s", f"{progress.images:,}", error)
            self._tracker.image("samples", self._door.file(self._door.sheet(image)), step=progress.images)
            counts = {f"filter/previews/{name}": count for name, count in self._door.counts.items()}
            self._tracker.metrics(counts, step=progress.images)

    def _conditions(self, rows: Sequence[int]) -> Conditions:
        assert self._source is not None, "found before the first grid is drawn"
        return conditions_of(self._source, rows, self._recipe.model.conditions(self._data), self._data)

    @property
    def _columns(self) -> int | None:
        """One column per class, if classes take turns."""
        chosen = self._recipe.train.preview_conditions.labels
        classes = LABEL in self._recipe.model.conditions(self._data) and not chosen
        return self._data.num_classes if classes else None


def preview_source(recipe: Recipe, data: DataSpec) -> Source:
    """The conditions of previews: those in the recipe; for others that the model requires, the first rows of
    the data; for classes, all in turn.

    Raises ConfigError for a condition that the model does not take, DataError if the data lacks its column.
    """
    taken = recipe.model.conditions(data)
    found = dict(Asked.of(recipe.train.preview_conditions).source(Takes(taken, data, recipe.model.family)))
    needed = [condition for condition in taken if condition.required and condition.name not in found]
    needed = [condition for condition in needed if condition != LABEL]
    if needed:
        found |= rows_of_data(recipe.data.path, needed, recipe.data.on_error)
    return complete(found, taken, data)


def preview(
    family: Family,
    strategy: Strategy,
    conditions: Callable[[Sequence[int]], Conditions],
    options: Config,
    progress: Progress,
    *,
    num: int,
    seed: int,
    columns: int | None = None,
    door: Door | None = None,
    prompts: Sequence[str] = (),
) -> Image.Image | None:
    """A grid of `num` samples on rank 0, None elsewhere. Sample i has the same noise and conditions every
    time: `conditions` returns those of any rows. `door` marks the samples; `prompts`, of which sample i has
    the one at i mod P, stand beside the rows of their samples.

    Every rank must call it: under a sharded strategy, they gather the networks together.
    """
    placement = strategy.placement
    share = math.ceil(num / placement.world_size)
    indices = [min(placement.rank * share + i, num - 1) for i in range(share)]
    given = {name: value.to(placement.device) for name, value in conditions(indices).items()}
    request = SampleRequest(num=share, conditions=given, options=options)
    door = door or Door()
    shape = shape_of(door.settings, family, options)
    rng = SampleRng(seed, indices, placement.device, shape=shape)
    with torch.no_grad(), strategy.gathered(family.samplers) as nets:
        images = family.sample(nets, request, progress, rng)
    mine = torch.from_numpy(to_uint8(images)).to(placement.device)
    parts = _gather(mine, placement.world_size)
    if placement.rank != 0:
        return None
    shown, _ = door.pixels(torch.cat(parts)[:num].cpu().numpy())
    return prompt_grid(shown, prompts) if prompts else image_grid(shown, columns=columns)


def _gather(tensor: Tensor, world_size: int) -> list[Tensor]:
    if world_size == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size)]
    dist.all_gather(parts, tensor)
    return parts
