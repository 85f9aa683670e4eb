"""Commands about this machine: its MLflow UI, its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from sfumato.cli.arguments import AsJson


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000,
    recipe: Annotated[Path | None, typer.Option(help="Open the tracking.uri of this recipe.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; any but loopback needs --accounts.")
    ] = "127.0.0.1",
    accounts: Annotated[
        Path | None, typer.Option(metavar="FILE.ini", help="Ask for a password: MLflow's basic_auth.ini.")
    ] = None,
) -> None:
    """Open the MLflow UI of this folder's runs; reachable from other machines only with --accounts."""
    from sfumato import recipe as recipes
    from sfumato.tracking.config import TrackingSettings
    from sfumato.tracking.exposure import Accounts
    from sfumato.tracking.ui import serve

    settings = recipes.load(recipe).tracking if recipe else TrackingSettings()
    known = Accounts.load(accounts) if accounts else None
    serve(settings, root=Path.cwd(), port=port, host=host, accounts=known)


def doctor(as_json: AsJson = False) -> None:
    """Check this machine: packages, memory, disk, GPU, Ray."""
    from sfumato.runtime.commands import doctor as examination

    findings = examination.examine(Path.cwd())
    if as_json:
        print(json.dumps([{"name": f.name, "ok": f.ok, "detail": f.detail} for f in findings]))
    else:
        marks = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[dim]-[/]"}
        for finding in findings:
            Console(highlight=False).print(
                f"{marks[finding.ok]} {finding.name:<14} {escape(finding.detail)}", soft_wrap=True
            )
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(1)
