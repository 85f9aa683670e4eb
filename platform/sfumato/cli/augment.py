"""The command that fills up the rare classes of a data set with samples."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sfumato.cli.arguments import AsJson, Base, Trust, open_display, show
from sfumato.errors import ConfigError


def augment(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A packed data set with classes.")],
    dest: Annotated[Path, typer.Argument(metavar="DEST", help="Folder of the set of samples; a new one.")],
    by: Annotated[str, typer.Option(metavar="RUN", help="A class-conditional run on this data.")],
    class_balance: Annotated[
        bool, typer.Option("--class-balance", help="Draw for every class what it lacks of the largest.")
    ] = False,
    to: Annotated[
        int | None, typer.Option(min=1, help="Draw for every class what it lacks of so many images.")
    ] = None,
    agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Least probability of the class, by a classifier of DATA.")
    ] = 0.8,
    nearest: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Refuse copies: samples nearer to a real image than this share of them are."
        ),
    ] = 0.01,
    farthest: Annotated[
        float,
        typer.Option(min=0, max=1, help="Refuse samples farther from all than this share of real ones is."),
    ] = 0.99,
    tries: Annotated[int, typer.Option(min=1, help="Candidates that are drawn at most for an image.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Sample i of a class depends on it and on i.")] = 0,
    seen: Annotated[
        int | None, typer.Option(min=1, help="Images that the classifier sees in training.")
    ] = None,
    actors: Annotated[int, typer.Option(min=0, help="Ray actors that draw; 0 draws in this process.")] = 0,
    gpus_per_actor: Annotated[float, typer.Option(min=0, help="GPUs of an actor.")] = 0.0,
    device: Annotated[str, typer.Option(help="Where the network runs: cpu, cuda; auto.")] = "auto",
    base: Base = None,
    trust: Trust = False,
    as_json: AsJson = False,
) -> None:
    """Draw samples for the rare classes of a data set, judge them, and pack them; mix them in by data.mix."""
    from sfumato.evaluation.audits.accepted import Limits
    from sfumato.runtime.commands import augment as commands
    from sfumato.runtime.commands.edit import Actors

    if class_balance == (to is not None):
        raise ConfigError(
            "give one of --class-balance and --to, which say how many images a class is to have"
        )
    if nearest >= farthest:
        raise ConfigError(f"--nearest: {nearest:g} is not below --farthest, {farthest:g}")
    with open_display() as display:
        report = commands.augment(
            data,
            dest,
            by=by,
            to=to,
            tries=tries,
            limits=Limits(agreement, nearest, farthest),
            seed=seed,
            seen=seen,
            actors=Actors(actors, gpus_per_actor=gpus_per_actor),
            device=device,
            base=base,
            trust=trust,
            root=Path.cwd(),
            display=display,
        )
    show(report, as_json, report["folder"])
