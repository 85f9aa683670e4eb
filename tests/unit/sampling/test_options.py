"""Sampling options from a command line: typed by the family, refused with the legal ones named."""

from __future__ import annotations

import pytest

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling
from sfumato.sampling.options import apply_options

DATA = DataSpec(1, 8, 8, ("a", "b"))
CONFIG = DiffusionConfig(sampling=DDPMSampling(steps=20, guidance=1.5))


def test_overrides_are_typed_and_the_rest_stays() -> None:
    found = apply_options(CONFIG, DATA, {"guidance": "2", "sampler": "dpmsolver++", "clip": "false"})
    assert found == DDPMSampling(sampler="dpmsolver++", steps=20, guidance=2.0, clip=False)
    assert apply_options(CONFIG, DATA, {}) == CONFIG.sampling


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"guidence": 2}, "did you mean 'guidance'.*clip, adapter_scale, steps, guidance, .*sampler, eta"),
        ({"temperature": 2}, "temperature: diffusion has no such sampling option"),
        ({"steps": "many"}, "steps: .*got 'many'"),
        ({"steps": 0}, "steps: must be at least 1, got 0"),
        ({"steps": 2000}, "^steps: got 2000, the most is 1000"),
        ({"sampler": "euler"}, "sampler: .*'ddim', 'ddpm', 'dpmsolver"),
        ({"sampler": "ddpm", "eta": 1}, "no effect on ddpm"),
    ],
)
def test_what_cannot_be_is_one_line(overrides: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        apply_options(CONFIG, DATA, overrides)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        apply_options(CONFIG, DATA, {"steps": 0, "guidance": -1})
    assert len(caught.value.problems) == 2
