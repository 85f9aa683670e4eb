"""Commands that run a recipe: all of it, or one stage."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sfumato.cli.arguments import AsJson, Fresh, Overrides, RecipeFile, open_session


def run(
    recipe: RecipeFile, overrides: Overrides = None, fresh: Fresh = False, as_json: AsJson = False
) -> None:
    """Pack, train, evaluate and register; stages that are done are skipped, unfinished ones go on."""
    from sfumato.runtime import report, stages

    with open_session(recipe, overrides, fresh) as session:
        results = stages.run(session)
    report.show(session, results, as_json=as_json)


def train(
    recipe: RecipeFile, overrides: Overrides = None, fresh: Fresh = False, as_json: AsJson = False
) -> None:
    """Train a recipe's model; goes on from its newest checkpoint."""
    from sfumato.runtime import report, stages

    with open_session(recipe, overrides, fresh) as session, stages.cluster_to_train(session):
        results = {"train": stages.train(session)}
    report.show(session, results, as_json=as_json)


def evaluate(
    target: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="A recipe file or a run.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure a trained run against its data; done before with the same settings, it is only shown."""
    from sfumato.runtime import report, resolve, stages

    path = Path(target)
    if path.suffix not in (".yaml", ".yml"):
        folder, about = resolve.run_folder_of(target, root=Path.cwd())
        Console(stderr=True).print(about, highlight=False)
        path = folder.path / "recipe.yaml"
    with open_session(path, overrides, fresh=False) as session, stages.cluster_to_evaluate(session):
        results = {"evaluate": stages.evaluate(session)}
    report.show(session, results, as_json=as_json)
