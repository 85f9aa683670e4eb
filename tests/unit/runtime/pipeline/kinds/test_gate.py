"""Figures that a gate refuses to go by."""

from __future__ import annotations

import pytest

from sfumato.errors import ConfigError
from sfumato.evaluation.report import EvaluationReport
from sfumato.runtime.pipeline.kinds.gate import GateStage


def report(name: str, on: str) -> EvaluationReport:
    return EvaluationReport(
        metrics={name: 3.0},
        details={name: {"images": 10, "on": on}},
        features={},
        higher_is_better={name: False},
        samples=2,
        reference_samples=2,
        reference_digest="",
        seed=0,
        seconds=1.0,
        seconds_per_image=0.1,
        preview=None,
    )


def gate(figure: str) -> GateStage:
    content = {"kind": "gate", "report": "r", "model": "m", "name": "n", "require": [f"{figure} < 4"]}
    return GateStage.model_validate(content)


def test_a_likelihood_of_training_images_opens_no_gate() -> None:
    with pytest.raises(ConfigError, match=r"of training images .*: evaluate with evaluate.likelihood_on"):
        gate("train_bits_per_dim")._known(report("train_bits_per_dim", "training images"))
    gate("bits_per_dim")._known(report("bits_per_dim", "images that were not trained on"))
