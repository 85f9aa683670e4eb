"""Makes an evaluation's missing blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from sfumato.evaluation.blocks.block import BlockMaker, Task
from sfumato.evaluation.blocks.plan import BlockPlan
from sfumato.evaluation.blocks.store import FeatureBlock
from sfumato.evaluation.blocks.workers import Workers
from sfumato.evaluation.evaluation import Evaluation, Opened
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_inputs import Prepared
from sfumato.evaluation.metrics.metric import PairMetric
from sfumato.evaluation.progress import SAMPLES
from sfumato.evaluation.subjects.source import SampleSource


@dataclass(frozen=True, slots=True)
class Making:
    """What a worker needs to build its block maker; every worker receives a copy."""

    evaluation: Evaluation
    extractors: Sequence[Extractor]
    pairs: Mapping[str, PairMetric]
    inputs: Mapping[str, Prepared]

    @classmethod
    def of(cls, opened: Opened) -> Self:
        """Without the source, since every worker has its own, and without the reference's features."""
        evaluation = opened.evaluation.for_workers()
        return cls(evaluation, opened.extractors, opened.selection.pairs, opened.inputs)

    def __call__(self) -> Callable[[Task], FeatureBlock]:
        """Makes blocks with a model of its own."""
        return self.with_source(self.evaluation.source())

    def with_source(self, source: SampleSource) -> Callable[[Task], FeatureBlock]:
        """Makes blocks with an existing model."""
        seed = self.evaluation.settings.seed
        return BlockMaker(source, self.extractors, seed=seed, pairs=self.pairs, inputs=self.inputs).make


def make_missing(opened: Opened, plan: BlockPlan, workers: Workers) -> None:
    """Makes and stores every block of the plan that is not stored yet."""
    settings, making, source = opened.evaluation.settings, Making.of(opened), opened.source
    everything = [*plan.tasks, *(task for tasks in plan.further.values() for task in tasks)]
    tasks = plan.store.missing(everything)
    total = plan.samples + sum(plan.rows.values())
    progress, done = opened.evaluation.begin(SAMPLES), len(everything) - len(tasks)
    progress(min(done * plan.block, total), total)
    build = partial(making.with_source, source) if workers.here else making
    for block in workers.run(build, tasks, at_once=-(-(settings.batch_size or 1) // source.block)):
        plan.store.save(block)
        done += 1
        progress(min(done * plan.block, total), total)
