"""`sfumato compare`: runs side by side, blind studies, votes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sfumato.cli.arguments import AsJson, open_display, show
from sfumato.errors import ConfigError


def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN RUN ...", help="Evaluated runs, or folders with a report.json.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a self-contained page (HTML) to this file.")] = None,
    study: Annotated[
        Path | None,
        typer.Option(
            help="Write a blind study of the runs' samples to this folder; with --votes: the study's folder."
        ),
    ] = None,
    votes: Annotated[
        list[Path] | None,
        typer.Option(help="Count a study's votes; repeat the option for each voter's file."),
    ] = None,
    images: Annotated[
        int, typer.Option(min=1, help="With --study: how many images of each run to ask about.")
    ] = 32,
    seed: Annotated[int, typer.Option(min=0, help="With --study: order and sides.")] = 0,
    group_seeds: Annotated[
        bool,
        typer.Option(
            "--group-seeds",
            help="One entry, with mean and spread, for runs whose recipes differ in their seed alone.",
        ),
    ] = False,
    pairs: Annotated[
        bool,
        typer.Option(
            "--pairs",
            help="With --votes: also write pairs.jsonl, what was preferred to what, for sfumato pack and "
            "model.preference.",
        ),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="With --pairs: the prompts of the samples, a line each, in their order."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs: a table with intervals and tests, a page, or a blind study."""
    from sfumato.runtime.commands import compare as comparing

    if votes:
        if runs:
            raise ConfigError("--votes counts the votes of a study and takes no runs")
        data, table = comparing.count_votes(votes, study)
        if pairs:
            data |= comparing.pairs_of_votes(votes, study, prompts)
        _print(data, table, as_json)
        if pairs and not as_json:
            print(data["pairs"])
        if not as_json and data["strengths"] is None:
            Console(stderr=True).print(
                "no Bradley-Terry strengths: one run won or lost every vote", highlight=False
            )
        return
    if pairs or prompts is not None:
        raise ConfigError("--pairs and --prompts go with --votes; name the files of votes")
    with open_display() as display:
        words = runs or []
        if study is not None:
            made = comparing.study(words, study, images=images, seed=seed, root=Path.cwd(), display=display)
            show(made, as_json, f"{made['page']}  (keep {made['key']} to yourself)")
            return
        data, table = comparing.compare(
            words, out=out, root=Path.cwd(), display=display, group_seeds=group_seeds
        )
    _print(data, table, as_json)
    if out is not None and not as_json:
        print(out)


def _print(data: object, table: object, as_json: bool) -> None:
    if as_json:
        print(json.dumps(data))
    else:
        Console(markup=False).print(table)
