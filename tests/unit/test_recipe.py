"""Recipes: inheritance, interpolation, overrides, and everything that is wrong at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from repository import DIGITS, PIPELINES

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.columns import Column
from sfumato.core.pretrained import Reference, references
from sfumato.data.format.columns import TEXT_COLUMN
from sfumato.errors import ConfigError
from sfumato.families import config_class

DIGITS_SPEC = DataSpec(1, 8, 8, tuple("0123456789"))


def problems(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        recipes.load(DIGITS, overrides)
    return caught.value.problems


FEATURES = Column("vector", "float32", (64,))
_28x28 = (DataSpec(1, 28, 28, tuple("0123456789")), 60_000)
SETS = {
    "digits": (DIGITS_SPEC, 1_797),
    "mnist": _28x28,
    "fashion": _28x28,
    "cifar10": (DataSpec(3, 32, 32, tuple("0123456789")), 50_000),
    "ffhq": (DataSpec(3, 256, 256), 70_000),
    "horse2zebra": (DataSpec(3, 256, 256, ("horse", "zebra")), 2_401),
    "imagenet": (DataSpec(3, 256, 256, tuple(map(str, range(1_000)))), 1_281_167),
    "imagenet/tarflow64": (DataSpec(3, 64, 64, tuple(map(str, range(1_000)))), 1_281_167),
    "captions": (DataSpec(3, 256, 256, extra={"text": TEXT_COLUMN}), 1_000_000),
    "emoji": (DataSpec(3, 64, 64, extra={"text": TEXT_COLUMN}), 1_700),
    "shapes": (DataSpec(3, 32, 32, extra={"text": TEXT_COLUMN}), 50_000),
    "shapes/unclip": (DataSpec(3, 32, 32, extra={"text": TEXT_COLUMN, "features": FEATURES}), 50_000),
}


# Pipelines have stages, and tests of their own.
RECIPES = [path for path in sorted(PIPELINES.rglob("*.yaml")) if "\nstages:" not in path.read_text()]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: "-".join(path.relative_to(PIPELINES).parts))
def test_every_recipe_in_the_repository_is_fine(path: Path) -> None:
    recipe = recipes.load(path)
    recipe.check()
    if not list(references(recipe.model, "model", Reference)):  # other runs, which would have to be there
        folder = path.relative_to(PIPELINES).parts[0]
        recipe.check(*SETS.get(f"{folder}/{path.stem}", SETS[folder]))


def test_what_is_shown_loads_to_the_same_recipe(tmp_path: Path) -> None:
    recipe = recipes.load(DIGITS, ["train.images=1_000", "model.network.channels=[32,96]"])
    (tmp_path / "shown.yaml").write_text(recipe.to_yaml())
    assert recipes.load(tmp_path / "shown.yaml") == recipe
    assert recipe.train.images == 1000


def test_base_and_interpolation(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(DIGITS.read_text())
    (tmp_path / "b.yaml").write_text(
        "base: a.yaml\nname: child\ntrain: {images: 5120, log_every: '${train.images}'}\n"
    )
    child = recipes.load(tmp_path / "b.yaml", ["train.images=2560"])
    parent = recipes.load(tmp_path / "a.yaml")
    assert child.name == "child" and child.train.log_every == 2560
    assert child.train.batch == parent.train.batch and child.model == parent.model


def test_a_model_of_another_family_keeps_nothing_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "gan.yaml").write_text(f"base: {DIGITS}\nmodel: {{family: gan}}\n")
    assert recipes.load(tmp_path / "gan.yaml").model == config_class("gan")()


def test_a_part_of_another_kind_keeps_nothing_of_the_first(tmp_path: Path) -> None:
    base = DIGITS.with_name("realnvp.yaml")
    network = recipes.load(base, ["model.network.kind=glow", "model.network.steps=3"]).model.network
    assert (network.kind, network.steps, network.channels) == ("glow", 3, type(network)().channels)

    (tmp_path / "child.yaml").write_text(f"base: {base}\nmodel: {{network: {{kind: glow, steps: 5}}}}\n")
    assert recipes.load(tmp_path / "child.yaml").model.network.steps == 5

    same = recipes.load(base, ["model.network.kind=realnvp"])
    assert same.digest() == recipes.load(base).digest()


def test_bases_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("base: b.yaml\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\n")
    with pytest.raises(ConfigError, match="circle"):
        recipes.load(tmp_path / "a.yaml")


def test_everything_that_is_wrong_is_said_at_once() -> None:
    found = problems(
        "train.imges=3",
        "train.batch=many",
        "model.objective.schedule=cosin",
        "model.network.chanels=[1]",
        "parallel.strategy=dpp",
        "zzz=1",
    )
    text = "\n".join(found)
    assert len(found) == 6
    assert "train.imges: unknown key; did you mean 'images'?" in text
    assert "train.batch: " in text and "got 'many'" in text
    assert "model.objective.schedule: got 'cosin'" in text and "did you mean 'cosine'?" in text
    assert "model.network.chanels: unknown key; did you mean 'channels'?" in text
    assert "did you mean 'ddp'?" in text
    assert "zzz: unknown key; known keys: " in text
    assert all("\n" not in line for line in found)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["parallel.workers=9"], "data.streams=8"),
        (["train.batch=100"], "nearest is"),
        (["parallel.workers=2", "parallel.strategy=single"], "parallel.strategy=ddp"),
        (["train.micro_batch=24"], "train.micro_batch"),
        (["model.network.channels=[8,16,32,64,128]"], "model.network.channels"),
        (["data.streams=4096", "train.batch=4096"], "1,797"),
    ],
)
def test_impossible_combinations_name_a_field_and_a_legal_value(overrides: list[str], expected: str) -> None:
    recipe = recipes.load(
        DIGITS, [*overrides, "train.micro_batch=null"] if "micro" not in overrides[0] else overrides
    )
    with pytest.raises(ConfigError) as caught:
        recipe.check(DIGITS_SPEC, 1_797)
    assert any(expected in line for line in caught.value.problems), caught.value.problems


def test_an_elastic_run_has_a_least_number_of_workers_and_a_most() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.min_workers: is more than parallel\.workers=2, got 3"):
        recipes.load(DIGITS, ["parallel.workers=2", "parallel.min_workers=3"])
    elastic = recipes.load(DIGITS, ["parallel.workers=4", "parallel.min_workers=2"]).parallel
    fixed = recipes.load(DIGITS, ["parallel.workers=4"]).parallel
    assert (elastic.elastic, elastic.least_workers) == (True, 2)
    assert (fixed.elastic, fixed.least_workers) == (False, 4)


def test_a_model_without_family_and_an_unknown_family() -> None:
    assert any("did you mean" in line or "diffusion" in line for line in problems("model.family=difusion"))
    with pytest.raises(ConfigError, match=r"model\.family: required"):
        recipes.parse({"name": "x", "model": {}, "data": {"path": "d"}, "train": {"images": 1}})


def test_files_that_are_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not exist; did you mean '.*ddpm\.yaml'"):
        recipes.load(DIGITS.with_name("ddpn.yaml"))
    (tmp_path / "broken.yaml").write_text("a: [1, 2\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        recipes.load(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match="holds no recipe"):
        recipes.load(tmp_path / "list.yaml")
    (tmp_path / "code.yaml").write_text("name: !!python/object/apply:os.system ['touch executed']\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        recipes.load(tmp_path / "code.yaml")
    with pytest.raises(ConfigError, match="not of the form key=value"):
        recipes.load(DIGITS, ["train.images"])
    (tmp_path / "latin.yaml").write_bytes("name: Größe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not valid YAML"):
        recipes.load(tmp_path / "latin.yaml")
    (tmp_path / "number.yaml").write_text("42\n")
    with pytest.raises(ConfigError, match="cannot be read as a recipe"):
        recipes.load(tmp_path / "number.yaml")


def test_runs_are_on_a_disk() -> None:
    (line,) = recipes.load(DIGITS, ["storage=s3://bucket/runs"]).problems()
    assert "train.checkpoint.uri" in line


def test_the_digest_covers_what_changes_numbers_and_nothing_else() -> None:
    base = recipes.load(DIGITS).digest()
    same = ["parallel.workers=1", "train.log_every=7", "name=other", "evaluate.samples=99", "storage=x"]
    assert recipes.load(DIGITS, same).digest() == base
    for change in [
        "seed=1",
        "train.batch=256",
        "data.streams=4",
        "model.ema.halflife_images=1",
        "train.images=9",
    ]:
        assert recipes.load(DIGITS, [change]).digest() != base, change


def test_the_schema_accepts_our_recipes_and_refuses_a_typo() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = recipes.schema()
    content = yaml.safe_load(recipes.load(DIGITS).to_yaml())
    jsonschema.validate(content, schema)
    json.dumps(schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, "trian": {}}, schema)
