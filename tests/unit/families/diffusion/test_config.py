"""What the diffusion family says about a configuration that cannot work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError
from repository import PIPELINES

from sfumato import recipe
from sfumato.core.batch import DataSpec
from sfumato.core.earlier_defaults import as_of
from sfumato.core.schedules import EmaSchedule
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.networks import NETWORKS
from sfumato.families.diffusion.networks.unet import UNetConfig
from sfumato.families.diffusion.objectives import OBJECTIVES
from sfumato.families.diffusion.objectives.consistency import ConsistencySampling, Curriculum
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling
from sfumato.families.diffusion.objectives.edm import EDMConfig, EDMSampling
from sfumato.families.diffusion.objectives.rectified_flow import RectifiedFlowSampling

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
PLAIN = DataSpec(3, 32, 32)


def config(**parts: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate({"family": "diffusion", **parts})


def test_the_average_grows_with_training_unless_a_recipe_or_an_earlier_version_means_a_half_life() -> None:
    assert config().ema.sigma_rel == 0.1
    assert as_of(config(), 1).ema == EmaSchedule(halflife_images=10_000, rampup=0.1, sigma_rel=None)
    given = config(ema={"halflife_images": 500})
    assert given.ema.sigma_rel is None
    assert as_of(given, 1).ema == given.ema


def test_defaults_fit_labelled_and_unlabelled_data() -> None:
    assert config().problems(DIGITS) == []
    assert config().problems(PLAIN) == []
    assert config().conditions(DIGITS)
    assert not config().conditions(PLAIN)
    assert config().label_dropout(DIGITS) == 0.1
    assert config().label_dropout(PLAIN) == 0.0


def test_a_configuration_read_back_has_no_new_problems() -> None:
    again = DiffusionConfig.model_validate(config().model_dump(mode="json"))
    assert again.problems(PLAIN) == []


@pytest.mark.parametrize(
    ("levels", "side", "near", "most"), [(4, 12, 16, 3), (3, 30, 32, 2), (2, 7, 8, 1), (5, 8, 16, 4)]
)
def test_sides_that_levels_cannot_halve(levels: int, side: int, near: int, most: int) -> None:
    chosen = config(network={"channels": [32] * levels})
    found = chosen.problems(DataSpec(1, side, 64))
    assert len(found) == 1
    assert f"height of {side}" in found[0]
    assert f"height of {near}, or {most} level(s)" in found[0]
    for fits in (
        chosen.problems(DataSpec(1, near, 64)),
        config(network={"channels": [32] * most}).problems(DataSpec(1, side, 64)),
    ):
        assert fits == []


@pytest.mark.parametrize(
    ("parts", "data", "field"),
    [
        ({"condition": "class"}, PLAIN, "model.condition"),
        ({"objective": {"label_dropout": 0.2}}, PLAIN, "model.objective.label_dropout"),
        ({"condition": "none", "objective": {"label_dropout": 0.2}}, DIGITS, "model.objective.label_dropout"),
        ({"sampling": {"guidance": 2}}, PLAIN, "model.sampling.guidance"),
        ({"condition": "none", "sampling": {"guidance": 2}}, DIGITS, "model.sampling.guidance"),
        (
            {"objective": {"label_dropout": 0}, "sampling": {"guidance": 2}},
            DIGITS,
            "model.sampling.guidance",
        ),
        ({"objective": {"timesteps": 40}}, DIGITS, "model.sampling.steps"),
    ],
)
def test_combinations_that_cannot_work(parts: dict[str, object], data: DataSpec, field: str) -> None:
    found = config(**parts).problems(data)
    assert len(found) == 1
    assert found[0].startswith(f"{field}: ")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"channels": [32, 60]}, "the nearest is 64"),
        ({"channels": [32, 0]}, "not a positive multiple"),
        ({"channels": [9], "norm_groups": 9, "head_dim": 9}, "must be even"),
        ({"attention": [2]}, "there is no level 2; channels give 0 to 1"),
        ({"head_dim": 24}, "the nearest that does is 16"),
        ({"attention": [0], "channels": [16, 32]}, "does not divide the 16 channels of level 0"),
    ],
)
def test_networks_that_cannot_be_built(parts: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        UNetConfig.model_validate(parts)


def test_eta_without_effect_is_an_error() -> None:
    with pytest.raises(ValidationError, match="no effect on dpmsolver"):
        DDPMSampling(sampler="dpmsolver++", eta=0.5)


def test_unknown_key_is_an_error() -> None:
    with pytest.raises(ValidationError, match="timestep"):
        config(objective={"timestep": 100})


@pytest.mark.parametrize(
    ("objective", "kind", "foreign"),
    [
        ("ddpm", DDPMSampling, {"shift": 2}),
        ("rectified_flow", RectifiedFlowSampling, {"eta": 0.5}),
        ("edm", EDMSampling, {"eta": 0.5}),
        ("consistency", ConsistencySampling, {"guidance": 2}),
    ],
)
def test_the_objective_brings_its_sampling_options(
    objective: str, kind: type, foreign: dict[str, object]
) -> None:
    parts = {"objective": {"kind": objective}}
    assert type(config(**parts).sampling) is kind
    assert type(config(**parts, sampling={"steps": 2}).sampling) is kind
    with pytest.raises(ValidationError, match=f"sampling.{next(iter(foreign))}\n"):
        config(**parts, sampling=foreign)
    again = DiffusionConfig.model_validate(config(**parts).model_dump(mode="json"))
    assert again == config(**parts)


def test_options_of_another_objective_are_refused_as_objects_too() -> None:
    with pytest.raises(ValidationError, match="expected a mapping of EDMSampling"):
        DiffusionConfig(objective=EDMConfig(), sampling=DDPMSampling())
    assert isinstance(DiffusionConfig(objective=EDMConfig()).sampling, EDMSampling)


def lines(**model: object) -> list[str]:
    """What a recipe with this model is told."""
    content = {"name": "x", "data": {"path": "d"}, "train": {"images": 8, "batch": 8}}
    try:
        recipe.parse({**content, "model": {"family": "diffusion", **model}})
    except ConfigError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"network": {"kind": "dot"}}, "model.network: kind: got 'dot'; did you mean 'dit'"),
        ({"network": 5}, r"model.network: expected a mapping, such as \{kind: unet\}, got 5"),
        ({"network": {"kind": "dit", "pach": 2}}, "model.network.pach: unknown key; did you mean 'patch'"),
        ({"network": {"pach": 2}}, "model.network.pach: unknown key; known keys: attention, channels"),
        (
            {"objective": {"kind": "consistency", "curriculum": {"frist": 3}}},
            "model.objective.curriculum.frist: unknown key; did you mean 'first'",
        ),
        (
            {"objective": {"kind": "consistency"}, "sampling": {"guidance": 2}},
            "model.sampling.guidance: unknown key; known keys: adapter_scale, clip, sigmas, steps",
        ),
        (
            {"objective": {"kind": "edn"}, "sampling": {"churn": 3}},
            "model.objective: kind: got 'edn'; did you mean 'edm'",
        ),
        ({"objective": {"kind": "edm"}, "sampling": {"churn_min": 1}}, "no effect with churn=0"),
        (
            {"objective": {"kind": "edm"}, "sampling": {"churn": 1, "churn_min": 2, "churn_max": 1}},
            r"churn_min: 2 is above churn_max=1, so no noise level is churned; set it lower$",
        ),
        ({"objective": {"kind": "edm"}, "sampling": {"sigma_max": 1e-3}}, "sigma_min: 0.002 is not below"),
        ({"objective": {"kind": "rectified_flow", "times": "uniform", "logit_std": 2}}, "no effect"),
        ({"objective": {"kind": "consistency", "distance": "l2", "huber": 1}}, "no effect with distance=l2"),
        ({"objective": {"kind": "consistency", "noise": "uniform", "p_mean": 0}}, "no effect with noise"),
        ({"objective": {"kind": "consistency", "sigma_max": 1e-3}}, "sigma_min: 0.002 is not below"),
        ({"objective": {"kind": "consistency"}, "sampling": {"steps": 3, "sigmas": [1]}}, "got 1 for 3 step"),
        ({"objective": {"kind": "consistency"}, "sampling": {"steps": 3, "sigmas": [1, 2]}}, "must fall"),
        (
            {"objective": {"kind": "consistency", "curriculum": {"first": 20, "last": 10}}},
            "last: 10 is below first=20",
        ),
    ],
)
def test_what_cannot_be_is_one_line(model: dict[str, object], says: str) -> None:
    (line,) = lines(**model)
    assert re.search(says, line), line


def test_a_sampling_step_at_a_noise_level_that_was_not_trained() -> None:
    chosen = config(objective={"kind": "consistency"}, sampling={"steps": 2, "sigmas": [100]})
    (problem,) = chosen.problems(PLAIN)
    assert problem.startswith("model.sampling.sigmas: 100 is not between 0.002 and 80")


SIDES = {"digits": 8, "mnist": 28}


@pytest.mark.parametrize(
    "path",
    [
        path
        for folder in SIDES
        for path in sorted((PIPELINES / folder).glob("*.yaml"))
        if "family: diffusion" in path.read_text() and "first_stage" not in path.read_text()
    ],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_the_recipes_of_this_family_fit_their_data(path: Path) -> None:
    side = SIDES[path.parent.name]
    assert recipe.load(path).model.problems(DataSpec(1, side, side, tuple("0123456789"))) == []


def test_every_field_of_every_kind_is_described() -> None:
    objectives = list(OBJECTIVES.all().values())
    sampling = [objective.Sampling for objective in objectives]
    kinds = [*NETWORKS.all().values(), *objectives, *sampling, Curriculum]
    for kind in kinds:
        assert [name for name, field in kind.model_fields.items() if not field.description] == []


def test_diffusers_has_pipelines_for_ddpm_alone(tmp_path: Path) -> None:
    for name, variant in DiffusionConfig.variants().items():
        family = variant.build(DIGITS)
        if name in ("ddpm", "learned_variance") or variant.adapter is not None:
            continue
        with pytest.raises(ConfigError, match="use --format safetensors"):
            family.export_diffusers({}, str(tmp_path / name), variant.sampling)
        assert not (tmp_path / name).exists()


def test_objectives_that_compare_rows_say_so() -> None:
    """Then the batch must be cut alike for any number of workers (`Recipe.problems`)."""

    def model(**objective: object) -> DiffusionConfig:
        content = {"family": "diffusion", "objective": {"kind": "rectified_flow", **objective}}
        return DiffusionConfig.model_validate(content)

    assert not model().couples_rows() and model().compared_rows() == 1
    assert model(coupling="optimal").couples_rows()
    assert model(contrast=0.05).couples_rows() and model(contrast=0.05).compared_rows() == 2
