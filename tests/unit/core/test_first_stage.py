"""A trained model used frozen: found, recorded, loaded, and refused where it is another than it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sfumato import families, recipe
from sfumato.core.batch import DataSpec
from sfumato.core.family import Frozen
from sfumato.core.first_stage import FirstStageConfig, Tokenizer, codes_of, latent_of
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.data.format.manifest import ImageInfo, Manifest, ShardInfo
from sfumato.errors import CheckpointError, ConfigError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.recipe import Recipe
from sfumato.runtime.runs.first_stage import check_data
from sfumato.runtime.runs.pretrained import resolved
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.loop import install

DATA = DataSpec(channels=1, height=8, width=8, classes=("a", "b"))


def save_stage(
    folder: Path,
    member: str = "vq",
    *,
    seed: int = 0,
    data: DataSpec = DATA,
    trained_on: str | None = None,
) -> str:
    """A model folder of a small autoencoder, and its digest."""
    config = families.config_class("vae").variants()[member]
    family = config.build(data)
    with seeded(seed, "stage"):
        network = family.nets["network"].build()
    return save_model_folder(
        folder,
        config,
        data,
        {"ema": network.state_dict()},
        name="stage",
        progress=Progress.at(1),
        trained_on=trained_on,
    )


def recipe_on(stage: dict[str, object], kind: str = "transformer") -> Recipe:
    return recipe.parse(
        {
            "name": "codes",
            "data": {"path": "data"},
            "model": {
                "family": "autoregressive",
                "network": {
                    "kind": kind,
                    "width": 8,
                    "layers": 1,
                    **({"heads": 2} if kind == "transformer" else {}),
                },
                "first_stage": stage,
            },
            "train": {"images": 64},
            "parallel": {"strategy": "single", "workers": 1},
        }
    )


def test_a_recipe_records_folder_digest_and_content(tmp_path: Path) -> None:
    digest = save_stage(tmp_path / "stage")
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    stage = found.model.first_stage
    assert (stage.run, stage.digest) == (str(tmp_path / "stage"), digest)
    assert found.problems(DATA) == []
    again = recipe.parse(found.model_dump(mode="json"))
    assert again == found
    assert resolved(again, tmp_path) == found
    assert again.model.build(DATA).nets["first_stage"].weights.digest == digest


def test_the_place_of_a_first_stage_is_no_part_of_a_runs_identity_but_its_content_is(tmp_path: Path) -> None:
    save_stage(tmp_path / "one")
    save_stage(tmp_path / "same")
    save_stage(tmp_path / "other", seed=1)
    digests = {
        name: resolved(recipe_on({"run": name}), tmp_path).digest() for name in ("one", "same", "other")
    }
    assert digests["one"] == digests["same"] != digests["other"]


def test_its_weights_are_loaded_where_networks_are_installed(tmp_path: Path) -> None:
    save_stage(tmp_path / "stage", seed=5)
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    strategy = Single(Placement())
    install(found.model.build(DATA), strategy, seed=0)
    held = strategy.view("network")["first_stage"].state_dict()
    expected = Generator.load(tmp_path / "stage").nets["ema"].state_dict()
    assert all(torch.equal(held[key], value) for key, value in expected.items())


def test_a_model_on_it_is_complete_without_its_folder(tmp_path: Path) -> None:
    save_stage(tmp_path / "stage")
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    family, strategy = found.model.build(DATA), Single(Placement())
    install(family, strategy, seed=0)
    save_model_folder(
        tmp_path / "model",
        found.model,
        DATA,
        strategy.weights(family.samplers),
        name="codes",
        progress=Progress.at(1),
    )
    images = Generator.load(tmp_path / "model").sample(2)
    (tmp_path / "stage").rename(tmp_path / "gone")
    assert (Generator.load(tmp_path / "model").sample(2) == images).all()


def test_another_model_in_its_place_is_noticed(tmp_path: Path) -> None:
    save_stage(tmp_path / "stage")
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    save_stage(tmp_path / "stage", seed=1)
    with pytest.raises(ConfigError, match="is another model than before") as told:
        resolved(found, tmp_path)
    assert len(told.value.problems) == 1
    with pytest.raises(CheckpointError, match="is not the model that this recipe was started with"):
        install(found.model.build(DATA), Single(Placement()), seed=0)


def test_a_folder_that_went_missing_is_one_line(tmp_path: Path) -> None:
    save_stage(tmp_path / "stage")
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    (tmp_path / "stage").rename(tmp_path / "gone")
    with pytest.raises(CheckpointError, match="is not a model folder") as told:
        install(found.model.build(DATA), Single(Placement()), seed=0)
    assert "\n" not in str(told.value)


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    save_stage(tmp_path / "stage")
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    weights = tmp_path / "stage" / "ema.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        install(found.model.build(DATA), Single(Placement()), seed=0)


def test_one_that_was_trained_on_other_data_is_refused_until_that_is_meant(tmp_path: Path) -> None:
    image = ImageInfo(channels=1, height=8, width=8)
    ours, other = (
        Manifest(name="set", shards=(shard,), image=image, classes=DATA.classes)
        for shard in (ShardInfo(name="a.tar", samples=2, bytes=10, sha256=digit * 64) for digit in ("0", "1"))
    )
    save_stage(tmp_path / "stage", trained_on=other.digest)
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    with pytest.raises(ConfigError, match=r"was trained on other data .*first_stage.other_data=true") as told:
        check_data(found, ours)
    assert len(told.value.problems) == 1
    check_data(found, other)
    check_data(resolved(recipe_on({"run": "stage", "other_data": True}), tmp_path), ours)
    save_stage(tmp_path / "unknown")
    check_data(resolved(recipe_on({"run": "unknown"}), tmp_path), ours)


@pytest.mark.parametrize(
    ("member", "data", "said"),
    [
        ("vq", DataSpec(1, 16, 16), "trained on images of 1x16x16 .CxHxW., the data's are 1x8x8"),
        ("kl", DATA, "has no codes; train a first stage with model.latent.kind=vq"),
        ("tiny", DATA, "without an encoder that others can use"),
    ],
)
def test_what_does_not_fit_is_one_line(member: str, data: DataSpec, said: str, tmp_path: Path) -> None:
    save_stage(tmp_path / "stage", member, data=data)
    found = resolved(recipe_on({"run": "stage"}), tmp_path)
    with pytest.raises(ConfigError, match=said) as told:
        found.check(DATA)
    assert len(told.value.problems) == 1


def test_a_first_stage_that_nobody_knows_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.first_stage\.run: 'nothing'"):
        resolved(recipe_on({"run": "nothing"}), tmp_path)
    with pytest.raises(ConfigError, match="required: a trained run"):
        recipe_on({}).check(DATA)


def test_one_that_has_no_effect_is_refused() -> None:
    assert "no effect" in recipe_on({"run": "x"}, kind="pixelcnn").model.problems(DATA)[0]


def test_a_card_cannot_name_code_to_import(tmp_path: Path) -> None:
    save_stage(tmp_path / "stage")
    card = tmp_path / "stage" / "config.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "family": "os.path:Config"}))
    with pytest.raises(ConfigError, match="not usable as first stage"):
        resolved(recipe_on({"run": "stage"}), tmp_path)


@pytest.mark.parametrize("member", ["kl", "vq", "fsq"])
@torch.no_grad()
def test_stages_encode_and_decode(member: str) -> None:
    config = families.config_class("vae").variants()[member]
    spec = config.as_first_stage(DATA)
    assert spec is not None
    with seeded(0, "stage"):
        stage = spec.build().eval()
    batch = {"image": torch.rand(3, *DATA.shape) * 2 - 1}
    latent = latent_of(stage, batch)
    assert latent.mean.shape == latent.std.shape == (3, *spec.latent)
    assert (latent.std >= 0).all()
    assert stage.decode(latent.mean).shape == (3, *DATA.shape)
    brought = {**batch, "latent_mean": latent.mean + 1, "latent_std": latent.std}
    assert torch.equal(latent_of(stage, brought).mean, latent.mean + 1)
    if isinstance(stage, Tokenizer):
        codes = codes_of(stage, batch)
        assert codes.shape == (3, *spec.latent[1:]) and codes.min() >= 0 and codes.max() < spec.num_codes
        torch.testing.assert_close(stage.decode_codes(codes), stage.decode(latent.mean))
        assert codes_of(stage, {"codes": codes + 1}).equal(codes + 1)
    else:
        assert spec.num_codes == 0


def test_a_stage_without_a_run_starts_from_initial_weights() -> None:
    config = families.config_class("autoregressive").variants()["transformer"]
    spec = config.build(DATA).nets["first_stage"]
    assert isinstance(spec, Frozen) and spec.weights is None
    find = families.config_class
    (line,) = FirstStageConfig().problems(DATA, find)
    assert line.startswith("model.first_stage.run: required")
    (line,) = FirstStageConfig().problems(DATA, find, field="model.tokenizer")
    assert line.startswith("model.tokenizer.run: required")
    (line,) = FirstStageConfig(run="x").problems(DATA, find, field="model.tokenizer")
    assert line == "model.tokenizer.run: 'x' has not been looked up"
    (line,) = FirstStageConfig(run="x").problems(DATA, find, field="")
    assert line == "'x' has not been looked up"
