"""Training loops as one writes them by hand, and ours, for the same recipe: images a second of each.

By hand: the images lie in memory, there is nothing but the phases' losses, their optimizers and the averages.
`Plain` runs any family's objective that way, alone or under DDP; `written_out` has DDPM's objective by hand
too, with diffusers' scheduler, so that what a family's code costs is seen as well. Ours is all of
`sfumato train`: Ray Train, Ray Data, streams of noise, meters, curves sent to MLflow, checkpoints.

As a script it is one rank of `Plain` under torchrun, whose last line is its speed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

PIPELINES = Path(__file__).parents[3] / "pipelines" / "digits"
FAMILIES = {"diffusion": "ddpm", "gan": "dcgan", "vae": "vae", "flow": "glow", "autoregressive": "pixelcnn"}
"""One recipe of each family."""


class Noise:
    """What a loss draws from, by torch's global generator."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def normal(self, *tail: int) -> Tensor:
        return torch.randn(self.rows, *tail)

    def uniform(self, *tail: int) -> Tensor:
        return torch.rand(self.rows, *tail)

    def stratified(self) -> Tensor:
        return self.uniform()

    def integers(self, high: int, *tail: int) -> Tensor:
        return torch.randint(high, (self.rows, *tail))


class Speed:
    """Images a second since the first `skip` of them."""

    def __init__(self, skip: int, seconds: float) -> None:
        self._skip, self._seconds = skip, seconds
        self._seen = self._from = 0
        self._start: float | None = None

    def more(self, images: int) -> bool:
        """Count a step's images; whether the time is not over yet."""
        self._seen += images
        if self._start is None and self._seen >= self._skip:
            self._start, self._from = time.perf_counter(), self._seen
        return self._start is None or time.perf_counter() - self._start < self._seconds

    @property
    def rate(self) -> float:
        assert self._start is not None
        return (self._seen - self._from) / (time.perf_counter() - self._start)


def in_memory(data: Path) -> tuple[Any, Tensor, Tensor]:
    """The data's spec, its images in [-1, 1] and its labels."""
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.reading import local_reader

    columns = list(local_reader.read_all(data))
    pixels = torch.from_numpy(np.concatenate([part["image"] for part in columns]))
    label = torch.from_numpy(np.concatenate([part["label"] for part in columns]))
    return Manifest.load(data).spec, pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, label


class Plain:
    """A family's phases in a bare loop; one rank's part of it where torch.distributed is up."""

    noise: type[Noise] = Noise

    def __init__(self, recipe: Any, data: Path, seed: int = 0) -> None:
        from sfumato.core.family import EmaOf, InitialisesFromData, Trainable
        from sfumato.core.progress import Progress

        self.settings = recipe.train
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.batch = recipe.train.batch // self.world
        spec, self.image, self.label = in_memory(data)
        self.family = recipe.model.build(spec)
        torch.manual_seed(seed)
        self.trained = {n: net for n, net in self.family.nets.items() if isinstance(net, Trainable)}
        self.nets = {name: net.build() for name, net in self.trained.items()}
        if isinstance(self.family, InitialisesFromData):
            first = {"image": self.image[: self.batch], "label": self.label[: self.batch]}
            self.family.initialise(self.nets, first, self.noise(self.batch))
        self.averages = {n: net for n, net in self.family.nets.items() if isinstance(net, EmaOf)}
        self.followed = {}
        for name, average in self.averages.items():
            self.nets[name] = copy.deepcopy(self.nets[average.source]).requires_grad_(False)
            pair = (self.nets[name].parameters(), self.nets[average.source].parameters())
            self.followed[name] = tuple(map(list, pair))
        self.optimizers = {
            n: net.optimizer.build(dict(self.nets[n].named_parameters())) for n, net in self.trained.items()
        }
        ranks = self.world > 1
        self.called = {
            n: DistributedDataParallel(self.nets[n]) if ranks else self.nets[n] for n in self.trained
        }
        if self.world > 1:
            torch.manual_seed(dist.get_rank())
        self.progress = Progress(0, 0, recipe.train.images, recipe.train.batch)
        self.active: str | None = None

    def run(self, skip: int, seconds: float) -> float:
        """Images a second of all ranks together."""
        speed = Speed(skip, seconds)
        while True:
            self._step()
            on = torch.tensor(speed.more(self.settings.batch))
            if self.world > 1:
                dist.broadcast(on, 0)  # all ranks end at the same step
            if not on:
                return speed.rate

    def _step(self) -> None:
        for phase in self.family.phases:
            if self.progress.step % phase.every == 0:
                for _ in range(phase.repeats):
                    self._update(phase)
        self.progress = type(self.progress)(
            self.progress.step + 1,
            self.progress.images + self.settings.batch,
            self.settings.images,
            self.settings.batch,
        )
        with torch.no_grad():
            for name, pair in self.followed.items():
                torch._foreach_lerp_(*pair, 1 - self.averages[name].decay(self.progress))

    def _update(self, phase: Any) -> None:
        name = phase.trains
        if self.active != name:
            self.active = name
            for each in self.trained:
                self.nets[each].requires_grad_(each == name)
        row, noise = torch.randint(len(self.image), (self.batch,)), self.noise(self.batch)
        batch = self.family.prepare(
            self.nets, {"image": self.image[row], "label": self.label[row]}, self.progress, noise
        )
        out = phase.loss({**self.nets, name: self.called[name]}, batch, self.progress, noise)
        out.loss_B.mean().backward()
        clip = self.settings.clip_grad_norm
        if (limit := phase.clip_grad_norm if clip == "auto" else clip) is not None:
            nn.utils.clip_grad_norm_(self.nets[name].parameters(), limit)
        for group in self.optimizers[name].param_groups:
            group["lr"] = self.trained[name].optimizer.lr.at(self.progress)
        self.optimizers[name].step()
        self.optimizers[name].zero_grad()


def written_out(recipe: Any, data: Path, skip: int, seconds: float) -> float:
    """DDPM on the recipe's network: AdamW, clipping, EMA, label dropout."""
    from diffusers import DDPMScheduler

    from sfumato.families.diffusion.networks.unet import build_unet

    spec, image, label = in_memory(data)
    network = build_unet(recipe.model.network, spec, conditional=True)
    average = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0, fused=True
    )
    noise = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    batch, speed = recipe.train.batch, Speed(skip, seconds)
    parameters, followers = list(network.parameters()), list(average.parameters())
    while speed.more(batch):
        row = torch.randint(len(image), (batch,))
        x, y = image[row], label[row]
        y = torch.where(torch.rand(batch) < 0.1, spec.num_classes, y)
        t, eps = torch.randint(1000, (batch,)), torch.randn_like(x)
        prediction = network(noise.add_noise(x, eps, t), t, class_labels=y).sample
        loss = functional.mse_loss(prediction, noise.get_velocity(x, eps, t))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(followers, parameters, 0.01)
    return speed.rate


def under_torchrun(recipe: Path, data: Path, skip: int, seconds: float, ranks: int) -> float:
    """`Plain` on several ranks of one machine, each on one thread."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *(__file__, str(recipe), str(data), f"--skip={skip}", f"--seconds={seconds}"),
    ]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return float(json.loads(lines[-1])["images_per_second"])


SETTLE_S = 5.0
"""With its first figures a worker imports MLflow's client, once and for about two seconds."""


def ours(recipe: Any, root: Path, skip: int) -> float:
    """Images a second of `sfumato train` by the clock, from the curve that it logged, pauses included."""
    from sfumato.runtime.commands import stages
    from sfumato.runtime.runs.display import Display
    from sfumato.runtime.runs.session import open_session
    from sfumato.tracking.store import TrackingStore

    with Display() as display, open_session(recipe, display, root=root, fresh=True) as session:
        with stages.cluster_to_train(session):
            stages.train(session)
        client = TrackingStore.of(recipe.tracking, root).client()
        points = client.get_metric_history(session.tracker.run_id, "train/images_per_second")
    points = sorted(points, key=lambda point: point.step)
    settled = points[0].timestamp + SETTLE_S * 1000
    first = next(point for point in points if point.step >= skip and point.timestamp >= settled)
    last = points[-1]
    return (last.step - first.step) / (last.timestamp - first.timestamp) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10)
    options = parser.parse_args()
    from sfumato import recipe as recipes

    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    loop = Plain(recipes.load(options.recipe, []), options.data)
    rate = loop.run(options.skip, options.seconds)
    if dist.get_rank() == 0:
        print(json.dumps({"images_per_second": rate}), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # now and then a thread of gloo's aborts the process while the interpreter ends


if __name__ == "__main__":
    main()
