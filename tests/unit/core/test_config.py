"""Numbers that no setting can mean are refused where they are given, not where training breaks down."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from sfumato.core.config import Config
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.schedules import LearningRate
from sfumato.families.flow.config import FlowConfig


class Settings(Config):
    plain: float = 1.0
    optional: float | None = None
    several: tuple[float, ...] = ()


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, ".inf", "nan"])
@pytest.mark.parametrize("field", ["plain", "optional", "several"])
def test_no_number_is_infinite_or_nan(field: str, value: float | str) -> None:
    with pytest.raises(ValidationError, match=r"finite number|valid number"):
        Settings.model_validate({field: [value] if field == "several" else value})


def test_a_learning_rate_is_finite() -> None:
    with pytest.raises(ValidationError, match="finite number"):
        LearningRate(peak=math.inf)


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "sgd"])
@pytest.mark.parametrize("betas", [(-0.1, 0.9), (0.9, 1.0), (1.0, 0.9), (0.9, 99.0)])
def test_moments_decay(name: str, betas: tuple[float, float]) -> None:
    """torch refuses such betas when the optimizer is made, minutes later, and takes any momentum."""
    with pytest.raises(ValidationError, match=r"betas\.[01]"):
        OptimizerConfig.model_validate({"name": name, "betas": betas})


@pytest.mark.parametrize("betas", [(0.0, 0.0), (0.0, 0.999), (0.9999, 0.9)])
def test_moments_at_the_edge_are_torchs(betas: tuple[float, float]) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    made = OptimizerConfig(name="adam", betas=betas).build({"weight": weight})
    assert made.defaults["betas"] == betas


def test_logit_alpha_is_one_that_float32_sees() -> None:
    for alpha in (0.0, 1e-9, 9e-8):
        with pytest.raises(ValidationError, match="logit_alpha"):
            FlowConfig(logit_alpha=alpha)
    for alpha in (1e-7, 1e-6, 0.05):
        FlowConfig(logit_alpha=alpha)
        edges = torch.logit(alpha + (1 - 2 * alpha) * torch.tensor([0.0, 1.0]))
        assert edges.isfinite().all()
    assert FlowConfig().logit_alpha is None


def test_a_rate_that_falls_with_the_square_root() -> None:
    """EDM2: alpha / sqrt(max(t / t_ref, 1)) after a linear rise."""
    rate = LearningRate(peak=1e-2, warmup_images=100, decay="inverse_sqrt", hold=0.1)
    reference = 100 + 0.1 * (10_000 - 100)
    for images in (0, 50, 500, 1_090, 4_360, 9_990):
        found = rate.at(Progress(images // 10, images, 10_000, 10))
        rise = min(1.0, (images + 10) / 100)
        assert found == pytest.approx(rise * 1e-2 / math.sqrt(max(images / reference, 1)))
    assert LearningRate(decay="inverse_sqrt").at(Progress(0, 0, 100, 10)) == 1e-3
