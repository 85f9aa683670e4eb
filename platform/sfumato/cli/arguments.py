"""Shared by the commands: their arguments, opening a session, and printing results."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.runtime.runs.display import Display
    from sfumato.runtime.runs.session import Session

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Overrides, for example train.images=10000.", show_default=False
    ),
]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's name (the newest of that name), its MLflow id, its folder, or a checkpoint.",
        show_default=False,
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="PLACE",
        help="Where the base of an adapter is, if it is no longer where it was in training.",
        show_default=False,
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Allow classes named by import path; loading them runs their modules."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Fresh = Annotated[
    bool,
    typer.Option("--fresh", help="Start a new run even if this recipe has one. Without it: the newest run."),
]

TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over",
        help="Work on the run even if another process seems to; that one stops at its next report.",
    ),
]

NewRecord = Annotated[
    bool,
    typer.Option(
        "--new-record",
        help="Create a new MLflow record if the run's old one is missing; its checkpoints are kept.",
    ),
]


@contextlib.contextmanager
def open_session(
    recipe: Path,
    overrides: list[str] | None,
    *,
    fresh: bool = False,
    at: Path | None = None,
    keep_recipe: bool = False,
    new_record: bool = False,
    take_over: bool = False,
    trains: bool = False,
) -> Iterator[Session]:
    """The session of a recipe, or of the run in the folder `at`; `trains`: its workers are made ready."""
    from sfumato import recipe as recipes
    from sfumato.runtime.cluster import forking, ray_cluster
    from sfumato.runtime.commands import new_record as records
    from sfumato.runtime.runs import moments
    from sfumato.runtime.runs import session as sessions

    loaded = recipes.load(recipe, overrides or [])
    moments.mark("recipe read")
    if new_record and not loaded.tracking.enabled:
        raise ConfigError(
            "--new-record and tracking.enabled=false contradict each other: give only one of them"
        )
    with (
        ray_cluster.workers_ready(forking.TRAINING) if trains else contextlib.nullcontext(),
        open_display() as display,
        sessions.open_session(
            loaded,
            display,
            root=Path.cwd(),
            fresh=fresh,
            at=at,
            keep_recipe=keep_recipe,
            new_record=new_record,
            take_over=take_over,
        ) as session,
    ):
        if new_record:
            records.record_again(session)
        yield session


def open_display() -> Display:
    from sfumato.runtime.runs.display import Display

    return Display()


def pairs(items: list[str]) -> dict[str, str]:
    return dict(values(items))


def structured(items: list[str]) -> dict[str, Any]:
    """The same, with lists and mappings read as YAML: `guide={run: small}`."""
    return {key: _read(key, value) if value[:1] in ("[", "{") else value for key, value in values(items)}


def _read(key: str, value: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{key}: {value!r} is not YAML: {reason}; write {key}='{{name: value}}'") from error


def values(items: list[str]) -> list[tuple[str, str]]:
    """The pairs in the order given; a key may appear several times."""
    found = []
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"{item!r} is not of the form key=value")
        found.append((key, value))
    return found


def show(result: dict[str, Any], as_json: bool, text: str) -> None:
    print(json.dumps(result) if as_json else text)
