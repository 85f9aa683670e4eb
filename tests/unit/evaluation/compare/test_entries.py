"""Several tests at once, and several seeds as one entry, against their definitions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sfumato.errors import ConfigError
from sfumato.evaluation.compare.entries import difference_of, entries, over_seeds
from sfumato.evaluation.compare.holm import holm
from sfumato.evaluation.compare.runs import EvaluatedRun, outdated_interval, twins, unequal_balls
from sfumato.evaluation.compare.significance import difference
from sfumato.evaluation.compare.table import as_data, rows
from sfumato.evaluation.references.feature_cache import FeatureCache
from sfumato.evaluation.report import DEVIATIONS, TERMS, EvaluationReport
from sfumato.evaluation.store import write_arrays
from sfumato.runtime.commands.evaluate import comparable


def run(
    name: str, value: float, recipe: str = "", seed: int = 0, folder: Path = Path("none"), **report: Any
) -> EvaluatedRun:
    content: dict[str, Any] = {
        "metrics": {"fd": value},
        "details": {},
        "features": {},
        "higher_is_better": {"fd": False},
        "samples": 100,
        "reference_samples": 50,
        "reference_digest": "r",
        "seed": 0,
        "seconds": 1.0,
        "seconds_per_image": 0.1,
        "preview": None,
    }
    about = EvaluationReport(**{**content, **report})
    return EvaluatedRun(
        *(name, folder, folder, about, FeatureCache(Path("none")), {}),
        title="digits",
        seed=seed,
        but_for_seed=recipe,
    )


def interval(stderr: float, method: str = "known", freedom: float | None = None) -> Mapping[str, object]:
    return {
        "low": 0.0,
        "high": 1.0,
        "stderr": stderr,
        "confidence": 0.95,
        "method": method,
        "freedom": freedom,
    }


def rejected(p: list[float], tests: int, level: float) -> list[bool]:
    """Holm's procedure: reject the smallest while p_(i) <= level / (tests - i)."""
    found = [False] * len(p)
    for place, index in enumerate(np.argsort(p, kind="stable").tolist()):
        if p[index] > level / (tests - place):
            break
        found[index] = True
    return found


@pytest.mark.parametrize("tests", [6, 9])
def test_adjusted_values_are_the_levels_at_which_holms_procedure_rejects(tests: int) -> None:
    p = [0.04, 0.001, 0.2, 0.011, 0.012, 0.001]
    adjusted = holm(p, tests)
    for level in np.linspace(0.0005, 0.9995, 400).tolist():
        assert rejected(p, tests, level) == [value <= level for value in adjusted]
    assert holm([0.9, 0.8], 2) == [1.0, 1.0]


def test_seeds_of_one_recipe_are_one_entry_with_students_interval() -> None:
    values = [0.61, 0.55, 0.7]
    runs = [run(f"a{seed}", value, "a", seed) for seed, value in enumerate(values)] + [run("b", 0.9, "b")]
    assert [entry.name for entry in entries(runs, group_seeds=False)] == ["a0", "a1", "a2", "b"]
    grouped, alone = entries(runs, group_seeds=True)
    assert (grouped.name, alone.name) == ("digits (3 seeds)", "b")
    figure = grouped.figure("fd")
    assert figure is not None and figure == over_seeds(values)
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert (figure.value, figure.low, figure.high) == pytest.approx((np.mean(values), low, high))
    assert figure.spread == pytest.approx(np.std(values, ddof=1))
    assert twins(runs) == runs[:3] and twins(runs[2:]) == []
    # Student's test by its formula: the single run adds nothing to the estimate of the spread.
    t = (0.9 - np.mean(values)) / (np.std(values, ddof=1) * math.sqrt(1 + 1 / 3))
    tested = difference_of(grouped, alone, "fd")
    assert tested is not None and tested.p == pytest.approx(2 * stats.t.sf(t, 2))
    assert over_seeds([0.5]).low is None


def test_coverage_of_other_balls_is_not_ranked() -> None:
    """Density and coverage at k=3, as until 0.1, next to those at k=5; the other figures compare."""
    better = {"fd": False, "coverage": True}
    runs = [
        run(
            *(name, 0.1 * k),
            metrics={"fd": 0.1 * k, "coverage": 0.2 * k},
            details={"coverage": {"k": k}, "fd": {}},
            higher_is_better=better,
        )
        for name, k in (("old", 3), ("new", 5))
    ]
    assert unequal_balls(runs) == {"coverage": "k=3 in old and k=5 in new"}
    table = {row.metric: row for row in rows(entries(runs, group_seeds=False), comparable=True)}
    assert [cell.best for cell in table["fd"].cells] == [True, False]
    assert not any(cell.best or cell.against_best for cell in table["coverage"].cells)
    assert comparable(runs[0].report) != comparable(runs[1].report)


def test_one_seed_does_not_count_twice() -> None:
    with pytest.raises(ConfigError, match=r"a0 and a1 are one recipe with one seed, 3"):
        entries([run("a0", 0.1, "a", 3), run("a1", 0.1, "a", 3)], group_seeds=True)


def test_the_table_is_corrected_for_every_pair_of_every_row() -> None:
    shared: dict[str, Any] = {"intervals": {"fd": interval(0.1)}}
    runs = [run("a", 0.0, **shared), run("b", 0.35, **shared), run("c", 0.7, **shared)]
    compared = entries(runs, group_seeds=False)
    cells = as_data(rows(compared, comparable=True), compared)["fd"]
    raw = [2 * stats.norm.sf(gap / (0.1 * math.sqrt(2))) for gap in (0.35, 0.7)]
    assert cells["a"]["best"] and cells["a"]["p_against_best"] is None
    assert cells["c"]["p_uncorrected"] == pytest.approx(raw[1])
    assert cells["c"]["p_against_best"] == pytest.approx(3 * raw[1])
    assert cells["b"]["p_against_best"] == pytest.approx(2 * raw[0])
    assert raw[0] < 0.05 / 2, "significant alone, and still with its share of the level"
    assert not any(cell.best for cell in rows(compared, comparable=False)[0].cells)


def test_errors_with_few_degrees_of_freedom_make_a_t_test_and_no_error_makes_none() -> None:
    a = run("a", 0.0, intervals={"fd": interval(0.1, freedom=9)})
    b = run("b", 0.4, intervals={"fd": interval(0.2, freedom=4)})
    tested = difference(a, b, "fd")
    freedom = (0.01 + 0.04) ** 2 / (0.01**2 / 9 + 0.04**2 / 4)
    assert tested is not None
    assert tested.p == pytest.approx(2 * stats.t.sf(0.4 / math.sqrt(0.05), freedom))
    exact = [run(name, value, intervals={"fd": interval(0.0)}) for name, value in (("a", 0.1), ("b", 0.2))]
    assert difference(exact[0], exact[1], "fd") is None, "an error of 0 is no proof"


def test_terms_of_samples_and_of_real_images_are_told_apart_where_numbers_are_equal(tmp_path: Path) -> None:
    """As many samples as real images: unpaired runs share the real images, and no samples."""
    rng = np.random.default_rng(0)
    found = {}
    for kind in ("samples", "references"):
        runs = []
        for number in range(2):
            folder = tmp_path / f"{kind}{number}"
            terms = {"fd": rng.normal(number * 0.2, 1, size=50)}
            write_arrays(folder / TERMS, terms, {"metrics": ["fd"], "of": {"fd": kind}})
            runs.append(run(str(number), 0.0, folder=folder, samples=50, labels_digest=str(number)))
        tested = difference(runs[0], runs[1], "fd")
        assert tested is not None
        found[kind] = tested.method
    assert found == {"samples": "permutation test", "references": "sign-flip test on paired images"}


def test_reports_of_0_1_have_no_tests_on_terms_that_depend_on_one_another(tmp_path: Path) -> None:
    """Version 0.1 kept terms of recall, and intervals that took them for independent."""
    figures: dict[str, Any] = {
        "metrics": {"recall": 0.5, "precision": 0.5},
        "higher_is_better": {"recall": True, "precision": True},
        "computed_on": {"recall": ("recall", "f"), "precision": ("precision", "f")},
        "features": {"f": {"digest": "d"}},
        "intervals": {name: interval(0.01, "Wilson score") for name in ("recall", "precision")},
    }
    runs = []
    for number in range(2):
        terms = {name: (np.arange(100) % (2 + number) == 0).astype(float) for name in figures["metrics"]}
        write_arrays(tmp_path / str(number) / TERMS, terms, {"metrics": sorted(terms)})
        runs.append(run(str(number), 0.0, folder=tmp_path / str(number), **figures))
    assert outdated_interval(runs[0], "recall") and not outdated_interval(runs[0], "precision")
    assert difference(runs[0], runs[1], "recall") is None
    tested = difference(runs[0], runs[1], "precision")
    assert tested is not None and tested.method == "sign-flip test on paired images"


def test_runs_that_share_seeds_are_compared_by_the_error_of_their_difference(tmp_path: Path) -> None:
    """Two runs that differ by 0.1 in every group, and vary together by ten times as much."""
    shared = np.random.default_rng(0).normal(size=10)
    runs = []
    for number, own in enumerate((0.0, 0.01)):
        added = shared + own * np.random.default_rng(1).normal(size=10)
        write_arrays(tmp_path / str(number) / TERMS, {f"{DEVIATIONS}fd": added}, {"metrics": [], "of": {}})
        error = interval(float(np.square(added).sum() ** 0.5), freedom=9)
        runs.append(run(str(number), 0.1 * number, folder=tmp_path / str(number), intervals={"fd": error}))
    tested = difference(runs[0], runs[1], "fd")
    assert tested is not None and "paired by seed and class" in tested.method
    gap = 0.01 * np.random.default_rng(1).normal(size=10)
    assert tested.p == pytest.approx(2 * stats.t.sf(0.1 / float(np.square(gap).sum() ** 0.5), 9))
    other = replace(runs[1], report=replace(runs[1].report, seed=1))
    unpaired = difference(runs[0], other, "fd")
    assert unpaired is not None and unpaired.method == "t-test of the two standard errors"
    assert unpaired.p > 0.5
    assert not runs[0].terms, "deviations are no terms"


def test_terms_of_other_seeds_are_paired_by_class_where_the_classes_are_those(tmp_path: Path) -> None:
    """Classes come in fixed numbers, and dealing all terms again would vary them."""
    label = np.arange(100) % 2
    methods = []
    for digest in ("of these classes", ""):
        runs = []
        for seed in range(2):
            folder = tmp_path / f"{digest}{seed}"
            terms = {"fd": (label == 0).astype(float)}
            write_arrays(folder / TERMS, terms, {"metrics": ["fd"], "of": {"fd": "samples"}})
            made = run(str(seed), 0.5, folder=folder, samples=100, labels_digest=digest)
            runs.append(replace(made, report=replace(made.report, seed=seed)))
        tested = difference(runs[0], runs[1], "fd")
        assert tested is not None
        methods.append(tested.method)
    assert methods == ["sign-flip test on images paired by class", "permutation test"]
