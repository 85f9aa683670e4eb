"""`sfumato submit` and `sfumato jobs`: runs on a Ray cluster or on Kubernetes."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from sfumato.cli.arguments import AsJson, pairs
from sfumato.errors import ConfigError

if TYPE_CHECKING:
    from sfumato.runtime.jobs.cluster import Cluster
    from sfumato.runtime.jobs.command import Command
    from sfumato.runtime.jobs.places import Place
    from sfumato.runtime.jobs.submit import SubmitOptions

app = typer.Typer(name="jobs", help="Jobs on a Ray cluster or on Kubernetes.", no_args_is_help=True)
DETACHED = 130
HERE = "http://127.0.0.1:8265"

Address = Annotated[
    str, typer.Option(help="URL of the cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS", metavar="URL")
]
CaFile = Annotated[Path | None, typer.Option(help="Certificate authority (PEM file) for an https address.")]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.", show_default=False)]
OnKubernetes = Annotated[bool, typer.Option("--kubernetes", help="Submit a KubeRay RayJob with kubectl.")]
Namespace = Annotated[str, typer.Option(help="Kubernetes: the namespace.")]
Context = Annotated[str | None, typer.Option(help="Kubernetes: kubectl's context. Default: its current one.")]


def submit(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND [ARGUMENTS]...",
            help="run, train, evaluate, tune, pack, precompute, edit or augment, as on this machine.",
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
            help="Folder on the cluster, shared by its nodes, that relative paths start from. "
            "Kubernetes: where the volume is mounted (default /runs).",
        ),
    ] = None,
    secret: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable that must be set on the cluster; NAME=OTHER if it has another name "
            "there. Kubernetes: NAME=SECRET/KEY.",
        ),
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Environment variable that is not secret.")
    ] = None,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust", help="Allow families and components named by import path; their code is sent and run."
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the job.")] = False,
    ca_file: CaFile = None,
    kubernetes: OnKubernetes = False,
    namespace: Namespace = "sfumato",
    context: Context = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: image of head and workers.")] = None,
    claim: Annotated[str, typer.Option(help="Kubernetes: claim of a volume that all nodes share.")] = "runs",
    secrets_of: Annotated[
        list[str] | None,
        typer.Option(metavar="SECRET", help="Kubernetes: Secret whose keys become variables."),
    ] = None,
    token_secret: Annotated[
        str | None,
        typer.Option(help="Kubernetes: Secret with the cluster's token. Default: KubeRay creates one."),
    ] = None,
    memory: Annotated[str | None, typer.Option(help="Kubernetes: memory of a training pod.")] = None,
    service_account: Annotated[
        str, typer.Option(metavar="NAME", help="Kubernetes: account of the pods, with rights on the bucket.")
    ] = "ray-worker",
    deadline: Annotated[
        float,
        typer.Option(
            metavar="DAYS", min=0.001, help="Kubernetes: end an attempt that takes longer than this."
        ),
    ] = 14.0,
    node_selector: Annotated[
        list[str] | None, typer.Option(metavar="LABEL=VALUE", help="Kubernetes: nodes with GPUs to use.")
    ] = None,
    queue: Annotated[str | None, typer.Option(help="Kubernetes: Kueue's LocalQueue.")] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="CRON",
            help="Kubernetes: run it at these times, for example '0 3 * * *' every night (a RayCronJob).",
        ),
    ] = None,
    time_zone: Annotated[
        str, typer.Option(metavar="ZONE", help="Kubernetes: the time zone of --schedule.")
    ] = "Etc/UTC",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Kubernetes: print the manifests (YAML) and do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a command on a cluster: pack the recipe, check that there is room, send it, follow it.

    The exit status is the job's. Ctrl-C leaves the job running.
    """
    from sfumato.runtime.jobs import submit as submitting
    from sfumato.runtime.jobs.pods import PodSettings

    options = submitting.SubmitOptions(
        name=name,
        root=root or ("/runs" if kubernetes else None),
        secrets=tuple(secret or ()),
        environment=tuple(env or ()),
        trust=trust,
    )
    command = submitting.read(words or [], options)
    if not kubernetes:
        if dry_run:
            raise ConfigError("--dry-run is for --kubernetes")
        if schedule is not None:
            raise ConfigError("--schedule is for --kubernetes; elsewhere cron can call sfumato submit")
        _submit_to_ray(command, options, _cluster(address, ca_file), detach, as_json)
        return
    if image is None:
        raise ConfigError("--kubernetes needs the --image of head and workers (infra/images builds one)")
    assert options.root is not None
    pods = PodSettings(
        image=image,
        root=options.root,
        claim=claim,
        secret_sets=tuple(secrets_of or ()),
        node_selector=pairs(node_selector or []),
        memory=memory,
        account=service_account,
    )
    from sfumato.runtime.jobs import on_kubernetes
    from sfumato.runtime.jobs.kubectl import Kubectl
    from sfumato.runtime.jobs.manifest import Schedule
    from sfumato.runtime.jobs.places import OnKubernetes

    settings = on_kubernetes.settings_of(
        options,
        namespace=namespace,
        queue=queue,
        token_secret=token_secret,
        pods=pods,
        deadline_days=deadline,
        schedule=None if schedule is None else Schedule(schedule, time_zone),
    )
    if dry_run:
        import yaml

        label = on_kubernetes.default_name(command, options, settings)
        made = on_kubernetes.render(command, options, settings, project=Path.cwd(), name=label)
        sys.stdout.write(yaml.safe_dump_all(made, sort_keys=False))
        return
    kubectl = Kubectl(namespace, context)
    sent = on_kubernetes.send(command, options, settings, kubectl, project=Path.cwd())
    if schedule is not None:
        _say(f"RayCronJob {sent} in namespace {namespace} starts it at {schedule} {time_zone}")
        print(json.dumps({"job": sent, "namespace": namespace}) if as_json else sent)
        return
    _say(f"RayJob {sent} is in namespace {namespace}")
    _sent(OnKubernetes(kubectl), sent, {"namespace": namespace}, detach, as_json)


@app.command("list")
def list_jobs(
    address: Address = HERE,
    ca_file: CaFile = None,
    kubernetes: OnKubernetes = False,
    namespace: Namespace = "sfumato",
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """List all jobs known to the cluster."""
    from sfumato.runtime.jobs.cluster import LINE, line_of

    found = _place(address, ca_file, kubernetes, namespace, context).jobs()
    if as_json:
        print(json.dumps([asdict(job) for job in found]))
        return
    rows = [line_of(job, time.time()) for job in found]
    filled = [name for name in LINE if name in ("job", "status", "time") or any(row[name] for row in rows)]
    table = Table(*filled)
    for row in rows:
        table.add_row(*(row[name] for name in filled))
    Console(markup=False).print(table)


@app.command()
def logs(job: JobName, address: Address = HERE, ca_file: CaFile = None) -> None:
    """Print the output of a job on a Ray cluster so far (Kubernetes: kubectl logs job/JOB)."""
    cluster = _cluster(address, ca_file)
    sys.stdout.write(cluster.logs(cluster.job(job).name))


@app.command()
def attach(
    job: JobName,
    address: Address = HERE,
    ca_file: CaFile = None,
    kubernetes: OnKubernetes = False,
    namespace: Namespace = "sfumato",
    context: Context = None,
    as_json: AsJson = False,
) -> None:
    """Follow a job until it ends. The exit status is the job's."""
    place = _place(address, ca_file, kubernetes, namespace, context)
    _follow(place, place.job(job).name, as_json)


@app.command()
def stop(
    job: JobName,
    address: Address = HERE,
    ca_file: CaFile = None,
    kubernetes: OnKubernetes = False,
    namespace: Namespace = "sfumato",
    context: Context = None,
) -> None:
    """Stop a job gracefully; submitting the same command again resumes from its last checkpoint."""
    _place(address, ca_file, kubernetes, namespace, context).stop(job)
    print(f"job {job} is stopping")


@app.command(hidden=True)
def start(order: Annotated[Path, typer.Argument(help="The job's instructions, in its package.")]) -> None:
    """Runs a submitted job's command; called by the cluster, on the cluster."""
    from sfumato import cli
    from sfumato.runtime.jobs.start import prepare

    started = prepare(order, environment=os.environ)
    _say(*started.notes)
    sys.argv = ["sfumato", *started.words]
    cli.main()


def _submit_to_ray(
    command: Command, options: SubmitOptions, cluster: Cluster, detach: bool, as_json: bool
) -> None:
    from sfumato.runtime.jobs import submit as submitting
    from sfumato.runtime.jobs.places import OnRay

    sent, notes = submitting.submit(command, options, cluster, project=Path.cwd())
    _say(*notes, f"job {sent} is at {cluster.address}")
    _sent(OnRay(cluster), sent, {"address": cluster.address}, detach, as_json)


def _sent(place: Place, name: str, where: dict[str, str], detach: bool, as_json: bool) -> None:
    """Follow what was submitted, or say how to."""
    if not detach:
        _follow(place, name, as_json)
    print(json.dumps({"job": name, **where}) if as_json else place.attach_command(name))


def _place(
    address: str, ca_file: Path | None, kubernetes: bool, namespace: str, context: str | None
) -> Place:
    """Where the options say that the jobs are."""
    from sfumato.runtime.jobs.kubectl import Kubectl
    from sfumato.runtime.jobs.places import OnKubernetes, OnRay

    return OnKubernetes(Kubectl(namespace, context)) if kubernetes else OnRay(_cluster(address, ca_file))


def _cluster(address: str, ca_file: Path | None) -> Cluster:
    from sfumato.runtime.jobs.cluster import Cluster

    return Cluster(address, ca_file=ca_file)


def _follow(place: Place, name: str, as_json: bool) -> None:
    """Follow a job until it ends and exit with its status; Ctrl-C leaves it running."""
    from sfumato.runtime.jobs.follow import Output, ended

    try:
        with Output() as output:
            job = place.follow(name, output)
    except KeyboardInterrupt:
        _say(f"detached; job {name} continues: {place.attach_command(name)}")
        sys.exit(DETACHED)
    status, line = ended(job)
    _say(line)
    if as_json:
        print(json.dumps(asdict(job)))
    sys.exit(status)


def _say(*lines: str) -> None:
    for line in lines:
        Console(stderr=True, highlight=False).print(line, markup=False, soft_wrap=True)
