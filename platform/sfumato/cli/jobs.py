"""`sfumato submit` and `sfumato jobs`: runs on a Ray cluster or on Kubernetes."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from sfumato.cli.arguments import AsJson
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.runtime.jobs.cluster import Cluster

app = typer.Typer(name="jobs", help="Jobs on a Ray cluster.", no_args_is_help=True)
DETACHED = 130

Address = Annotated[
    str,
    typer.Option(help="The cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS", metavar="URL"),
]
HERE = "http://127.0.0.1:8265"
CaFile = Annotated[
    Path | None, typer.Option(help="Certificate authority (PEM) of an https address with its own.")
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.", show_default=False)]


def submit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND RECIPE [KEY=VALUE]...",
            help="run, train or evaluate, as on this machine.",
            show_default=False,
        ),
    ] = None,
    address: Address = HERE,
    name: Annotated[
        str | None, typer.Option(help="The job's name. Default: the run's, with a number.")
    ] = None,
    root: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder on the cluster, shared by its nodes, that relative places start from.",
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable that has to be set on the cluster (or NAME=OTHER there).",
        ),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment variable that is no secret.")
    ] = None,
    trust: Annotated[
        bool, typer.Option("--trust", help="Run the module of a family that is named by import path.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job.")] = False,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Run a command on a cluster: pack the recipe, check that there is room, send it, follow it.

    The exit status is the job's. Ctrl-C leaves the job alone.
    """
    from sfumato.runtime.jobs import submit as submitting
    from sfumato.runtime.jobs.cluster import Cluster
    from sfumato.runtime.jobs.follow import attach_command

    options = submitting.Options(
        name=name, root=root, secrets=tuple(secret or ()), environment=tuple(env or ()), trust=trust
    )
    command = submitting.read(words or [], options)
    cluster = Cluster(address, ca_file=ca_file)
    sent, notes = submitting.submit(command, options, cluster, project=Path.cwd())
    _say(*notes, f"job {sent} is at {address}")
    if not detach:
        _follow(cluster, sent, as_json)
    print(json.dumps({"job": sent, "address": address}) if as_json else attach_command(address, sent))


@app.command("list")
def list_jobs(address: Address = HERE, ca_file: CaFile = None, as_json: AsJson = False) -> None:
    """All jobs that the cluster remembers."""
    from sfumato.runtime.jobs.submit import line_of

    found = _cluster(address, ca_file).jobs()
    if as_json:
        print(json.dumps([asdict(job) for job in found]))
        return
    table = Table("job", "status", "time", "command")
    for job in found:
        table.add_row(*line_of(job, time.time()).values())
    Console().print(table)


@app.command()
def logs(job: JobName, address: Address = HERE, ca_file: CaFile = None) -> None:
    """What a job has said so far."""
    cluster = _cluster(address, ca_file)
    sys.stdout.write(cluster.logs(cluster.job(job).name))


@app.command()
def attach(job: JobName, address: Address = HERE, ca_file: CaFile = None, as_json: AsJson = False) -> None:
    """Follow a job to its end. The exit status is the job's."""
    cluster = _cluster(address, ca_file)
    _follow(cluster, cluster.job(job).name, as_json)


@app.command()
def stop(job: JobName, address: Address = HERE, ca_file: CaFile = None) -> None:
    """End a job in an orderly way; submitting the same command again goes on from its last checkpoint."""
    cluster = _cluster(address, ca_file)
    known = cluster.job(job)
    if known.over or not cluster.stop(job):
        raise ConfigError(f"job {job!r} is over already (status {cluster.job(job).status})")
    print(f"job {job} is stopping")


@app.command(hidden=True)
def start(order: Annotated[Path, typer.Argument(help="The job's order, in its package.")]) -> None:
    """Run on the cluster, by the cluster: the command that a submitted job stands for."""
    from sfumato import cli
    from sfumato.runtime.jobs.start import prepare

    started = prepare(order, environment=os.environ)
    _say(*started.notes)
    sys.argv = ["sfumato", *started.words]
    cli.main()


def _cluster(address: str, ca_file: Path | None) -> Cluster:
    from sfumato.runtime.jobs.cluster import Cluster

    return Cluster(address, ca_file=ca_file)


def _follow(cluster: Cluster, name: str, as_json: bool) -> NoReturn:
    from sfumato.runtime.jobs.follow import Output, attach_command, ended, follow

    try:
        with Output() as output:
            job = follow(cluster, name, output)
    except KeyboardInterrupt:
        _say(f"detached; job {name} goes on: {attach_command(cluster.address, name)}")
        sys.exit(DETACHED)
    status, line = ended(job)
    _say(line)
    if as_json:
        print(json.dumps(asdict(job)))
    sys.exit(status)


def _say(*lines: str) -> None:
    for line in lines:
        Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)
