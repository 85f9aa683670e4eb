"""The evaluation stage: draw, extract features in parallel, then compute metrics from the features.

Blocks of images, real and generated, are read or drawn by Ray actors (or in this process), their features
written to the evaluation's folder as they come, and read back in the order of their index. The numbers are
therefore the same for any number of actors, and a killed evaluation resumes where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

from sfumato.core.allocator import keep_freed_memory
from sfumato.evaluation.blocks.making import make_missing
from sfumato.evaluation.blocks.placement import actors_for
from sfumato.evaluation.blocks.plan import BlockPlan, plan_blocks
from sfumato.evaluation.blocks.ray_pool import workers_for
from sfumato.evaluation.blocks.workers import Workers
from sfumato.evaluation.compute import measure
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.decisions.checks import check_comparable, check_enough, narrowed, selected
from sfumato.evaluation.decisions.weakness import of_features
from sfumato.evaluation.evaluation import Evaluation, Opened
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.features.extractor import Extractor, built
from sfumato.evaluation.metric_inputs import Setting
from sfumato.evaluation.noise import noise_on
from sfumato.evaluation.parallel_map import OnRay, Spread, in_process
from sfumato.evaluation.pictures import write_neighbours, write_preview
from sfumato.evaluation.progress import once_told
from sfumato.evaluation.references.features import ReferenceFeatures
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.references.statistics import StatisticsReference
from sfumato.evaluation.report import DEVIATIONS, TERMS, EvaluationReport
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.store import write_arrays
from sfumato.evaluation.subjects.image_set import ImageSet
from sfumato.evaluation.subjects.image_source import ImageSource
from sfumato.evaluation.subjects.model_sources import GeneratorSource

SPREAD_FROM = 20_000
"""From this many images, workers search for neighbours; below, sending the features costs more."""


def evaluate(evaluation: Evaluation) -> EvaluationReport:
    """Measures, and writes `report.json`, pictures and the blocks' features into the evaluation's folder.

    A model that cannot draw images (an autoencoder without a prior) reconstructs those of the reference, and
    the report states that. With `settings.actors` not 0, Ray must have been started.

    Raises ConfigError (settings), DataError (reference, or images of another kind than it), CheckpointError
    (model), CapabilityError (no actor can be placed), each one line and before images are generated.
    """
    start = time.perf_counter()
    keep_freed_memory(of_any_size=evaluation.settings.actors == 0)
    with _remembering(evaluation.reference):
        with workers_for(evaluation.settings) as workers:
            opened = _opened(evaluation, workers)
            plan = plan_blocks(opened)
            make_missing(opened, plan, workers)
        report = replace(_report(opened, plan), seconds=time.perf_counter() - start)
    report.write(evaluation.out)
    return report


def features_of_reference(
    evaluation: Evaluation, joined: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Mapping[str, FeatureSet]:
    """Features of the reference alone, by the features' name. `joined` starts Ray, if it is needed.

    Raises ConfigError for features that the reference does not allow, and DataError for damaged images.
    """
    settings, reference = evaluation.settings, evaluation.reference
    keep_freed_memory(of_any_size=settings.actors == 0)
    labelled = reference.spec.num_classes > 0
    selection = settings.select(reference.spec, conditional=labelled, kind="images")
    with _remembering(reference), workers_for(settings, joined) as workers:
        return _features(evaluation, workers).of(reference, _extractors(evaluation, selection))


def _opened(evaluation: Evaluation, workers: Workers) -> Opened:
    """Makes every check that may refuse the evaluation; extracts the reference's features if new."""
    reference, source = evaluation.reference, evaluation.source()
    check_comparable(source, reference)
    if isinstance(reference, StatisticsReference):
        evaluation = replace(evaluation, settings=narrowed(evaluation.settings, reference))
    settings = evaluation.settings
    selection = selected(settings, source, reference)
    check_enough(selection, settings, source, reference)
    found = {
        name: wanted.open(settings, selection.options, reference) for name, wanted in selection.inputs.items()
    }
    extractors = _extractors(evaluation, selection)
    features = _features(evaluation, workers)
    real = features.of(reference, extractors)
    setting = Setting(settings, selection.options, source, reference, extractors, features)
    inputs = {name: wanted.prepare(setting, found[name]) for name, wanted in selection.inputs.items()}
    return Opened(evaluation, source, selection, extractors, real, inputs)


def _extractors(evaluation: Evaluation, selection: Selection) -> list[Extractor]:
    """Built once, on the driver; costly ones are kept on its disk."""
    place = evaluation.features.folder or evaluation.cache
    return [
        built(kind, evaluation.reference, options, place, partial(once_told, evaluation.begin))
        for kind, options in selection.features.items()
    ]


def _features(evaluation: Evaluation, workers: Workers) -> ReferenceFeatures:
    """Where features of real images come from."""
    return ReferenceFeatures(
        evaluation.features,
        evaluation.blocks_folder,
        workers,
        evaluation.begin,
        evaluation.settings.batch_size,
    )


def _report(opened: Opened, plan: BlockPlan) -> EvaluationReport:
    """All computations from finished blocks, on the driver."""
    evaluation, source, selection = opened.evaluation, opened.source, opened.selection
    settings, reference, real, out = evaluation.settings, evaluation.reference, opened.real, evaluation.out
    generated = _generated(opened, plan)
    largest = max(len(features) for features in (*real.values(), *generated.values()))
    options = replace(selection.options, spread=_spread(settings, largest))
    figures = measure(
        replace(selection, options=options),
        _with_inputs(opened, plan),
        generated,
        plan.pair_values(selection.pairs),
        intervals=settings.interval,
        seed=settings.seed,
        begin=evaluation.begin,
        weak={
            extractor.name: of_features(extractor.name, extractor.facts) for extractor in opened.extractors
        },
        noise=noise_on(opened.extractors, reference.spec, options),
    )
    stored = {**figures.terms, **{f"{DEVIATIONS}{name}": d_P for name, d_P in figures.deviations.items()}}
    write_arrays(out / TERMS, stored, {"metrics": sorted(figures.terms), "of": figures.terms_of})
    shown = min(settings.preview, plan.samples)
    first = next(iter(real))
    count = len(generated[first])
    kept = count if selection.needs_images else min(shown, count)
    seconds, evaluations = plan.cost()
    return EvaluationReport(
        metrics=figures.values,
        details=figures.details,
        features={e.name: {"dim": e.dim, "digest": e.digest, **e.facts} for e in opened.extractors},
        higher_is_better=selection.higher_is_better,
        samples=count,
        reference_samples=len(real[first]),
        reference_digest=reference.digest,
        seed=settings.seed,
        seconds=0.0,
        seconds_per_image=seconds,
        preview=write_preview(plan.store, plan.tasks, shown, out, source.door),
        intervals=figures.intervals,
        kind=source.kind,
        resized=source.resized if isinstance(source, ImageSource) else "",
        evaluations_per_image=evaluations,
        neighbours=write_neighbours(
            plan, kept, generated[first], real[first], reference, options, out, source.door
        ),
        computed_on={
            name: (metric.name, kind.name)
            for metric, kind, name in selection.metrics
            if metric.reads_features
        },
        source_digest=source.digest,
        labels_digest=plan.labels_digest,
        model=source.model if isinstance(source, GeneratorSource) else "",
        sampling=source.sampling if isinstance(source, GeneratorSource) else {},
        blocks=plan.store.folder.name,
        marks=figures.marks,
        accept_weak_features=settings.accept_weak_features,
    )


def _generated(opened: Opened, plan: BlockPlan) -> dict[str, FeatureSet]:
    """Features of the made images, with the metrics' other inputs; by the features' name."""
    found = {name: plan.store.features(plan.tasks, name, plan.samples, plan.label_N) for name in opened.real}
    for wanted, prepared in opened.inputs.items():
        found = {
            name: prepared.of_generated(features, name, plan.made(wanted)) for name, features in found.items()
        }
    return found


def _with_inputs(opened: Opened, plan: BlockPlan) -> dict[str, FeatureSet]:
    """The reference's features with its images and the metrics' other inputs."""
    reference = opened.evaluation.reference
    found = {
        name: replace(features, images=lambda: (images for images, _ in reference.blocks()))
        for name, features in opened.real.items()
    }
    for wanted, prepared in opened.inputs.items():
        found = {
            name: prepared.of_reference(features, name, plan.made(wanted)) for name, features in found.items()
        }
    return found


def _remembering(reference: Reference) -> AbstractContextManager[None]:
    return reference.remembering() if isinstance(reference, ImageSet) else nullcontext()


def _spread(settings: EvaluateSettings, rows: int) -> Spread:
    """Where to search for neighbours: on the workers that made the features, if it takes minutes here."""
    if settings.actors == 0 or rows < SPREAD_FROM:
        return in_process
    return OnRay(actors_for(settings, rows), settings.cpus_per_actor)
