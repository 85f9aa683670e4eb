"""The shipped recipes of GANs and flows fit their data, and what would make workers matter is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec

PIPELINES = Path(__file__).parents[2] / "pipelines"
SIZES = {"digits": (8, 1_797), "mnist": (28, 60_000)}
RECIPES = [
    path
    for folder in SIZES
    for path in sorted((PIPELINES / folder).glob("*.yaml"))
    if any(name in path.stem for name in ("gan", "glow", "realnvp"))
]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_recipes_fit_their_data(path: Path) -> None:
    side, samples = SIZES[path.parent.name]
    data = DataSpec(1, side, side, classes=tuple("0123456789"))
    recipe = recipes.load(path)
    assert recipe.problems(data, samples) == []
    assert recipe.model.conditional(data)


def test_batch_normalisation_on_several_workers_wants_a_micro_batch() -> None:
    path = PIPELINES / "digits" / "dcgan.yaml"
    (line,) = recipes.load(path, ["train.micro_batch=null"]).problems()
    assert "train.micro_batch=64" in line
    alone = ["train.micro_batch=null", "parallel.workers=1"]
    assert recipes.load(path, alone).problems() == []
    grouped = ["train.micro_batch=null", "model.network.generator_norm=group"]
    assert recipes.load(path, grouped).problems() == []
