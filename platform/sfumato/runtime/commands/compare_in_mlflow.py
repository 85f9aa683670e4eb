"""`tracking.compare: true`: the comparison page of an experiment, renewed whenever one of its runs ends."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from sfumato.errors import SfumatoError
from sfumato.evaluation.compare import table as tables
from sfumato.evaluation.compare.entries import entries
from sfumato.evaluation.compare.page import report_page
from sfumato.evaluation.report import FILE
from sfumato.runtime.commands.compare import EVALUATION, gather
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.session import Session
from sfumato.tracking.champion import COMPARABLE
from sfumato.tracking.comparison import comparable_runs, put_page

MOST = 8
"""Runs on the page: the newest ones."""


def update(session: Session) -> None:
    """Put this run, and the newest ones measured alike whose folders are here, on the experiment's page.

    A page that cannot be made is a note, since the run itself is complete.
    """
    settings, display = session.recipe.tracking, session.display
    if not (settings.enabled and settings.compare):
        return
    try:
        folders = _folders(session)
        if len(folders) < 2:
            display.note("tracking.compare: there is no other run yet that was measured alike")
            return
        silent = Display(Console(file=io.StringIO()))
        runs = gather([str(folder) for folder in folders], root=session.root, display=silent)
        compared = entries(runs, group_seeds=True)
        page = report_page(compared, tables.rows(compared, comparable=True))
        names = [run.name for run in runs]
        put_page(settings, page, names, root=session.root, experiment_id=session.tracker.experiment_id)
        display.line(f"compare   {len(names)} runs, in MLflow: run `comparison` of {settings.experiment}")
    except SfumatoError as error:
        display.note(f"tracking.compare: no page this time: {error}")


def _folders(session: Session) -> list[Path]:
    from sfumato.evaluation.report import read_report
    from sfumato.runtime.commands.evaluate import comparable

    here = session.folder.path
    alike = comparable(read_report(here / EVALUATION))
    found = comparable_runs(
        session.recipe.tracking, root=session.root, tag=COMPARABLE, value=alike, limit=10 * MOST
    )
    folders = [here, *(Path(run.tags.get("sfumato.folder", "")) for run in found)]
    there = [folder for folder in dict.fromkeys(folders) if (folder / EVALUATION / FILE).is_file()]
    return there[:MOST]
