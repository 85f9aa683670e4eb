"""`sfumato compare`: finds the runs, collects their figures, and writes the requested comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.table import Table

from sfumato import recipe as recipes
from sfumato.errors import ConfigError, SfumatoError
from sfumato.evaluation.compare import study as studies
from sfumato.evaluation.compare import table as tables
from sfumato.evaluation.compare.entries import Entry, entries
from sfumato.evaluation.compare.page import report_page
from sfumato.evaluation.compare.runs import (
    Curve,
    EvaluatedRun,
    obstacles,
    outdated_interval,
    twins,
    unequal_balls,
    weak_figures,
)
from sfumato.evaluation.compare.votes import bradley_terry, win_rates, wins
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.report import FILE, read_report
from sfumato.evaluation.store import write_bytes
from sfumato.recipe import Recipe
from sfumato.runtime.commands.evaluate import CACHE
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.runs.targets import run_folder_of
from sfumato.runtime.training.validation import read_records
from sfumato.tracking.history import Point, metric_history

EVALUATION = "evaluation"


def gather(words: Sequence[str], *, root: Path, display: Display) -> list[EvaluatedRun]:
    """The runs by name, id or folder, or folders with a report, each under a unique name.

    Raises ConfigError for a run that cannot be found, SfumatoError for one that was not evaluated.
    """
    if len(words) < 2:
        raise ConfigError(f"a comparison needs two runs or more, got {len(words)}")
    found = [_gather(word, root, display) for word in words]
    names = [run.name for run in found]
    if len(set(names)) == len(names):
        return found
    return [replace(run, name=f"{run.name} ({number})") for number, run in enumerate(found, 1)]


def compare(
    words: Sequence[str], *, out: Path | None, root: Path, display: Display, group_seeds: bool = False
) -> tuple[dict[str, Any], Table]:
    """The figures of the runs as plain data and as a table; with `out`, the page is written there.

    `group_seeds` makes one entry of runs that differ in their seed alone.
    """
    runs = gather(words, root=root, display=display)
    compared = entries(runs, group_seeds=group_seeds)
    against = obstacles(runs)
    for line in against:
        display.note(f"these figures do not compare: {line}")
    for figure, line in unequal_balls(runs).items():
        fix = "evaluate them alike (evaluate.k, evaluate.metric_options.density_k)"
        display.note(f"{figure} does not compare: {line}; {fix}")
    weak = weak_figures(runs)
    for line in weak:
        display.note(f"weak figures: {line}")
    _note(runs, display, group_seeds=group_seeds)
    rows = tables.rows(compared, comparable=not against)
    if out is not None:
        write_bytes(out, report_page(compared, rows).encode())
    data = {
        "runs": [run.name for run in runs],
        "entries": {entry.name: [run.name for run in entry.runs] for entry in compared},
        "obstacles": against,
        "weak": weak,
        "metrics": tables.as_data(rows, compared),
        "page": None if out is None else str(out),
    }
    return data, _terminal(compared, rows)


def _note(runs: Sequence[EvaluatedRun], display: Display, *, group_seeds: bool) -> None:
    """Seeds that could be grouped, and intervals that an earlier version made too short."""
    if not group_seeds and (alike := twins(runs)):
        names = " and ".join(run.name for run in alike)
        display.note(f"{names} differ in their seed alone: --group-seeds makes one entry of them")
    for run in runs:
        if short := [figure for figure in run.report.metrics if outdated_interval(run, figure)]:
            figures = ", ".join(short)
            display.note(
                f"{run.name}: an earlier version recorded intervals of {figures} that are too short; a new "
                "evaluation (`sfumato evaluate RUN --out DIR`) has right ones"
            )


def study(
    words: Sequence[str], folder: Path, *, images: int, seed: int, root: Path, display: Display
) -> dict[str, Any]:
    """Write a blind study of the runs' samples into a folder."""
    runs = gather(words, root=root, display=display)
    number = studies.write_study(runs, folder, images=images, seed=seed)
    return {"page": str(folder / studies.PAGE), "key": str(folder / studies.KEY), "questions": number}


def count_votes(files: Sequence[Path], folder: Path | None) -> tuple[dict[str, Any], Table]:
    """Win rates and strengths of the runs of a study; its key is in `folder`, or next to the first file."""
    names, votes = studies.read_votes(files, (folder or files[0].parent) / studies.KEY)
    won = wins(votes, names)
    rates, strengths = win_rates(won, names), bradley_terry(won, names)
    table = Table(title=f"{len(votes)} votes", title_justify="left")
    for column in ("preferred", "over", "win rate", "95 % interval", "votes"):
        table.add_column(column)
    for pair in rates:
        reach = f"{pair.low:.3f} to {pair.high:.3f}"
        table.add_row(pair.first, pair.second, f"{pair.rate:.3f}", reach, str(pair.votes))
    for strength in strengths or ():
        reach = f"{strength.low:+.3f} to {strength.high:+.3f}"
        table.add_row(strength.name, "(strength)", f"{strength.log_strength:+.3f}", reach, "")
    data = {
        "votes": len(votes),
        "win_rates": [asdict(pair) for pair in rates],
        "strengths": None if strengths is None else [asdict(strength) for strength in strengths],
    }
    return data, table


def pairs_of_votes(files: Sequence[Path], folder: Path | None, prompts: Path | None) -> dict[str, Any]:
    """Write a study's `pairs.jsonl`; returns its place and the number of pairs."""
    lines: list[str] = []
    if prompts is not None:
        try:
            lines = [line for line in prompts.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"--prompts {prompts}: cannot be read as text ({error})") from None
    place, number = studies.write_pairs(files, folder or files[0].parent, lines)
    return {"pairs": str(place), "pairs_written": number}


def _gather(word: str, root: Path, display: Display) -> EvaluatedRun:
    path = Path(word)
    if (path / FILE).is_file():
        report = read_report(path)
        return EvaluatedRun(
            path.name, path, path / report.blocks, report, FeatureCache(root / "runs" / CACHE), {}
        )
    folder, about = run_folder_of(word, root=root)
    display.line(about)
    place = folder.path / EVALUATION
    if not (place / FILE).is_file():
        raise SfumatoError(f"run {folder.id} was not evaluated yet: `sfumato evaluate {folder.path}` does it")
    report = read_report(place)
    recipe = recipes.load(folder.path / "recipe.yaml")
    data = (folder.read_json("run.json") or {}).get("data_digest")
    cache = recipe.evaluate.cache or Path(recipe.storage) / CACHE
    return EvaluatedRun(
        name=folder.id,
        folder=place,
        blocks=place / report.blocks,
        report=report,
        cache=FeatureCache(cache),
        recipe=yaml.safe_load((folder.path / "recipe.yaml").read_text()),
        curves=_curves(recipe, folder, root, display),
        facts=_facts(recipe, folder),
        title=recipe.name,
        seed=recipe.seed,
        but_for_seed=f"{recipe.name} {recipe.model_copy(update={'seed': 0}).digest()} {data}",
    )


def _facts(recipe: Recipe, folder: RunFolder) -> dict[str, str]:
    trained = (folder.read_json("stages/train.json") or {}).get("result", {})
    facts = {"family": recipe.model.family}
    if "images" in trained:
        facts["images of training"] = f"{trained['images']:,}"
        facts["minutes of training"] = f"{trained['seconds'] / 60:.1f}"
    return facts


def _curves(recipe: Recipe, folder: RunFolder, root: Path, display: Display) -> dict[str, Curve]:
    """Figures of evaluations during training, from the run's folder.

    Losses, and figures of checkpoints that were evaluated by hand, come from MLflow, if it answers.
    """
    known = folder.read_json("run.json") or {}
    found: dict[str, list[Point]] = {}
    try:
        if recipe.tracking.enabled and "mlflow_run_id" in known:
            found = metric_history(known["mlflow_run_id"], recipe.tracking, root=root, wanted=_is_curve)
    except SfumatoError as error:
        display.note(f"{folder.id}: no training curves: {error}")
    start = min((point.seconds for points in found.values() for point in points), default=None)
    curves = {name.removeprefix("eval/"): _curve(points, start) for name, points in found.items()}
    return curves | _in_training(folder, start)


def _in_training(folder: RunFolder, start: float | None) -> dict[str, Curve]:
    points: dict[str, list[Point]] = {}
    for record in read_records(folder):
        for name, value in record.metrics.items():
            points.setdefault(name, []).append(Point(record.images, record.reached, value))
    return {name: _curve(found, start) for name, found in points.items()}


def _curve(points: Sequence[Point], start: float | None) -> Curve:
    first = points[0].seconds if start is None else start
    return Curve(
        [float(point.step) for point in points],
        [max(0.0, point.seconds - first) for point in points],
        [point.value for point in points],
    )


def _is_curve(name: str) -> bool:
    loss = name.startswith("train/") and name.endswith("/loss")
    figure = name.startswith("eval/") and name.count("/") == 1 and name != "eval/seconds_per_image"
    return loss or figure


def _terminal(compared: Sequence[Entry], rows: Sequence[tables.Row]) -> Table:
    table = Table(
        title="figures (interval), ± over seeds  * best  ≈ not told from the best", title_justify="left"
    )
    table.add_column("")
    for entry in compared:
        table.add_column(entry.name, overflow="fold")
    for row in rows:
        arrow = "↑" if row.higher_is_better else "↓"
        table.add_row(f"{row.metric} {arrow}", *(cell.text for cell in row.cells))
    reports = [[run.report for run in entry.runs] for entry in compared]
    seconds = [fmean(report.seconds_per_image for report in those) for those in reports]
    table.add_row("seconds an image", *(f"{value:.3g}" for value in seconds))
    passes = [fmean(report.evaluations_per_image for report in those) for those in reports]
    table.add_row("passes an image", *(f"{value:.4g}" if value else "–" for value in passes))
    return table
