"""The command line: parses arguments, calls one function per command, and reports errors in one line.

Standard output carries what a command returns (a table, JSON, a path), standard error its progress. A
command is a function in a module of this package, listed in `_COMMANDS` in the order in which the help
shows it.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from sfumato import __version__
from sfumato.cli import (
    augment,
    compare,
    data,
    detector,
    edit,
    ema,
    jobs,
    machine,
    models,
    plan,
    precompute,
    provenance,
    recipes,
    runs,
    tune,
)
from sfumato.cli.plain_help import PlainGroup
from sfumato.core.drafts import result_of
from sfumato.errors import Interrupted, SfumatoError, WorkersLost
from sfumato.runtime.cluster import terminate
from sfumato.tracking.redact import clean_uri

app = typer.Typer(
    name="sfumato",
    cls=PlainGroup,
    help="Train, evaluate, sample and compare generative image models on Ray, from one recipe file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_COMMANDS = (
    runs.run,
    runs.train,
    runs.evaluate,
    plan.plan,
    tune.tune,
    compare.compare,
    models.sample,
    edit.edit,
    augment.augment,
    models.export,
    models.card,
    models.membership,
    ema.ema,
    data.pack,
    precompute.precompute,
    jobs.submit,
    machine.ui,
    machine.doctor,
)
_GROUPS = (recipes.app, data.app, detector.app, provenance.app, jobs.app)
for _command in _COMMANDS:
    app.command()(_command)
for _group in _GROUPS:
    app.add_typer(_group)

# Click's UsageError, from whichever copy of click this typer includes.
_UsageError: type[Any] = typer.BadParameter.__bases__[0]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(f"sfumato {__version__}")
        raise typer.Exit


_ROOM, _RIGHTS = (
    "make room there, or write elsewhere",
    "choose another place, or change the rights of this one",
)
_OF_THE_MACHINE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "the disk's format or a limit (ulimit -f) takes no larger file; write elsewhere",
    errno.EROFS: _RIGHTS,
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "is the disk failing?",
}
"""A full, read-only or failing disk, a folder that is not ours: nothing that we do wrong, and what helps."""


def main() -> NoReturn:
    """Run a command; errors meant for the user become lines on standard error, without a traceback."""
    # A recipe may name the user's own family, defined next to it; Ray passes the path to its workers.
    sys.path.append(os.getcwd())
    try:
        with terminate.like_ctrl_c():
            status = app(standalone_mode=False)  # an exit status where typer ended the command itself
    except SfumatoError as error:
        if isinstance(error, WorkersLost) and terminate.heard():
            _end_of_an_interrupted()  # SIGTERM went to the workers, too
        _complain(str(error))
        sys.exit(error.exit_status)
    except OSError as error:
        if os.environ.get("SFUMATO_DEBUG") or error.errno not in _OF_THE_MACHINE:
            _end_of_a_defect(error)
        file = result_of(str(error.filename or "a file that was to be written"))
        _complain(f"{file}: {error.strerror}; {_OF_THE_MACHINE[error.errno]}")
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the end of the process, which says what it was
        if isinstance(error, _UsageError):
            _complain(error.format_message())
            sys.exit(2)
        if (ended := _cluster_ended(error)) is not None:
            if terminate.heard():
                _end_of_an_interrupted()
            _complain(ended)
            sys.exit(1)
        _end_of_a_defect(error)
    if status == Interrupted.exit_status:
        _end_of_an_interrupted()
    sys.exit(status or 0)


def _end_of_an_interrupted() -> NoReturn:
    _complain(f"interrupted; nothing half-written is kept, and {_again(sys.argv[1:])}")
    sys.exit(Interrupted.exit_status)


_RESUMING = {"train", "tune", "run", "evaluate", "edit", "pack", "precompute"}
"""Commands that keep what they have finished."""


def _again(words: list[str]) -> str:
    """What the interrupted command does if it is given again."""
    command = next((word for word in words if not word.startswith("-")), "")
    if command not in _RESUMING:
        return "the same command starts anew"
    if command == "tune" and not {"--resume", "--resume-if-any"} & set(words):
        how = " with --resume instead of --fresh" if "--fresh" in words else " with --resume"
    else:
        how = " without --fresh" if "--fresh" in words else ""
    return f"the same command{how} resumes from here"


def _cluster_ended(error: Exception) -> str | None:
    """The line for a command whose cluster was taken from under it; None for any other error."""
    known = sys.modules.get("ray.exceptions")
    kinds = (
        "RayActorError",
        "NodeDiedError",
        "LocalRayletDiedError",
        "WorkerCrashedError",
        "ObjectLostError",
    )
    if known is None or not isinstance(error, tuple(getattr(known, kind) for kind in kinds)):
        return None
    return (
        f"Ray's processes ended under this command ({type(error).__name__}); was one of them killed, or "
        "memory short? The same command resumes from the newest checkpoint; Ray's logs are in the run's logs/"
    )


def _end_of_a_defect(error: Exception) -> NoReturn:
    if os.environ.get("SFUMATO_DEBUG"):
        raise error
    reason = str(error).strip().splitlines()[:1]
    _complain(
        ": ".join([type(error).__name__, *reason])
        + " (a defect of Sfumato, not of your input; SFUMATO_DEBUG=1 shows where)"
    )
    sys.exit(1)


def _complain(text: str) -> None:
    console = Console(stderr=True, highlight=False)
    for line in clean_uri(text).splitlines():  # logs of jobs and CI keep what is said here
        console.print(f"[red]error:[/] {escape(line)}", soft_wrap=True)
