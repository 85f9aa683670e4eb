"""The evaluation stage: draw, extract features in parallel, then compute metrics from the features.

The driver holds features, never all images. Blocks of images are made by Ray actors (or in this process),
written to the evaluation's folder as they come, and read back in the order of their index. The numbers are
therefore the same for any number of actors, and a killed evaluation goes on where it stood.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from sfumato.data.format.faults import OnError
from sfumato.evaluation.block_workers import Making, ProgressCallback, actors_for, make_missing
from sfumato.evaluation.checks import check_comparable, check_enough, narrowed, selected
from sfumato.evaluation.compute import measure
from sfumato.evaluation.config import EvaluateSettings
from sfumato.evaluation.feature_cache import FeatureCache
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.metric_inputs import Prepared, Setting
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.parallel_map import OnRay, Spread, in_process
from sfumato.evaluation.pictures import write_neighbours, write_preview
from sfumato.evaluation.plan import Plan, plan_blocks
from sfumato.evaluation.reference import PackedReference, Reference
from sfumato.evaluation.reference_features import reference_features
from sfumato.evaluation.reference_statistics import StatisticsReference
from sfumato.evaluation.report import TERMS, EvaluationReport
from sfumato.evaluation.selected import Selection
from sfumato.evaluation.source import ImageSource, LoadSource, SampleSource, load_model
from sfumato.evaluation.store import write_arrays

__all__ = ["ProgressCallback", "evaluate", "evaluate_images", "evaluate_source"]

SPREAD_FROM = 20_000
"""Images from which on neighbours are looked for on workers; below, sending the features costs more."""


def evaluate(
    settings: EvaluateSettings,
    *,
    model_folder: Path,
    data_folder: Path | str,
    out: Path,
    cache: Path,
    on_error: OnError = "fail",
    progress: ProgressCallback | None = None,
    trust: bool = False,
    reference: Reference | None = None,
    blocks: Path | None = None,
) -> EvaluationReport:
    """Measures the model in `model_folder` against the packed data in `data_folder`, or any `reference`.

    A model that cannot draw images (an autoencoder without a prior) reconstructs those of the reference, and
    the report says so. Writes `report.json`, pictures and the blocks' features into `out`, trained
    classifiers and reference features into `cache`. `on_error` says what a reference image that cannot
    be used does. With `settings.actors` not 0, Ray must have been started. `trust` permits a family by
    import path. `blocks` is the folder that finished blocks are kept in; None: `out`.

    Raises ConfigError (settings), DataError (reference, or images of another kind than it), CheckpointError
    (model), CapabilityError (no actor can be placed), each one line and before images are generated.
    """
    real = reference or PackedReference(data_folder, on_error)
    return evaluate_source(
        settings,
        load=partial(load_model, device=_device(settings), trust=trust, reference=real),
        model_folder=model_folder,
        reference=real,
        out=out,
        cache=cache,
        progress=progress,
        blocks=blocks,
    )


def evaluate_images(
    settings: EvaluateSettings,
    *,
    images: Reference,
    reference: Reference,
    out: Path,
    cache: Path,
    progress: ProgressCallback | None = None,
) -> EvaluationReport:
    """Measures images as they are, such as another program's samples, against a reference.

    The first `settings.samples` of them count. Raises as `evaluate` does.
    """
    return evaluate_source(
        settings,
        load=partial(_images, images=images),
        model_folder=out,
        reference=reference,
        out=out,
        cache=cache,
        progress=progress,
    )


def evaluate_source(
    settings: EvaluateSettings,
    *,
    load: LoadSource,
    model_folder: Path,
    reference: Reference,
    out: Path,
    cache: Path,
    progress: ProgressCallback | None = None,
    blocks: Path | None = None,
) -> EvaluationReport:
    """`evaluate` for anything that gives images and anything that gives reference images."""
    start = time.perf_counter()
    source = load(model_folder, settings.sampling)
    check_comparable(source, reference)
    if isinstance(reference, StatisticsReference):
        settings = narrowed(settings, reference)
    selection = selected(settings, source, reference)
    check_enough(selection, settings, source, reference)
    opened = {
        name: wanted.open(settings, selection.options, reference) for name, wanted in selection.inputs.items()
    }
    features = FeatureCache(settings.cache or cache)
    extractors = [
        kind.build(reference, options, features.folder or cache)
        for kind, options in selection.features.items()
    ]
    real = {extractor.name: reference_features(reference, extractor, features) for extractor in extractors}
    setting = Setting(settings, selection.options, source, reference, extractors, features)
    inputs = {name: wanted.prepare(setting, opened[name]) for name, wanted in selection.inputs.items()}
    plan = plan_blocks(settings, selection, source, extractors, real, inputs, blocks or out)
    making = Making(load, model_folder, settings, extractors, selection.pairs, inputs)
    make_missing(plan, settings, making, source, progress)
    report = _report(settings, selection, source, reference, extractors, plan, real, inputs, out)
    report = replace(report, seconds=time.perf_counter() - start)
    report.write(out)
    return report


def _report(
    settings: EvaluateSettings,
    selection: Selection,
    source: SampleSource,
    reference: Reference,
    extractors: list[Extractor],
    plan: Plan,
    real: Mapping[str, FeatureSet],
    inputs: Mapping[str, Prepared],
    out: Path,
) -> EvaluationReport:
    """Everything that is computed from finished blocks, on the driver."""
    generated = _generated(real, plan, inputs)
    largest = max(len(features) for features in (*real.values(), *generated.values()))
    options = replace(selection.options, spread=_spread(settings, largest))
    figures = measure(
        replace(selection, options=options),
        _with_inputs(real, plan, inputs, reference),
        generated,
        plan.pair_values(selection.pairs),
        intervals=settings.interval,
        seed=settings.seed,
    )
    write_arrays(out / TERMS, figures.terms, {"metrics": sorted(figures.terms)})
    shown = min(settings.preview, plan.samples)
    first = next(iter(real))
    count = len(generated[first])
    kept = count if selection.needs_images else min(shown, count)
    seconds, evaluations = plan.cost()
    return EvaluationReport(
        metrics=figures.values,
        details=figures.details,
        features={e.name: {"dim": e.dim, "digest": e.digest, **e.facts} for e in extractors},
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


def _generated(
    real: Mapping[str, FeatureSet], plan: Plan, inputs: Mapping[str, Prepared]
) -> dict[str, FeatureSet]:
    """Features of what was made, with what metrics read beside them; by the features' name."""
    found = {name: plan.store.features(plan.tasks, name, plan.samples, plan.label_N) for name in real}
    for wanted, prepared in inputs.items():
        found = {
            name: prepared.of_generated(features, name, plan.made(wanted)) for name, features in found.items()
        }
    return found


def _with_inputs(
    real: Mapping[str, FeatureSet], plan: Plan, inputs: Mapping[str, Prepared], reference: Reference
) -> dict[str, FeatureSet]:
    """The reference's features with its images and what metrics read beside them."""
    found = {
        name: replace(features, images=lambda: (images for images, _ in reference.blocks()))
        for name, features in real.items()
    }
    for wanted, prepared in inputs.items():
        found = {
            name: prepared.of_reference(features, name, plan.made(wanted)) for name, features in found.items()
        }
    return found


def _images(folder: Path, sampling: Mapping[str, Any], *, images: Reference) -> SampleSource:
    return ImageSource(images)


def _spread(settings: EvaluateSettings, rows: int) -> Spread:
    """Where neighbours are looked for: on the workers that made the features, once it takes minutes here."""
    if settings.actors == 0 or rows < SPREAD_FROM:
        return in_process
    return OnRay(actors_for(settings, rows), settings.cpus_per_actor)


def _device(settings: EvaluateSettings) -> str:
    return "cuda" if settings.gpus_per_actor else "cpu"
