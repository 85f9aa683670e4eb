"""The stages of a run: train, evaluate, register. A finished stage is skipped on the next call.

Each stage is keyed by its inputs, so that it runs again only if they have changed. Packing, which comes
first, is part of opening the session.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from sfumato.data.order import pools
from sfumato.errors import CheckpointError, ConfigError
from sfumato.evaluation.report import EvaluationReport
from sfumato.provenance.stored import write_provenance
from sfumato.runtime.card.markdown import summary_of
from sfumato.runtime.card.write import write_card
from sfumato.runtime.cluster import forking, ray_cluster
from sfumato.runtime.commands.printed import images_of, images_text
from sfumato.runtime.runs import live, moments
from sfumato.runtime.runs.run_folder import RunFolder, stage_key
from sfumato.runtime.runs.session import Session
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_files import read_card
from sfumato.sampling.model_folder import read_model_card, read_model_folder, save_model_folder
from sfumato.sampling.model_signing import signed
from sfumato.sampling.output import write_samples
from sfumato.tracking.champion import COMPARABLE
from sfumato.tracking.model import describe_version, register_model

GRID_SAMPLES = 100


def train(session: Session, watch: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Train to the end, or report an earlier call's result; returns the summary. `watch`: see
    `ray_train.fit`."""
    recipe, folder, display = session.recipe, session.folder, session.display
    key = stage_key(recipe.digest(), pools.content_digest(recipe.data, session.manifest))
    done = folder.stage_result("train", key)
    ended = done is not None and (done["images"] >= recipe.train.images or _stopped_early(session, done))
    if done is not None and ended and folder.model.is_dir():
        _take_sampling(session)
        write_provenance(folder.model, recipe.marking())
        signed(folder.model)
        display.skipped("train", f"{images_text(recipe, done['images'])}, done before (--fresh trains again)")
        return done
    from sfumato.evaluation.decisions.ending import deciding, may_end
    from sfumato.runtime.training import ray_train  # Ray takes seconds to import
    from sfumato.runtime.training.validation import restore_best

    moments.mark("Ray Train imported", folder)
    if images_of(recipe) != recipe.train.images:
        display.note(f"train.images: {images_text(recipe, images_of(recipe))}")
    display.stage("train")
    session.tracker.sample_system()
    try:
        summary = ray_train.fit(recipe, folder, session.tracker.handle, display, watch=watch)
    finally:
        session.tracker.send_left()
    if may_end(recipe.evaluate) and summary["images"] < recipe.train.images:
        summary = {**summary, "stopped_by": deciding(recipe.evaluate)}
    restore_best(recipe, folder, display)
    signed(folder.model)
    folder.finish_stage("train", key, summary)
    display.done(f"{images_text(recipe, summary['images'])}, {summary['images_per_second']:,.0f} images/s")
    return summary


def _stopped_early(session: Session, done: Mapping[str, Any]) -> bool:
    """Whether training has ended, by the recipe's present patience.

    With unchanged patience it has, whatever later evaluations have found.
    """
    from sfumato.evaluation.decisions.ending import deciding, may_end
    from sfumato.runtime.training.validation import early_end, read_records

    settings = session.recipe.evaluate
    if not may_end(settings):
        return False
    if done.get("stopped_by") == deciding(settings):
        return True
    return early_end(settings, read_records(session.folder)) is not None


def _take_sampling(session: Session) -> None:
    """Sampling defaults are not part of training: a finished run takes them from its recipe."""
    stored = read_model_folder(session.folder.model, trust=True)
    sampling = session.recipe.model.sampling
    if stored.config.sampling == sampling or not stored.config.samples(stored.data):
        return  # a first stage, which draws nothing, keeps the digest by which others know it
    save_model_folder(
        session.folder.model,
        stored.config.model_copy(update={"sampling": sampling}),
        stored.data,
        stored.weights,
        name=stored.name,
        progress=stored.progress,
        notes=stored.notes,
        trained_on=session.manifest.digest,
        provenance=session.recipe.marking(),
    )
    session.display.note("model.sampling has changed since training: the model now uses the new values")


def evaluate(session: Session, base: Path | None = None) -> dict[str, Any]:
    """Generate, measure, draw the sample grid. Returns metrics by name and the duration.

    `base` is the place of an adapter's base, None for its place in training; likewise below.
    """
    recipe, folder, display = session.recipe, session.folder, session.display
    if not folder.model.is_dir():
        raise CheckpointError(
            f"run {folder.id} has no trained model yet: train it with `sfumato train`, or name one of the "
            f"checkpoints in {folder.checkpoint_uri(recipe)}"
        )
    stored = read_model_card(folder.model, trust=True)  # its family is the recipe's
    draws = stored.config.samples(stored.data)
    if draws and stored.config.sampling != recipe.model.sampling:
        raise ConfigError(
            "model.sampling differs from the trained model's: try other values for one evaluation by "
            "evaluate.sampling.KEY=VALUE, or make them the model's by `sfumato run` with the recipe"
        )
    settings = recipe.evaluate
    grid = folder.path / "samples" / "grid.png"
    marked = [recipe.provenance.model_dump_json()] if recipe.marking().on else []
    key = stage_key(stored.digest, session.manifest.digest, settings.identity(), *marked)
    done = folder.stage_result("evaluate", key)
    if done is not None and (grid.is_file() or not draws):
        display.skipped("evaluate", f"{done['samples']:,} {done['kind']}, done before")
        return done
    from sfumato.evaluation import stage  # takes seconds to import
    from sfumato.evaluation.evaluation import Evaluation
    from sfumato.evaluation.references.reference import PackedReference
    from sfumato.runtime.commands.evaluate import CACHE, result_of

    display.stage("evaluate")
    if not draws:
        display.note(f"family {recipe.model.family} draws no images of its own: its reconstructions count")
    report = stage.evaluate(
        Evaluation.of_model(
            settings,
            model_folder=folder.model,
            reference=PackedReference(recipe.data.path, recipe.data.on_error),
            out=folder.path / "evaluation",
            cache=Path(recipe.storage) / CACHE,
            trust=True,
            base=base,
            progress=display.update,
            phase=display.phase,
        )
    )
    torch.set_num_threads(ray_cluster.cores())
    if draws:
        generator = Generator.load(folder.model, trust=True, base=base)
        num = GRID_SAMPLES - GRID_SAMPLES % max(1, min(GRID_SAMPLES, generator.data.num_classes))
        if options := settings.sampling:
            generator = generator.with_options(generator.options(options))
        write_samples(grid.parent, generator, num, seed=settings.seed, options=options, overwrite=True)
        counts = {f"filter/{name}": count for name, count in generator.door.counts.items()}
        session.tracker.metrics(counts, step=stored.progress.images)
    record_evaluation(session, report, stored.progress.images)
    result = result_of(report, folder.path / "evaluation")
    folder.finish_stage("evaluate", key, result)
    _describe(session)
    display.done(f"{report.samples:,} {report.kind}")
    return result


def record_evaluation(session: Session, report: EvaluationReport, images: int) -> None:
    """Record in MLflow the model's figures and pictures at this many images."""
    from sfumato.runtime.commands.evaluate import comparable, figures_of

    session.tracker.metrics(figures_of(report), step=images)
    session.tracker.tags({**report.tags(), COMPARABLE: comparable(report)})
    for picture in (session.folder.path / "evaluation" / "report.json", *_pictures(session.folder)):
        session.tracker.artifact(picture, "evaluation")


def _describe(session: Session) -> str:
    """Write the model's card and record it; returns its short form."""
    facts = write_card(session.folder)
    session.tracker.artifact(session.folder.path / "card", "card")
    return summary_of(facts)


def _pictures(folder: RunFolder) -> list[Path]:
    places = ("samples/grid.png", "evaluation/preview.png", "evaluation/neighbours.png")
    return [folder.path / place for place in places if (folder.path / place).is_file()]


def register(session: Session, base: Path | None = None) -> dict[str, Any]:
    """Log the model to MLflow with its card and register a version of it, which the card describes.

    A version that is registered already takes the card of a newer evaluation.
    """
    recipe, folder, display = session.recipe, session.folder, session.display
    if not recipe.registry.enabled:
        return {}
    if not recipe.tracking.enabled:
        display.skipped("register", "left out, since tracking is off (tracking.enabled=false)")
        return {}
    name = recipe.registry.name or recipe.name
    key = stage_key(read_card(folder.model)[1], name)
    done = folder.stage_result("register", key)
    if done is not None:
        describe_version(session.tracker.handle, done["name"], done["version"], _describe(session))
        display.skipped("register", f"{done['name']} version {done['version']}, done before")
        return done
    display.stage("register")
    summary = summary_of(write_card(folder))
    version = register_model(session.tracker.handle, folder.model, name, base=base, description=summary)
    result = {"name": name, "version": version}
    folder.finish_stage("register", key, result)
    _describe(session)
    display.done(f"{name} version {version}")
    return result


def run(session: Session, base: Path | None = None) -> dict[str, Any]:
    """All stages on one cluster; the results by stage."""
    with cluster_to_train(session):
        trained = train(session)
        evaluated = evaluate(session, base)
    registered = register(session, base)
    if session.recipe.tracking.compare:
        from sfumato.runtime.commands import compare_in_mlflow  # loads what draws plots

        compare_in_mlflow.update(session)
    return {"train": trained, "evaluate": evaluated, "register": registered}


@contextlib.contextmanager
def cluster_to_train(session: Session) -> Iterator[None]:
    """A cluster that holds the recipe's workers and their read tasks, and later its evaluation.

    Raises ConfigError while another process works on the run.
    """
    recipe = session.recipe
    workers = recipe.parallel.least_workers
    to_train = (ray_cluster.cpus_to_train(recipe, count) for count in (recipe.parallel.workers, workers))
    cpus, least = (max(count, ray_cluster.cpus_to_evaluate(recipe)) for count in to_train)
    gpus = workers * recipe.parallel.gpus_per_worker
    if recipe.evaluate.every is not None:
        gpus += recipe.evaluate.actors_during * recipe.evaluate.gpus_per_actor
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            live.working(session.folder.path, session.display.note, take_over=session.take_over)
        )
        with session.display.waiting("start of Ray"):
            stack.enter_context(
                ray_cluster.cluster(
                    cpus, session.folder.logs, least=least, gpus=gpus, modules=forking.TRAINING
                )
            )
        moments.mark("Ray started", session.folder)
        yield


@contextlib.contextmanager
def cluster_to_evaluate(session: Session) -> Iterator[None]:
    """A cluster that holds the recipe's evaluation."""
    with contextlib.ExitStack() as stack:
        cpus = ray_cluster.cpus_to_evaluate(session.recipe)
        with session.display.waiting("start of Ray"):
            stack.enter_context(ray_cluster.cluster(cpus, session.folder.logs))
        yield
