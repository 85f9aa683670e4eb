"""What the diffusion family says about a configuration that cannot work."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.networks.unet import UNetConfig
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling

DIGITS = DataSpec(1, 8, 8, tuple("0123456789"))
PLAIN = DataSpec(3, 32, 32)


def config(**parts: object) -> DiffusionConfig:
    return DiffusionConfig.model_validate({"family": "diffusion", **parts})


def test_defaults_fit_labelled_and_unlabelled_data() -> None:
    assert config().problems(DIGITS) == []
    assert config().problems(PLAIN) == []
    assert config().conditional(DIGITS)
    assert not config().conditional(PLAIN)
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
