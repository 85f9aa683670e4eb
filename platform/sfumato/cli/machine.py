"""Commands about this machine: its MLflow UI, its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sfumato.cli.arguments import AsJson


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    recipe: Annotated[Path | None, typer.Option(help="Recipe whose tracking.uri to open.")] = None,
) -> None:
    """Open the MLflow UI of this folder's runs, on this machine only."""
    from sfumato import recipe as recipes
    from sfumato.tracking.config import TrackingSettings
    from sfumato.tracking.ui import serve

    settings = recipes.load(recipe).tracking if recipe else TrackingSettings()
    serve(settings, root=Path.cwd(), port=port)


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, memory, disk, GPU, Ray."""
    from sfumato.runtime import doctor as examination

    findings = examination.examine(Path.cwd())
    if as_json:
        print(json.dumps([{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings]))
    else:
        marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]-[/]"}
        for finding in findings:
            Console(highlight=False).print(
                f"{marks[finding.ok]} {finding.name:<14} {finding.detail}", soft_wrap=True
            )
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)
