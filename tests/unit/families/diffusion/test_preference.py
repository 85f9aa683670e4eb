"""Diffusion-DPO: its loss by hand, and what it does to a model."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.columns import Column
from sfumato.core.family import LossOut
from sfumato.core.pretrained import ModelCard
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.preference import (
    REFERENCE,
    REJECTED,
    PreferenceConfig,
    Replayed,
    preference_loss,
)

DATA = DataSpec(1, 8, 8, (), {"rejected": Column("image", "uint8", (1, 8, 8))})
PROGRESS = Progress.at(0)
TINY = DiffusionConfig.tiny().model_dump(mode="json") | {"sampling": {"steps": 3}}


def noise(rows: int) -> StreamRng:
    return StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=5, images=0, phase="p")


def test_the_loss_is_that_of_the_paper() -> None:
    """Eq. 14 written out with networks that add a number; one noise serves all four terms."""

    class Shift(torch.nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = torch.nn.Parameter(torch.tensor(by))

    seen = []

    def loss(nets: Any, batch: Any, rng: Any) -> LossOut:
        eps = rng.normal(1)
        seen.append(eps)
        return LossOut((batch["image"] + nets["network"].by - eps).square().mean(dim=1))

    better, worse = torch.randn(3, 1), torch.randn(3, 1)
    nets = {"network": Shift(0.3), REFERENCE: Shift(-0.2)}
    batch: Any = {"image": better, REJECTED: worse}
    found = preference_loss(PreferenceConfig(beta=4.0), loss, nets, batch, noise(3))
    eps = noise(3).normal(1)

    def error(image: Tensor, by: float) -> Tensor:
        return (image + by - eps).square().mean(dim=1)

    gap = error(better, 0.3) - error(better, -0.2) - (error(worse, 0.3) - error(worse, -0.2))
    torch.testing.assert_close(found.loss_B, -F.logsigmoid(-2.0 * gap))
    assert all(torch.equal(each, eps) for each in seen)
    found.loss_B.sum().backward()
    assert nets["network"].by.grad is not None
    assert nets[REFERENCE].by.grad is None


def test_replayed_noise_is_the_same_and_goes_on_where_it_ended() -> None:
    draws = Replayed(noise(2))
    first = draws.normal(3), draws.integers(7)
    draws.again()
    assert torch.equal(draws.normal(3), first[0])
    assert torch.equal(draws.integers(7), first[1])
    expected = noise(2)
    expected.normal(3), expected.integers(7)
    assert torch.equal(draws.uniform(), expected.uniform())


def test_tuning_prefers_what_was_preferred() -> None:
    card = ModelCard(family="diffusion", config=TINY, data=DATA)
    config = DiffusionConfig.model_validate(
        {
            "family": "diffusion",
            "pretrained": {"model": card.model_dump(mode="json")},
            "preference": {"beta": 200.0},
        }
    ).completed()
    assert config.problems(DATA) == []
    family = config.build(DATA)
    nets: dict[str, Any] = {}
    for name in (REFERENCE, "network"):
        with seeded(0, "same"):
            nets[name] = family.nets[name].build()  # type: ignore[union-attr]
    nets["ema"] = copy.deepcopy(nets["network"])
    generator = torch.Generator().manual_seed(1)
    rejected = torch.rand(8, 1, 8, 8, generator=generator) * 2 - 1
    batch: Any = {"image": torch.ones(8, 1, 8, 8), "rejected": rejected}
    adam = torch.optim.Adam(nets["network"].parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        rng = noise(8)
        prepared = family.prepare(nets, batch, PROGRESS, rng)
        out = family.phases[-1].loss(nets, prepared, PROGRESS, rng)
        adam.zero_grad()
        out.loss_B.mean().backward()
        adam.step()
        losses.append(float(out.loss_B.mean().detach()))
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "log 2 where model and reference are one"
    assert losses[-1] < 0.5
    assert float(out.metrics["accuracy"].mean()) > 0.9


def test_pairs_that_are_missing_are_named() -> None:
    config = DiffusionConfig.model_validate({**TINY, "preference": {}})
    assert "tunes a trained model" in config.problems(DATA)[0]
    (problem,) = PreferenceConfig().problems(DataSpec(1, 8, 8), pretrained=True)
    assert "the data has no images 'rejected' of 1x8x8" in problem
