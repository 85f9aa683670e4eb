"""The evaluation stage: draw, extract features in parallel, then compute metrics from the features.

The driver holds features, never all images. Blocks of images are made by Ray actors (or in this process),
written to the evaluation's folder as they come, and read back in the order of their index. The numbers are
therefore the same for any number of actors, and a killed evaluation resumes where it stopped.
"""

from __future__ import annotations

import time
from dataclasses import replace

from sfumato.evaluation.block_plan import BlockPlan, plan_blocks
from sfumato.evaluation.block_workers import actors_for, make_missing
from sfumato.evaluation.checks import check_comparable, check_enough, narrowed, selected
from sfumato.evaluation.compute import measure
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.evaluation import Evaluation, Opened
from sfumato.evaluation.feature_set import FeatureSet
from sfumato.evaluation.metric_inputs import Setting
from sfumato.evaluation.parallel_map import OnRay, Spread, in_process
from sfumato.evaluation.pictures import write_neighbours, write_preview
from sfumato.evaluation.reference_features import reference_features
from sfumato.evaluation.reference_statistics import StatisticsReference
from sfumato.evaluation.report import TERMS, EvaluationReport
from sfumato.evaluation.source import ImageSource
from sfumato.evaluation.store import write_arrays

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
    opened = _opened(evaluation)
    plan = plan_blocks(opened)
    make_missing(opened, plan)
    report = replace(_report(opened, plan), seconds=time.perf_counter() - start)
    report.write(evaluation.out)
    return report


def _opened(evaluation: Evaluation) -> Opened:
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
    features = evaluation.features
    extractors = [
        kind.build(reference, options, features.folder or evaluation.cache)
        for kind, options in selection.features.items()
    ]
    real = {extractor.name: reference_features(reference, extractor, features) for extractor in extractors}
    setting = Setting(settings, selection.options, source, reference, extractors, features)
    inputs = {name: wanted.prepare(setting, found[name]) for name, wanted in selection.inputs.items()}
    return Opened(evaluation, source, selection, extractors, real, inputs)


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
    )
    write_arrays(out / TERMS, figures.terms, {"metrics": sorted(figures.terms), "of": figures.terms_of})
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
        preview=write_preview(plan.store, plan.tasks, shown, out),
        intervals=figures.intervals,
        kind=source.kind,
        resized=source.resized if isinstance(source, ImageSource) else "",
        evaluations_per_image=evaluations,
        neighbours=write_neighbours(plan, kept, generated[first], real[first], reference, options, out),
        computed_on={
            name: (metric.name, kind.name)
            for metric, kind, name in selection.metrics
            if metric.reads_features
        },
        source_digest=source.digest,
        labels_digest=plan.labels_digest,
        blocks=plan.store.folder.name,
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


def _spread(settings: EvaluateSettings, rows: int) -> Spread:
    """Where to search for neighbours: on the workers that made the features, if it takes minutes here."""
    if settings.actors == 0 or rows < SPREAD_FROM:
        return in_process
    return OnRay(actors_for(settings, rows), settings.cpus_per_actor)
