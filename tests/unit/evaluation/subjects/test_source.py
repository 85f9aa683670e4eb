"""What an evaluation's sampling options say reaches all that the model is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import ConfigError
from sfumato.evaluation.references.reference import PackedReference, Reference
from sfumato.evaluation.subjects.model_sources import load_model
from sfumato.evaluation.subjects.source import GivesLikelihood, SampleSource
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.vae.config import VaeConfig
from sfumato.sampling.model_folder import save_model_folder

DATA = DataSpec(1, 8, 8, tuple("0123456789"))


def save(folder: Path, steps: int | None) -> Path:
    tiny = DiffusionConfig.tiny().model_dump()
    tiny["sampling"] = {"steps": 3, "likelihood_steps": steps}
    config = DiffusionConfig.model_validate(tiny)
    with seeded(0, "init", "network"):
        net = config.build(DATA).nets["network"].build()
    save_model_folder(folder, config, DATA, {"ema": net.state_dict()}, name="tiny", progress=Progress.at(10))
    return folder


@pytest.fixture(scope="module")
def reference(digits_data: Path) -> Reference:
    return PackedReference(digits_data)


def load(folder: Path, reference: Reference, **options: Any) -> SampleSource:
    return load_model(folder, options, device="cpu", trust=False, reference=reference)


def bits(source: SampleSource, reference: Reference) -> np.ndarray:
    assert isinstance(source, GivesLikelihood)
    return source.bits(0, reference.read(0, 8), seed=1)


def test_likelihood_steps_of_the_evaluation_are_those_of_the_bound(
    tmp_path: Path, reference: Reference
) -> None:
    stored = {steps: save(tmp_path / f"model-{steps}", steps) for steps in (None, 2, 5)}
    wanted = bits(load(stored[5], reference), reference)
    assert not np.array_equal(bits(load(stored[2], reference), reference), wanted)
    for folder in stored.values():
        given = load(folder, reference, likelihood_steps=5)
        np.testing.assert_array_equal(bits(given, reference), wanted)
        labels = np.arange(given.block) % 10
        plain = load(folder, reference)
        np.testing.assert_array_equal(
            given.draw(0, seed=3, labels_B=labels).images, plain.draw(0, seed=3, labels_B=labels).images
        )


def test_an_evaluation_may_turn_the_likelihood_off(tmp_path: Path, reference: Reference) -> None:
    folder = save(tmp_path / "model", 2)
    assert isinstance(load(folder, reference), GivesLikelihood)
    assert not isinstance(load(folder, reference, likelihood_steps=None), GivesLikelihood)


def test_options_that_the_family_lacks_are_refused(tmp_path: Path, reference: Reference) -> None:
    with pytest.raises(ConfigError, match="no such sampling option"):
        load(save(tmp_path / "model", 2), reference, likelihod_steps=5)


@pytest.mark.parametrize(
    ("likelihood", "says"),
    [
        ({"kind": "bernoulli"}, "black and white by chance"),
        ({"kind": "bernoulli", "binarization": "threshold"}, "black and white at the middle"),
        ({"kind": "logistic"}, "8-bit values"),
    ],
)
def test_the_source_says_what_its_likelihood_is_of(
    tmp_path: Path, reference: Reference, likelihood: dict[str, str], says: str
) -> None:
    config = VaeConfig.model_validate(
        {
            "network": {"channels": [4, 8], "norm_groups": 2},
            "latent": {"kind": "gaussian", "dim": 2, "likelihood": likelihood},
        }
    )
    with seeded(0):
        net = config.build(DATA).nets["network"].build()  # type: ignore[union-attr]
    save_model_folder(
        tmp_path / "vae", config, DATA, {"ema": net.state_dict()}, name="tiny", progress=Progress.at(10)
    )
    source = load(tmp_path / "vae", reference)
    assert isinstance(source, GivesLikelihood)
    assert says in source.likelihood_of
