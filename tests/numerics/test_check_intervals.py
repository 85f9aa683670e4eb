"""A short form of `make check-intervals`: shares of few trials, against what the true share may be."""

from __future__ import annotations

import pytest
from interval_trials import Case, coverage, difference_cases, interval_cases, rejections, trial

TRIALS = 24
QUICK = ("fd", "kid", "recall", "coverage", "inception_score", "precision")


@pytest.mark.parametrize("metric", QUICK)
def test_intervals_cover(metric: str) -> None:
    share = coverage([trial(Case("interval", metric, "apart"), number) for number in range(TRIALS)])
    assert share.trials == TRIALS
    assert share.compatible(0.93, 0.98), share


@pytest.mark.parametrize("metric", ["fd", "recall", "coverage", "precision"])
def test_equal_models_are_seldom_told_apart_and_different_ones_are(metric: str) -> None:
    equal = rejections([trial(Case("test", metric, "apart", "apart"), number) for number in range(TRIALS)])
    assert equal.trials == TRIALS
    assert equal.compatible(0.03, 0.07), equal
    assert trial(Case("test", metric, "alike", "farther"), 0)["p"] <= 0.05


def test_every_metric_with_an_interval_has_its_rows() -> None:
    """A new metric joins `interval_trials.METRICS`, unless it cannot be computed on vectors alone."""
    from interval_trials import METRICS

    from sfumato.evaluation.metrics import all_metrics

    # The share of `retrieval` is simulated in tests/unit/evaluation/test_retrieval_ranks.py.
    own_inputs = {"bits_per_dim", "clip_score", "perceptual_path_length", "retrieval", "retrieval_5"}
    own_inputs |= {
        "eq_t",
        "eq_r",
        "discriminator_overfitting",
        "alignment",
        "alignment_held_out",
        "attribute_bias",
        "detectability",
    }
    own_inputs |= {"extraction", "extraction_excess", "text_match"}
    images = {"lpips_diversity", "classification_score"}
    assert set(METRICS) == all_metrics().keys() - own_inputs - images
    assert len({case.name for case in (*interval_cases(), *difference_cases())}) == len(
        [*interval_cases(), *difference_cases()]
    )
