"""References to what was trained: found by type wherever they stand, recorded, part of a run's identity."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from adapter import AdapterConfig
from library_folders import save_unet

from sfumato import families, recipe
from sfumato.core.batch import DataSpec
from sfumato.core.config import Config
from sfumato.core.finding import built_in_only
from sfumato.core.first_stage import FirstStageConfig
from sfumato.core.identity import changed
from sfumato.core.pretrained import Pretrained, Reference, StoredNet, references, replaced
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.families import config_class
from sfumato.recipe import Recipe
from sfumato.runtime.jobs.on_recipe import relative_places
from sfumato.runtime.runs.pretrained import look_up, resolved
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.pretrained_files import load_stored

DATA = DataSpec(1, 8, 8, ("a", "b"))


def recipe_on(strategy: str = "single", **pretrained: str) -> Recipe:
    return recipe.parse(
        {
            "name": "student",
            "data": {"path": "data"},
            "model": {"family": "adapter:AdapterConfig", "base": pretrained},
            "train": {"images": 64},
            "parallel": {"strategy": strategy, "workers": 1},
        }
    )


class Nested(Config):
    """References at any depth."""

    by_name: dict[str, tuple[Pretrained, ...]]


def test_references_are_found_and_replaced_at_any_depth() -> None:
    content = Nested(by_name={"a": (Pretrained(run="x"), Pretrained(file="y")), "b": ()})
    fields = [field for field, _ in references(content, "model", Reference)]
    assert fields == ["model.by_name.a.0", "model.by_name.a.1"]
    told = replaced(content, "model", lambda field, it: it.model_copy(update={"digest": field}))
    assert [it.digest for it in told.by_name["a"]] == fields
    assert replaced(content, "model", lambda field, it: it) is content


def test_a_reference_is_looked_up_and_recorded(tmp_path: Path) -> None:
    save_unet(tmp_path / "unet")
    found = resolved(recipe_on(folder="unet"), tmp_path)
    (field, reference), *others = references(found.model, "model", Reference)
    assert not others and field == "model.base"
    assert isinstance(reference, Pretrained) and reference.library is not None
    assert (reference.folder, reference.library.name) == (str(tmp_path / "unet"), "UNet2DModel")
    assert recipe.parse(found.model_dump(mode="json")) == found == resolved(found, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.base\.folder: 'none'"):
        resolved(recipe_on(folder="none"), tmp_path)


def test_what_a_reference_holds_makes_the_run_and_not_where_it_lies(tmp_path: Path) -> None:
    save_unet(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "same")
    save_unet(tmp_path / "other", seed=1)
    digests = [resolved(recipe_on(folder=name), tmp_path).digest() for name in ("one", "same", "other")]
    assert digests[0] == digests[1] != digests[2]


def test_a_submitted_recipe_is_told_of_relative_places() -> None:
    assert "model.base.folder=unet" in relative_places(recipe_on(folder="unet"))
    assert not any("base" in place for place in relative_places(recipe_on(run="name")))


def test_an_adapter_is_refused_where_its_strategy_has_none(tmp_path: Path) -> None:
    save_unet(tmp_path / "unet")
    assert not [p for p in resolved(recipe_on(folder="unet"), tmp_path).problems(DATA) if "adapter" in p]
    found = resolved(recipe_on("zero3", folder="unet"), tmp_path).problems(DATA)
    refused = [problem for problem in found if "adapter" in problem]
    assert len(refused) == 1
    assert "network 'network' is an adapter: parallel.strategy=zero3 has no adapters" in refused[0]


def trained(folder: Path) -> Path:
    config = families.config_class("diffusion").variants()["ddpm"]
    with seeded(0, "teacher"):
        network = config.build(DATA).nets["network"].build()
    weights = {"ema": network.state_dict()}
    save_model_folder(folder, config, DATA, weights, name="teacher", progress=Progress.at(1))
    return folder


def test_any_network_of_a_run_can_be_built_and_loaded(tmp_path: Path) -> None:
    trained(tmp_path / "run")
    found = look_up(Pretrained(run="run"), tmp_path, "model.teacher")
    opened = found.open(config_class)
    assert opened.weights == StoredNet(folder=str(tmp_path / "run"), digest=found.digest, network="ema")
    assert opened.data == DATA and opened.family.samplers == ("ema",)
    assert type(opened.build()).__name__ == "UNet2DModel"
    with pytest.raises(ConfigError, match="has no network 'network'; set network to one of ema"):
        look_up(Pretrained(run="run", network="network"), tmp_path, "model.teacher")


def test_a_family_by_import_path_is_built_where_it_is_trusted(tmp_path: Path) -> None:
    base = look_up(Pretrained(folder=str(save_unet(tmp_path / "unet"))), tmp_path, "model.base")
    config = AdapterConfig(base=base)
    with seeded(0, "adapter"):
        network = config.build(DATA).nets["network"].build()
    adapter = {key: value for key, value in network.state_dict().items() if "lora_" in key}
    folder = tmp_path / "run"
    save_model_folder(folder, config, DATA, {"ema": adapter}, name="teacher", progress=Progress.at(1))

    found = look_up(Pretrained(run="run", trust=True), tmp_path, "model.teacher")
    assert Pretrained.model_validate_json(found.model_dump_json()) == found
    opened = found.open(config_class)
    assert opened.weights is not None
    built = opened.build()
    load_stored(built, opened.weights)
    ours, theirs = built.state_dict(), Generator.load(folder, trust=True).nets["ema"].state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    for untrusted in (
        look_up(Pretrained(run="run"), tmp_path, "model.teacher"),
        found.model_copy(update={"trust": False}),
    ):
        with pytest.raises(ConfigError, match=r"outside Sfumato|is not part of Sfumato"):
            untrusted.open(config_class)
    with built_in_only(), pytest.raises(ConfigError, match="is not part of Sfumato"):
        found.open(config_class)
    assert changed(found.model_copy(update={"trust": False})) == changed(found), "it is no other network"


def test_a_run_that_is_not_looked_up_or_no_run_cannot_be_opened() -> None:
    with pytest.raises(ConfigError, match="'x' has not been looked up"):
        Pretrained(run="x").open(config_class)
    with pytest.raises(ConfigError, match="'x' is not a Sfumato run"):
        Pretrained(folder="x").open(config_class)
    with pytest.raises(ConfigError, match="family outside Sfumato; allow its code to run with trust: true"):
        Pretrained(run="x", digest="0" * 64).open(config_class)


def test_a_first_stage_is_one_use_of_a_reference() -> None:
    stage = FirstStageConfig(run="x")
    assert isinstance(stage, Reference) and stage.source == ("run", "x") and not stage.recorded
    assert list(stage.model_dump()) == ["run", "digest", "model", "other_data", "folder", "subfolder"]
