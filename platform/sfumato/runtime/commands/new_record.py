"""`--new-record`: rebuilds the missing MLflow record of a run from what its folder still holds."""

from __future__ import annotations

from collections.abc import Iterator

from sfumato.evaluation.report import FILE, read_report
from sfumato.runtime.commands.stages import record_evaluation
from sfumato.runtime.runs.session import Session
from sfumato.runtime.training.validation import EvaluationRecord, read_records
from sfumato.sampling.model_files import CARD
from sfumato.sampling.model_folder import read_model_card
from sfumato.tracking.champion import has_version


def record_again(session: Session) -> None:
    """Record previews and evaluations so far; register the model again if its version is missing too."""
    folder, tracker = session.folder, session.tracker
    for path in sorted((folder.path / "previews").glob("images-*.png")):
        tracker.image("samples", path.read_bytes(), step=int(path.stem.removeprefix("images-")))
    for record in read_records(folder):
        own = record.samples == session.recipe.evaluate.samples
        tracker.metrics(
            dict(_figures(record, "eval" if own else f"eval_{record.samples}")), step=record.images
        )
    if (folder.path / "evaluation" / FILE).is_file() and (folder.model / CARD).is_file():
        images = read_model_card(folder.model, trust=True).progress.images
        record_evaluation(session, read_report(folder.path / "evaluation"), images)
    _forget_version(session)
    session.display.note(
        f"recorded again as {tracker.run_id}, with the previews and evaluations in the run's folder, but "
        "without the old training curves"
    )


def _figures(record: EvaluationRecord, prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.metrics.items():
        yield f"{prefix}/{name}", value
    for name, found in record.intervals.items():
        for end in ("low", "high"):
            yield f"{prefix}/{name}/{end}", float(found[end])


def _forget_version(session: Session) -> None:
    """The registry may be missing along with the record: then `register` counts as unfinished."""
    done = session.folder.read_json("stages/register.json")
    if done is None:
        return
    found = done["result"]
    if not has_version(session.recipe.tracking, found["name"], str(found["version"]), root=session.root):
        session.folder.forget_stage("register")
