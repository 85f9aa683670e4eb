"""`sfumato tune`: search over the fields named under a recipe's `tune:`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sfumato.cli.arguments import AsJson, NewRecord, Overrides, RecipeFile
from sfumato.errors import ConfigError


def tune(
    recipe: RecipeFile,
    overrides: Overrides = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume this recipe's sweep; keeps its finished trials.")
    ] = False,
    resume_if_any: Annotated[
        bool, typer.Option("--resume-if-any", help="Resume this recipe's sweep if there is one, or start it.")
    ] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start a new sweep, even if there is one.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every trial, list them, and start nothing.")
    ] = False,
    new_record: NewRecord = False,
    as_json: AsJson = False,
) -> None:
    """Search for better values of a recipe's fields, many trials on Ray Tune."""
    from sfumato import recipe as recipes
    from sfumato.runtime.runs.display import Display
    from sfumato.runtime.sweep import sweep

    if resume + resume_if_any + fresh > 1:
        raise ConfigError(
            "--resume and --resume-if-any resume a sweep, --fresh starts another: give only one of them"
        )
    content = recipes.read(recipe, overrides or [])
    display = Display()  # its live bar is not opened: the sweep has its own live table
    if dry_run:
        found = sweep.planned(content, display=display, root=Path.cwd())
        print(json.dumps(found) if as_json else _listed(found))
        return
    result = sweep.run(
        content,
        display=display,
        root=Path.cwd(),
        resume="if any" if resume_if_any else resume,
        fresh=fresh,
        new_record=new_record,
    )
    if as_json:
        print(json.dumps(result))
    else:
        _show(result, Console())


def _listed(found: dict[str, Any]) -> str:
    from sfumato.tuning import table
    from sfumato.tuning.journal import Trial

    fields = list(dict.fromkeys(name for values in found["trials"] for name in values))
    lines = [f"{n:>4}  {table.line(Trial(n, values), fields)}" for n, values in enumerate(found["trials"])]
    if found["learns"]:
        lines.append("      the search chooses the values of the other trials as it learns")
    return "\n".join(lines)


def _show(result: dict[str, Any], console: Console) -> None:
    from sfumato.tuning import table
    from sfumato.tuning.journal import Journal

    trials = Journal(Path(result["folder"]) / "journal.jsonl").in_order()
    fields = list(dict.fromkeys(name for trial in trials for name in trial.values))
    console.print(table.table(trials, fields, title="", metric=result["metric"], mode=result["mode"]))
    best = result["best"]
    console.print(
        f"best      trial {best['trial']}, {result['metric']} {best['value']:.4g} at {best['images']:,} "
        "images",
        highlight=False,
    )
    if equal := result.get("at_equal_images"):
        console.print(
            f"          at {equal['images']:,} images: the recipe {equal['first']:.4g}, the best trial "
            f"{equal['best']:.4g}",
            highlight=False,
        )
    stopped = sum(trial["status"] == "stopped" for trial in result["trials"])
    console.print(
        f"trials    {len(trials)}, of which {stopped} stopped early; {result['images']:,} images in "
        f"{result['seconds']:.0f} s",
        highlight=False,
    )
    for trial in result["trials"]:
        if trial["status"] == "failed":
            console.print(
                f"failed    trial {trial['trial']}: {trial['reason']}", highlight=False, markup=False
            )
    console.print(f"recipe    {best['recipe']}", highlight=False, markup=False, soft_wrap=True)
    console.print("compare   sfumato ui", highlight=False)
