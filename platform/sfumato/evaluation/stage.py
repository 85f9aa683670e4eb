"""The evaluation stage: generate, extract features in parallel, then compute metrics from the features.

The driver holds features, never all images. Blocks of samples are made by Ray actors (or in this process),
written to the evaluation's folder as they come, and read back in the order of their index. The numbers are
therefore the same for any number of actors, and a killed evaluation goes on where it stood.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sfumato.data.faults import OnError
from sfumato.errors import DataError
from sfumato.evaluation.blocks import Block, BlockMaker, BlockStore, Task
from sfumato.evaluation.config import EvaluateSettings, Selection
from sfumato.evaluation.features.extractor import Extractor
from sfumato.evaluation.labels import stratified_labels
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.evaluation.reference import PackedReference, Reference
from sfumato.evaluation.reference_features import class_counts, reference_features
from sfumato.evaluation.report import EvaluationReport, finite
from sfumato.evaluation.source import GeneratorSource, LoadSource, SampleSource
from sfumato.evaluation.statistics import Int64Array
from sfumato.evaluation.store import digest, write_bytes
from sfumato.evaluation.workers import RayPool
from sfumato.sampling.grid import image_grid

PREVIEW = "preview.png"
ProgressCallback = Callable[[int, int], None]
"""Called with (images done, images in all)."""


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
) -> EvaluationReport:
    """Measures the model in `model_folder` against the packed data in `data_folder`.

    Writes `report.json`, `preview.png` and the blocks' features into `out`, trained classifiers and
    reference features into `cache`. `on_error` says what a reference image that cannot be used does. With
    `settings.actors` above 0, Ray must have been started. `trust` permits a family by import path.

    Raises ConfigError (settings), DataError (reference, or images of another kind than it), CheckpointError
    (model), CapabilityError (no actor can be placed), each one line and before images are generated.
    """
    return evaluate_source(
        settings,
        load=partial(GeneratorSource, device=_device(settings), trust=trust),
        model_folder=model_folder,
        reference=PackedReference(data_folder, on_error),
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
) -> EvaluationReport:
    """`evaluate` for anything that gives samples and anything that gives reference images."""
    start = time.perf_counter()
    folder = settings.cache or cache
    source = load(model_folder, settings.sampling)
    _check_comparable(source, reference)
    selection = settings.select(reference.spec, conditional=source.conditional)
    _check_enough(selection, reference)
    extractors = [kind.build(reference, options, folder) for kind, options in selection.features.items()]
    real = {extractor.name: reference_features(reference, extractor, folder) for extractor in extractors}
    plan = _plan(settings, source, extractors, next(iter(real.values())), reference, out)
    local = BlockMaker(source, extractors, seed=settings.seed)
    build = partial(_build_maker, load, model_folder, settings, extractors)
    _make_missing(plan, settings, local, build, progress)
    generated = {name: plan.store.features(name, settings.samples, plan.label_N) for name in real}
    metrics, details = _measure(selection, real, generated)
    report = EvaluationReport(
        metrics=metrics,
        details=details,
        features={e.name: {"dim": e.dim, "digest": e.digest, **e.facts} for e in extractors},
        higher_is_better={name: metric.higher_is_better for metric, _, name in selection.metrics},
        samples=settings.samples,
        reference_samples=len(next(iter(real.values()))),
        reference_digest=reference.digest,
        seed=settings.seed,
        seconds=time.perf_counter() - start,
        seconds_per_image=plan.store.seconds_per_block(len(plan.tasks)) / source.block,
        preview=_write_preview(plan.store, min(settings.preview, settings.samples), out),
    )
    report.write(out)
    return report


def _device(settings: EvaluateSettings) -> str:
    return "cuda" if settings.actors and settings.gpus_per_actor else "cpu"


@dataclass(frozen=True, slots=True)
class _Plan:
    """Every block of an evaluation, and the place where finished ones are kept."""

    tasks: Sequence[Task]
    store: BlockStore
    block: int
    label_N: Int64Array | None


def _plan(
    settings: EvaluateSettings,
    source: SampleSource,
    extractors: Sequence[Extractor],
    real: FeatureSet,
    reference: Reference,
    out: Path,
) -> _Plan:
    blocks = -(-settings.samples // source.block)
    counts_K = class_counts(real, reference.spec.num_classes) if source.conditional else None
    label_N = None if counts_K is None else stratified_labels(counts_K, blocks * source.block)
    tasks = [
        Task(
            index,
            None if label_N is None else label_N[index * source.block : (index + 1) * source.block],
            keep_images=index * source.block < settings.preview,
        )
        for index in range(blocks)
    ]
    # All that a block's content depends on: a folder of this name holds blocks of this evaluation alone.
    identity = digest(
        source.digest,
        source.block,
        [extractor.digest for extractor in extractors],
        settings.seed,
        settings.preview,
        None if counts_K is None else counts_K.tolist(),
    )
    kept = None if label_N is None else label_N[: settings.samples]
    return _Plan(tasks, BlockStore(out / f"blocks-{identity}"), source.block, kept)


def _make_missing(
    plan: _Plan,
    settings: EvaluateSettings,
    local: BlockMaker,
    build: Callable[[], BlockMaker],
    progress: ProgressCallback | None,
) -> None:
    todo = set(plan.store.missing(task.index for task in plan.tasks))
    tasks = [task for task in plan.tasks if task.index in todo]
    done = len(plan.tasks) - len(tasks)

    def tell() -> None:
        if progress:
            progress(min(done * plan.block, settings.samples), settings.samples)

    tell()
    for block in _blocks(tasks, settings, local, build):
        plan.store.save(block)
        done += 1
        tell()


def _blocks(
    tasks: Sequence[Task], settings: EvaluateSettings, local: BlockMaker, build: Callable[[], BlockMaker]
) -> Iterator[Block]:
    if not tasks:
        return
    if settings.actors == 0:
        yield from map(local.make, tasks)
        return
    with RayPool(build, settings, len(tasks)) as pool:
        yield from pool.run(tasks)


def _build_maker(
    load: LoadSource, model_folder: Path, settings: EvaluateSettings, extractors: Sequence[Extractor]
) -> BlockMaker:
    return BlockMaker(load(model_folder, settings.sampling), extractors, seed=settings.seed)


def _measure(
    selection: Selection, real: Mapping[str, FeatureSet], generated: Mapping[str, FeatureSet]
) -> tuple[dict[str, float], dict[str, Mapping[str, object]]]:
    values: dict[str, float] = {}
    details: dict[str, Mapping[str, object]] = {}
    for metric, kind, name in selection.metrics:
        result = finite(metric.compute(real[kind.name], generated[kind.name], selection.options))
        values[name], details[name] = result.value, result.details
    return values, details


def _check_comparable(source: SampleSource, reference: Reference) -> None:
    made, real = source.spec, reference.spec
    if made.shape != real.shape:
        raise DataError(
            f"the model makes {_kind(made.shape)} images and the reference holds {_kind(real.shape)}: "
            "evaluate against the data that it was trained on (images are never resized to fit)"
        )
    if source.conditional and made.num_classes != real.num_classes:
        raise DataError(
            f"the model has {made.num_classes} classes and the reference {real.num_classes}: evaluate "
            "against the data that it was trained on"
        )


def _kind(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else f'{channels}-channel'}"


def _check_enough(selection: Selection, reference: Reference) -> None:
    for metric, _, name in selection.metrics:
        least = metric.least_samples(selection.options)
        if reference.size < least:
            raise DataError(f"{name} needs {least} reference images or more, got {reference.size}")


def _write_preview(store: BlockStore, num: int, out: Path) -> str | None:
    if num == 0:
        return None
    buffer = io.BytesIO()
    image_grid(store.images(num)).save(buffer, format="PNG")
    write_bytes(out / PREVIEW, buffer.getvalue())
    return PREVIEW
