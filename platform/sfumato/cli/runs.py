"""Commands that run a recipe: all of it, or one stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sfumato.cli.arguments import (
    AsJson,
    Base,
    Fresh,
    NewRecord,
    Overrides,
    RecipeFile,
    TakeOver,
    Trust,
    open_display,
    open_session,
    show,
)
from sfumato.errors import ConfigError


def run(
    recipe: Annotated[
        Path,
        typer.Argument(metavar="RECIPE|PIPELINE", help="Recipe or pipeline file (YAML).", show_default=False),
    ],
    overrides: Overrides = None,
    fresh: Fresh = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Pipelines: show what is finished, what would run, and why.")
    ] = False,
    first: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="STAGE", help="Pipelines: rerun this stage and everything that depends on it."
        ),
    ] = None,
    base: Base = None,
    new_record: NewRecord = False,
    take_over: TakeOver = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Recipes: N runs, with the recipe's seed and the N - 1 after it, then mean and spread.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Pack, train, evaluate and register, or run a pipeline; skips finished stages, resumes the rest."""
    from sfumato.runtime.commands import printed, stages
    from sfumato.runtime.pipeline.settings import is_pipeline

    if is_pipeline(recipe):
        if new_record:
            raise ConfigError(
                "--new-record is for recipes: give it to `sfumato train` with the recipe.yaml of the run"
            )
        if seeds is not None:
            raise ConfigError(f"{recipe} is a pipeline; --seeds is for recipes")
        if take_over:
            raise ConfigError("--take-over is for recipes: give it to `sfumato train` with that of a stage")
        if base is not None:
            raise ConfigError("--base is for recipes: give `base` to the stages that evaluate and register")
        _run_pipeline(recipe, overrides, fresh=fresh, dry_run=dry_run, first=first, as_json=as_json)
        return
    if dry_run or first is not None:
        raise ConfigError(f"{recipe} is a recipe; --dry-run and --from are for pipelines")
    if seeds is not None:
        _run_seeds(
            recipe,
            overrides or [],
            seeds,
            base,
            fresh=fresh,
            new_record=new_record,
            take_over=take_over,
            as_json=as_json,
        )
        return
    with open_session(
        recipe, overrides, fresh=fresh, new_record=new_record, take_over=take_over, trains=True
    ) as session:
        results = stages.run(session, base)
    printed.show(session, results, as_json=as_json)


def _run_seeds(
    path: Path,
    overrides: list[str],
    number: int,
    base: Path | None,
    *,
    fresh: bool,
    new_record: bool,
    take_over: bool,
    as_json: bool,
) -> None:
    from sfumato import recipe as recipes
    from sfumato.runtime.commands import printed, seeds, stages

    recipe = recipes.load(path, overrides)
    finished: list[seeds.Finished] = []
    for seed in range(recipe.seed, recipe.seed + number):
        of_seed = [*overrides, f"seed={seed}"]
        with open_session(
            path, of_seed, fresh=fresh, new_record=new_record, take_over=take_over, trains=True
        ) as session:
            session.display.line(f"seed {seed}, {len(finished) + 1} of {number}: run {session.folder.id}")
            results = stages.run(session, base)
        finished.append(seeds.Finished(seed, printed.summary(session, results)))
        if not as_json:
            printed.show_table(session, results)
    seeds.show(recipe.name, finished, as_json=as_json)


def _run_pipeline(
    path: Path, overrides: list[str] | None, *, fresh: bool, dry_run: bool, first: str | None, as_json: bool
) -> None:
    from sfumato.runtime.pipeline import controller, plan, printed, settings

    if fresh:
        raise ConfigError("--fresh is for recipes; `--from STAGE` reruns the stages of a pipeline")
    pipeline = settings.load(path, overrides or [], root=Path.cwd())
    if dry_run:
        printed.show_plan(pipeline, plan.preview(pipeline, first=first), as_json=as_json)
        return
    with open_display() as display:
        result = controller.run(pipeline, display, first=first)
    printed.show(pipeline, result, as_json=as_json)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    fresh: Fresh = False,
    new_record: NewRecord = False,
    take_over: TakeOver = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe's model; resumes from its newest checkpoint."""
    from sfumato.runtime.commands import printed, stages

    with (
        open_session(
            recipe, overrides, fresh=fresh, new_record=new_record, take_over=take_over, trains=True
        ) as session,
        stages.cluster_to_train(session),
    ):
        results = {"train": stages.train(session)}
    printed.show(session, results, as_json=as_json)


def evaluate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="A recipe file, a run, a checkpoint, a model folder, a folder of images, or packed shards.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="IMAGES",
            help="Compare with these real images (shards, or a folder), not the run's own data.",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=2, help="How many images to draw, or how many of the given images to use."),
    ] = None,
    metrics: Annotated[str | None, typer.Option(metavar="A,B", help="Metrics, separated by commas.")] = None,
    features: Annotated[
        str | None, typer.Option(metavar="A,B", help="Feature extractors, separated by commas.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the samples.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images that an actor draws at a time; does not change results.")
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=0, help="Ray actors; 0 works in this process. Does not change results.")
    ] = None,
    resize: Annotated[
        Literal["bicubic", "lanczos", "nearest"] | None,
        typer.Option(help="Resize images to the reference's size; without it, other sizes are refused."),
    ] = None,
    held_out: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Real images not used in training, for the metric memorisation."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report and finished blocks.")] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz", help="Only write mu and sigma of the images' features to this file."
        ),
    ] = None,
    base: Base = None,
    trust: Trust = False,
    new_record: NewRecord = False,
    as_json: AsJson = False,
) -> None:
    """Measure a run, a checkpoint, or images against real ones; reuses a finished identical evaluation."""
    from sfumato.runtime.commands import printed, stages
    from sfumato.runtime.commands.evaluate import Request, measure
    from sfumato.runtime.runs.targets import target_of

    given = {
        "samples": samples,
        "metrics": metrics and metrics.split(","),
        "features": features and features.split(","),
        "seed": seed,
        "batch_size": batch_size,
        "actors": actors,
        "held_out": held_out,
    }
    changes = {field: value for field, value in given.items() if value is not None}
    request = Request(
        changes, against=against, resize=resize, out=out, statistics=statistics, base=base, trust=trust
    )
    found = target_of(target, root=Path.cwd())
    if found.kind in ("recipe", "run") and request.plain:
        assert found.recipe is not None
        if found.kind == "run":
            Console(stderr=True).print(found.about, highlight=False, markup=False, soft_wrap=True)
        everything = [*(overrides or []), *request.overrides()]
        with (
            open_session(
                found.recipe,
                everything,
                at=found.run.path if found.run else None,
                keep_recipe=True,
                new_record=new_record,
            ) as session,
            stages.cluster_to_evaluate(session),
        ):
            results = {"evaluate": stages.evaluate(session, base)}
        printed.show(session, results, as_json=as_json)
        return
    if new_record:
        raise ConfigError(
            f"--new-record is for runs and recipes, but this measures {found.about}: leave it out"
        )
    with open_display() as display:
        result = measure(found, request, overrides or [], root=Path.cwd(), display=display)
        if not as_json:
            display.table(found.about, printed.figures(result))
            for line in printed.weak_lines(result):
                display.note(line)
    written = result.get("statistics") or [str(Path(result["folder"]) / "report.json")]
    show(result, as_json, "\n".join(written))
