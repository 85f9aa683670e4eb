"""The training loop: phases x repeats x micro-batches, for any family under any strategy.

One step reads as many global batches as the most repeated phase needs, runs every phase whose turn it
is, and moves the averages. The loop knows no family, no file and no cluster; between steps, hooks that
fire every so many images do the rest (logs, checkpoints, previews).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sfumato.core.batch import MicroBatch, to_device
from sfumato.core.family import EmaOf, Family, Frozen, InitialisesFromData, Nets, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.errors import ConfigError, TrainingError
from sfumato.parallel.adapters import Base
from sfumato.parallel.strategy import Strategy
from sfumato.sampling.pretrained_files import cast_parameters, load_stored
from sfumato.training import phases
from sfumato.training.config import TrainSettings
from sfumato.training.family_state import FamilyState
from sfumato.training.meters import Clock, Means
from sfumato.training.phases import Prepared
from sfumato.training.skips import Bad, NotFinite, Skips
from sfumato.training.updates import Updates

log = logging.getLogger(__name__)

Shares = Iterator[list[MicroBatch]]
"""One item per global batch: the micro-batches of it that this rank works on."""


@dataclass(frozen=True, slots=True)
class Hook:
    """An action every `every` images, at the first step boundary at or after each multiple, and at the end.

    All ranks run it at the same step.
    """

    every: int
    action: Callable[[Progress], None]


def install(
    family: Family,
    strategy: Strategy,
    seed: int,
    *,
    first: Callable[[], MicroBatch] | None = None,
    averages: Mapping[str, EmaOf] | None = None,
    initial: bool = True,
    bases: bool = True,
) -> None:
    """Build the family's networks, the same on every rank, and add them to the strategy.

    `first` reads the rows for data-dependent initialisation: the same on every rank, for any number of ranks.
    Without it such a family keeps its built weights, which is right if a checkpoint replaces them.
    `averages` are kept in addition to those of the family. `initial` decides whether stored weights are
    loaded into networks that train as a whole, which is unnecessary if a checkpoint follows. No checkpoint
    holds frozen networks, which always get theirs, and the bases of adapters, which are unnecessary
    (`bases`) only if nothing but the adapter is taken from the strategy.

    Raises CheckpointError if stored weights are missing or differ from those that the recipe recorded.
    """
    built = _build(family, seed, initial=initial, bases=bases)
    if first is not None and isinstance(family, InitialisesFromData):
        _initialise(family, built, first(), seed, strategy.placement.device)
    for name, module in built.items():
        spec = family.nets[name]
        if isinstance(spec, Trainable):
            base = Base(spec.adapter, stored=spec.weights is not None) if spec.adapter else None
            strategy.add_trainable(name, module, spec.optimizer, spec.blocks, base)
        elif isinstance(spec, Frozen):
            strategy.add_frozen(name, module, shard=spec.shard)
    for name, spec in {**family.nets, **(averages or {})}.items():
        if isinstance(spec, EmaOf):
            strategy.add_ema(name, spec.source, train_mode=spec.train_mode)
    strategy.ready()


def _build(family: Family, seed: int, *, initial: bool, bases: bool) -> dict[str, nn.Module]:
    """All networks except the averages, with their stored weights."""
    built: dict[str, nn.Module] = {}
    for name, spec in family.nets.items():
        if isinstance(spec, EmaOf):
            continue
        with seeded(seed, "init", name):
            built[name] = spec.build()
        if isinstance(spec, Frozen):
            built[name].eval()
            if spec.weights is not None:
                load_stored(built[name], spec.weights)
            cast_parameters(built[name], spec.dtype)
        elif spec.weights is not None and (bases if spec.adapter else initial):
            load_stored(built[name], spec.weights, spec.adapter)
    return built


@torch.no_grad()
def _initialise(
    family: InitialisesFromData, nets: Nets, micro: MicroBatch, seed: int, device: torch.device
) -> None:
    rows = max(piece.first + piece.rows for piece in micro.pieces)
    rng = StreamRng(
        micro.pieces, rows_per_stream=rows, seed=seed, images=0, phase="initialise", device=device
    )
    batch = to_device(micro.batch, device)
    family.initialise({name: module.to(device) for name, module in nets.items()}, batch, rng)


def progress_at(family: Family, settings: TrainSettings, images: int = 0) -> Progress:
    """The progress of training with these settings after so many images."""
    batch = settings.batch * max(phase.repeats for phase in family.phases)
    return Progress(images // batch, images, settings.images, batch)


class Trainer:
    """Runs a family's phases and keeps count.

    `streams` is the number P of streams that every global batch draws from; together with `settings.batch`
    it fixes how many rows of noise a stream has.
    """

    def __init__(
        self,
        family: Family,
        strategy: Strategy,
        settings: TrainSettings,
        *,
        seed: int,
        streams: int,
        hooks: Sequence[Hook] = (),
        report: Callable[[Progress, dict[str, float]], None] = lambda progress, metrics: None,
        averages: Mapping[str, EmaOf] | None = None,
    ) -> None:
        self._family = family
        self._strategy = strategy
        self._settings = settings
        self._hooks = list(hooks)
        self._report = report
        self._means = Means()
        self._skips = Skips()
        self._endured: dict[str, int] = {}
        self._clock = Clock()
        self._nets = {**family.nets, **(averages or {})}
        self._phases = tuple(family.phases)
        if found := phases.problems(self._phases, settings.images):
            raise ConfigError(*found)
        self._draws = max(phase.repeats for phase in self._phases)
        self._logged_images = 0
        self._state = FamilyState(family, strategy.placement.device, strategy.sum_in_order)
        self._updates = Updates(
            family,
            strategy,
            settings,
            seed=seed,
            streams=streams,
            means=self._means,
            skips=self._skips,
            state=self._state,
        )
        self.progress = replace(progress_at(family, settings), state=self._state.values)

    def add_hooks(self, hooks: Sequence[Hook]) -> None:
        """Append hooks, such as those that need the trainer itself."""
        self._hooks += hooks

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the strategy's state: the family's, the same on every rank."""
        return self._state.stored()

    def resume(self, images: int, step: int, checkpoint: Mapping[str, Tensor]) -> None:
        """Resume from a checkpoint whose weights and moments the strategy has already loaded.

        Raises CheckpointError if the family's state does not fit.
        """
        self._state.load(checkpoint)
        total = self._settings.images
        self.progress = Progress(step, images, total, self.progress.batch, self._state.values)
        self._logged_images = images
        self._means.clear()
        self._skips.clear()
        self._endured = {}

    def run(self, shares: Shares) -> Progress:
        """Train to the end. `shares` starts at the global batch of the current `progress`.

        Raises NotFinite when more updates than `train.max_skipped_steps` in a log interval had a gradient
        that is not finite, and TrainingError when a metric is not finite.
        """
        self._clock.restart()
        while self.progress.images < self.progress.total_images:
            before = self.progress.images
            self._step([self._next(shares) for _ in range(self._draws)])
            done = self.progress.images >= self.progress.total_images
            if done or self.progress.images // self._settings.log_every > before // self._settings.log_every:
                self.log()
            for hook in self._hooks:
                if done or self.progress.images // hook.every > before // hook.every:
                    with self._clock.paused():
                        hook.action(self.progress)
        return self.progress

    def log(self) -> None:
        """Report the means since the last call. Raises NotFinite and TrainingError as `run` does.

        An update whose gradient is not finite changes nothing and is in no mean. A checkpoint calls this
        first, so that weights that led to too many such updates are never kept.
        """
        metrics = {f"train/{name}": value for name, value in self._means.read(self._strategy.sum).items()}
        if not metrics:
            return
        self._endure(self._skips.read(), metrics)
        seen = self.progress.images - self._logged_images
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"{bad[0]} is not finite between images {self._logged_images:,} and "
                f"{self.progress.images:,}, although its gradient is: the last checkpoint is from before"
            )
        self._state.check()
        metrics["train/images_per_second"] = seen / self._clock.seconds
        metrics["train/data_wait_fraction"] = self._clock.wait_fraction
        for name, spec in self._nets.items():
            if isinstance(spec, Trainable):
                metrics[f"train/{name}/lr"] = spec.optimizer.lr.at(self.progress)
        self._report(self.progress, metrics)
        self._logged_images = self.progress.images
        self._clock.restart()

    def _endure(self, found: Sequence[Bad], metrics: dict[str, float]) -> None:
        """Warn of skipped updates; raise NotFinite if there are too many.

        The count continues until an interval has none.
        """
        self._endured = {bad.phase: self._endured.get(bad.phase, 0) + bad.updates for bad in found}
        for bad in found:
            text = (
                f"{bad.updates} update(s) of phase {bad.phase!r} had a gradient that is not finite between "
                f"images {self._logged_images:,} and {self.progress.images:,}, the first on the batch at "
                f"{bad.images:,} images"
            )
            if self._endured[bad.phase] > self._settings.max_skipped_steps:
                raise NotFinite(bad, f"{text}; train.max_skipped_steps={self._settings.max_skipped_steps}")
            log.warning("%s; they were skipped", text)
            metrics[f"train/{bad.phase}/skipped"] = bad.updates
            for name in [n for n, v in metrics.items() if n.startswith(f"train/{bad.phase}/")]:
                if math.isnan(metrics[name]):  # every update of the interval was skipped
                    del metrics[name]

    def _next(self, shares: Shares) -> list[MicroBatch]:
        with self._clock.waiting():
            return next(shares)

    def _step(self, draws: Sequence[list[MicroBatch]]) -> None:
        progress = self.progress
        planned = phases.updates(self._phases, progress)
        prepared = Prepared(planned)
        for update in planned:
            self._updates.run(update, draws[update.repeat], progress, prepared)
        ended = replace(progress, step=progress.step + 1, images=progress.images + progress.batch)
        self.progress = replace(ended, state=self._state.advance(ended))
        for name, spec in self._nets.items():
            if isinstance(spec, EmaOf):
                self._strategy.follow(name, 1.0 - spec.decay(self.progress))
