"""Runs that are trained in a bare loop in this process, for benchmarks that need several trained models.

Families, networks, losses and averages are the product's; Ray, checkpoints and tracking are left out, whose
starts would take longer than such short trainings.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfumato import recipe as recipes
from sfumato.core.family import EmaOf, Frozen, InitialisesFromData, Trainable
from sfumato.core.progress import Progress
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.runtime.runs.pretrained import resolved_model
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.pretrained_files import load_stored

PIPELINES = Path(__file__).parents[3] / "pipelines"


class Noise:
    """What a loss draws from, by torch's global generator."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def normal(self, *tail: int) -> Tensor:
        return torch.randn(self._rows, *tail)

    def uniform(self, *tail: int) -> Tensor:
        return torch.rand(self._rows, *tail)

    def stratified(self) -> Tensor:
        return self.uniform()

    def integers(self, high: int, *tail: int) -> Tensor:
        return torch.randint(high, (self._rows, *tail))


class Loop:
    """A family's phases over images in memory, which are drawn with replacement."""

    def __init__(self, recipe: Any, model: Any, data: Path, seed: int) -> None:
        columns = list(local_reader.read_all(data))
        pixels = np.concatenate([part["image"] for part in columns])
        self._columns = {"image": torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1}
        if "label" in columns[0]:
            self._columns["label"] = torch.from_numpy(np.concatenate([part["label"] for part in columns]))
        self._settings, self.family = recipe.train, model.build(Manifest.load(data).spec)
        torch.manual_seed(seed)
        self.nets: dict[str, nn.Module] = {}
        for name, spec in self.family.nets.items():
            if not isinstance(spec, EmaOf):
                self.nets[name] = spec.build()
                if spec.weights is not None:
                    load_stored(self.nets[name], spec.weights)
                if isinstance(spec, Frozen):
                    self.nets[name].eval().requires_grad_(False)
        if isinstance(self.family, InitialisesFromData):
            self.family.initialise(self.nets, self._batch(), Noise(self._settings.batch))
        self._trained = {n: net for n, net in self.family.nets.items() if isinstance(net, Trainable)}
        self._averages = {n: net for n, net in self.family.nets.items() if isinstance(net, EmaOf)}
        for name, average in self._averages.items():
            self.nets[name] = copy.deepcopy(self.nets[average.source]).requires_grad_(False)
        self._optimizers = {
            n: net.optimizer.build(dict(self.nets[n].named_parameters())) for n, net in self._trained.items()
        }
        self.progress = Progress(0, 0, recipe.train.images, recipe.train.batch)

    def run(self) -> None:
        """Until the recipe's images have been seen; prints the loss's metrics from time to time."""
        batch, told = self._settings.batch, max(self._settings.images // 8, 1)
        while self.progress.images < self._settings.images:
            for phase in self.family.phases:
                if self.progress.step % phase.every == 0:
                    for _ in range(phase.repeats):
                        metrics = self._update(phase)
            images = self.progress.images + batch
            if images // told > self.progress.images // told:
                said = " ".join(f"{name} {float(value.mean()):.4f}" for name, value in metrics.items())
                print(f"  {images:,} images: {said}", flush=True)
            self.progress = Progress(self.progress.step + 1, images, self._settings.images, batch)
            with torch.no_grad():
                for name, average in self._averages.items():
                    pair = (self.nets[name].parameters(), self.nets[average.source].parameters())
                    torch._foreach_lerp_(*map(list, pair), 1 - average.decay(self.progress))
        for name, average in self._averages.items():  # buffers, such as codebooks and running means
            for one, two in zip(self.nets[name].buffers(), self.nets[average.source].buffers(), strict=True):
                one.copy_(two)

    def _batch(self) -> dict[str, Tensor]:
        row = torch.randint(len(self._columns["image"]), (self._settings.batch,))
        return {name: values[row] for name, values in self._columns.items()}

    def _update(self, phase: Any) -> dict[str, Tensor]:
        name, noise = phase.trains, Noise(self._settings.batch)
        for each in self._trained:
            self.nets[each].requires_grad_(each == name)
        with torch.autocast("cpu", torch.bfloat16, enabled=self._settings.precision == "bf16"):
            batch = self.family.prepare(self.nets, self._batch(), self.progress, noise)
            out = phase.loss(self.nets, batch, self.progress, noise)
        loss = out.loss_B.mean()
        loss.backward()
        clip = self._settings.clip_grad_norm
        if (limit := phase.clip_grad_norm if clip == "auto" else clip) is not None:
            nn.utils.clip_grad_norm_(self.nets[name].parameters(), limit)
        for group in self._optimizers[name].param_groups:
            group["lr"] = self._trained[name].optimizer.lr.at(self.progress)
        self._optimizers[name].step()
        self._optimizers[name].zero_grad()
        return {"loss": loss.detach(), **out.metrics}


def trained(place: Path, recipe_file: str, changes: Sequence[str], data: Path, seed: int = 0) -> float:
    """Train a recipe of `pipelines/` on packed images; writes run folder and model, returns CPU seconds.

    Runs that the recipe names are folders beside `place`'s parent, as for a command that is called there.
    """
    changes = [*changes, f"data.path={data}", "data.source=null", f"name={place.name}"]
    recipe = recipes.load(PIPELINES / recipe_file, changes)
    manifest = Manifest.load(data)
    run = RunFolder(place)
    run.create(recipe, manifest.digest)
    start = time.process_time()
    model = resolved_model(recipe.model, place.parent.parent)
    loop = Loop(recipe, model, data, seed)
    loop.run()
    seconds = time.process_time() - start
    save_model_folder(
        run.model,
        model,
        manifest.spec,
        {name: loop.nets[name].state_dict() for name in loop.family.samplers},
        name=place.name,
        progress=loop.progress,
        trained_on=manifest.digest,
    )
    return seconds
