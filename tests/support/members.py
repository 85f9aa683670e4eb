"""Every member of every family at its smallest, and what a strategy would hand it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sfumato import families
from sfumato.core.batch import Batch, DataSpec, Texts
from sfumato.core.columns import Column
from sfumato.core.conditions import Listed, Source
from sfumato.core.family import EmaOf, Family, FamilyConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.core.state import initial

DATA = DataSpec(1, 8, 8, ("zero", "one", "two"), {"text": Column("text", "str")})
CAPTIONS = ("the one", "", "another", "the other one of the four")
ROWS = 4
PROGRESS = Progress(step=0, images=64, total_images=1_000, batch=ROWS)

Nets = dict[str, nn.Module]


def progress_of(family: Family, device: torch.device | str = "cpu") -> Progress:
    """`PROGRESS`, with the first state of a family that has any."""
    return replace(PROGRESS, state={name: value.to(device) for name, value in initial(family).items()})


VARIANTS = {name: families.config_class(name).variants() for name in families.names()}
CONFIGS = {(name, member): each for name, found in VARIANTS.items() for member, each in found.items()}
MEMBERS = list(CONFIGS)


def having(
    interface: Any, configs: Mapping[tuple[str, str], FamilyConfig] = CONFIGS
) -> list[tuple[str, str]]:
    """The members whose families implement an optional interface of `core.family`."""
    return [member for member, each in configs.items() if isinstance(each.build(DATA), interface)]


def build(family: Family) -> Nets:
    found: Nets = {}
    for name, spec in family.nets.items():
        if not isinstance(spec, EmaOf):
            with seeded(0, "init", name):
                found[name] = spec.build()
    for name, spec in family.nets.items():
        if isinstance(spec, EmaOf):
            found[name] = copy.deepcopy(found[spec.source])
    return found


def batch(rows: int = ROWS) -> Batch:
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(rows, *DATA.shape, generator=generator) * 2 - 1
    texts = Texts(CAPTIONS[row % len(CAPTIONS)] for row in range(rows))
    return {"image": image, "label": torch.arange(rows) % DATA.num_classes, "text": texts}


def cut(rows: Batch, first: int, stop: int) -> Batch:
    """Some of the rows."""
    return {
        name: Texts(column[first:stop]) if isinstance(column, Texts) else column[first:stop]
        for name, column in rows.items()
    }


def given(config: FamilyConfig) -> Source:
    """Values of the conditions that a member cannot do without: images."""
    images = batch(2 * ROWS)["image"]
    return {each.name: Listed("image", images) for each in config.conditions(DATA) if each.required}


def view(nets: Nets, trains: str | None) -> Nets:
    """The networks as a strategy hands them to a loss: all but one frozen."""
    for name, net in nets.items():
        net.requires_grad_(name == trains)
    return nets
