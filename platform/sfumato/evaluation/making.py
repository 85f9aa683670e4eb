"""Making the blocks that are missing: in this process, or by actors as many as the cluster holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfumato.evaluation.block_workers import RayPool, actors_for
from sfumato.evaluation.blocks import Block, BlockMaker, Task
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metrics.metric import PairMetric
from sfumato.evaluation.metrics.path_length import Ruler
from sfumato.evaluation.plan import Plan
from sfumato.evaluation.reference import Reference
from sfumato.evaluation.source import LoadSource, SampleSource

ProgressCallback = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, slots=True)
class Making:
    """What a worker needs to build its block maker; it travels to every one of them."""

    load: LoadSource
    model_folder: Path
    settings: EvaluateSettings
    extractors: Sequence[Extractor]
    pairs: Mapping[str, PairMetric]
    reference: Reference
    captions: bool = False
    ruler: Ruler | None = None

    def __call__(self) -> BlockMaker:
        """The maker, with a model of its own."""
        return self.with_source(self.load(self.model_folder, self.settings.sampling))

    def with_source(self, source: SampleSource) -> BlockMaker:
        """The maker around a model that is already here."""
        return BlockMaker(
            source,
            self.extractors,
            seed=self.settings.seed,
            pairs=self.pairs,
            reference=self.reference,
            captions=self.captions,
            ruler=self.ruler,
        )


def make_missing(
    plan: Plan,
    settings: EvaluateSettings,
    making: Making,
    source: SampleSource,
    progress: ProgressCallback | None,
) -> None:
    """Makes and stores every block of the plan that is not stored yet."""
    everything = [*plan.tasks, *plan.likelihood, *plan.paths]
    tasks = plan.store.missing(everything)
    total = plan.samples + plan.real_images + plan.pairs
    done = len(everything) - len(tasks)

    def tell() -> None:
        if progress:
            progress(min(done * plan.block, total), total)

    tell()
    for block in _blocks(tasks, settings, making, source):
        plan.store.save(block)
        done += 1
        tell()


def _blocks(
    tasks: Sequence[Task], settings: EvaluateSettings, making: Making, source: SampleSource
) -> Iterator[Block]:
    if not tasks:
        return
    if settings.actors == 0:
        yield from map(making.with_source(source).make, tasks)
        return
    at_once = -(-(settings.batch_size or 1) // source.block)
    calls = -(-len(tasks) // at_once)
    with RayPool(making, settings, actors_for(settings, calls)) as pool:
        yield from pool.run(tasks, at_once)
