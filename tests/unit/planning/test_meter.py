"""Recipes with published settings: sizes and operations are the authors', counted without memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from repository import PIPELINES
from torch import nn

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.planning.meter import Meter

CLASSES = tuple(str(number) for number in range(1000))


def network(name: str, shape: tuple[int, int, int]) -> tuple[Any, nn.Module]:
    model: Any = recipes.load(PIPELINES / "imagenet" / f"{name}.yaml").model
    with torch.device("meta"):
        return model, model.network.build(DataSpec(*shape, CLASSES), conditional=True)


@pytest.mark.parametrize(
    ("name", "shape", "millions"),
    [
        ("sit_xl2_repa", (4, 32, 32), 675),
        ("lightningdit_xl1", (32, 16, 16), 675),
        ("edm2_s64", (3, 64, 64), 280),
        ("jit_b16", (3, 256, 256), 131),
    ],
)
def test_parameters_are_the_published_ones(name: str, shape: tuple[int, int, int], millions: int) -> None:
    _, net = network(name, shape)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=5e-3)


def test_operations_are_the_published_ones() -> None:
    """DiT-XL/2 at 256x256: 118.64 GMACs (Peebles & Xie 2023, table 4)."""
    _, net = network("sit_xl2_repa", (4, 32, 32))
    x, label = torch.zeros(1, 4, 32, 32, device="meta"), torch.zeros(1, dtype=torch.long, device="meta")
    with torch.no_grad(), Meter() as meter:
        net(x, torch.zeros(1, device="meta"), label)
    assert meter.operations / 2e9 == pytest.approx(118.64, rel=5e-3)
