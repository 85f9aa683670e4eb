"""Quality against alignment over guidance: which evaluations make a line, and that the page draws it."""

from __future__ import annotations

from pathlib import Path

from sfumato.evaluation.compare.entries import Entry
from sfumato.evaluation.compare.guidance import Point, over_guidance, trade_offs
from sfumato.evaluation.compare.page import report_page
from sfumato.evaluation.compare.runs import EvaluatedRun
from sfumato.evaluation.compare.table import rows
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.report import EvaluationReport


def run(name: str, model: str, guidance: float | None, fd: float, retrieval: float) -> EvaluatedRun:
    report = EvaluationReport(
        metrics={"fd": fd, "retrieval": retrieval},
        details={},
        features={},
        higher_is_better={"fd": False, "retrieval": True},
        samples=100,
        reference_samples=50,
        reference_digest="r",
        seed=0,
        seconds=1.0,
        seconds_per_image=0.1,
        preview=None,
        model=model,
        sampling={} if guidance is None else {"guidance": guidance},
    )
    return EvaluatedRun(name, Path("none"), Path("none"), report, FeatureCache(Path("none")), {})


RUNS = [
    run("flow-g4", "a", 4, 30.0, 0.8),
    run("flow-g1", "a", 1.0, 10.0, 0.4),
    run("ddpm 1", "b", 1.0, 12.0, 0.3),
    run("ddpm 2", "b", 2.0, 11.0, 0.5),
    run("images", "", None, 5.0, 0.9),
]


def test_evaluations_of_one_model_are_a_line_by_rising_guidance() -> None:
    flow, ddpm = over_guidance(RUNS, "retrieval", "fd")
    assert (flow.name, ddpm.name) == ("flow-g", "ddpm")
    assert flow.points == [Point(1, 0.4, 10), Point(4, 0.8, 30)]
    assert trade_offs(RUNS, ["fd", "retrieval"]) == [("retrieval", "fd")]
    assert trade_offs(RUNS[::2], ["fd", "retrieval"]) == [], "one guidance each"


def test_the_page_draws_it() -> None:
    entries = [Entry(each.name, [each]) for each in RUNS]
    page = report_page(entries, rows(entries, comparable=True))
    assert "Quality against alignment over guidance" in page
    assert "retrieval (higher is better)" in page
    assert "Quality against alignment" not in report_page(entries[:1], rows(entries[:1], comparable=True))
