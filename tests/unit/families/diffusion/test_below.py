"""Cascades: a super-resolution model whose small pictures the model below draws, in one model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.columns import Column
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.diffusion.adapters import Look
from sfumato.families.diffusion.adapters.upscale import UpscaleConfig
from sfumato.families.diffusion.adapting.concatenation import NAME
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.runtime.runs.pretrained import resolved_model
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.text.encoders.joint import JointConfig

TEXT = {"text": Column("text", "str")}
SMALL, LARGE = DataSpec(1, 8, 8, (), TEXT), DataSpec(1, 16, 16, (), TEXT)
PROMPTS = ["the one", "the the the"]


def config(place: Path, adapter: dict[str, Any] | None = None, **model: Any) -> DiffusionConfig:
    text = {"dropout": 0.1, "encoders": [JointConfig.tiny().model_dump()]}
    network = {
        "kind": "unet_text",
        "channels": [8, 8],
        "layers_per_block": 1,
        "head_dim": 8,
        "norm_groups": 4,
    }
    content = {"family": "diffusion", "text": text, "network": network, "sampling": {"steps": 2}, **model}
    found = resolved_model(DiffusionConfig.model_validate({**content, "adapter": adapter}), place)
    assert isinstance(found, DiffusionConfig)
    return found


def saved(place: Path, made: DiffusionConfig, data: DataSpec, below: Generator | None = None) -> Generator:
    """A model with random weights that hide nothing, in a folder and opened from it."""
    family, nets = made.build(data), {}
    for name in family.samplers:
        with seeded(1, place.name, name):
            spec: Any = family.nets["network" if name == "ema" else name]
            nets[name] = spec.build()
            for value in nets[name].parameters():
                torch.nn.init.normal_(value, std=0.1)
        if name.startswith("below_"):
            assert below is not None
            nets[name].load_state_dict(below.nets[name.removeprefix("below_")].state_dict())
    states = {name: net.state_dict() for name, net in nets.items()}
    save_model_folder(place, made, data, states, name=place.name, progress=Progress.at(0))
    return Generator.load(place)


@pytest.fixture(scope="module")
def cascade(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Generator, Generator]:
    place = tmp_path_factory.mktemp("cascade")
    base = saved(place / "base", config(place), SMALL)
    adapter = {"kind": "upscale", "factor": 2, "noise": 0.5, "below": {"run": "base"}}
    return place, base, saved(place / "large", config(place, adapter), LARGE, base)


def drawn(model: Generator, small: torch.Tensor | None = None, num: int = 3) -> torch.Tensor:
    more = {} if small is None else {"small": small}
    images = model.sample(num, seed=4, conditions={"text": PROMPTS, **more})
    return torch.from_numpy(images).float()


def test_sampling_runs_through_all_models(cascade: tuple[Path, Generator, Generator]) -> None:
    """The whole is the upper model on what the lower one draws, by its own noise; the folder holds both."""
    _, base, large = cascade
    assert set(large.nets) == {"ema", "below_ema"}
    rng = SampleRng(4, range(large.block)).branch("below")
    given = {"text": large.takes.source(conditions={"text": PROMPTS})}["text"]
    request = base.conditions_of(given, range(large.block))
    asked = SampleRequest(num=large.block, options=base.config.sampling, conditions=request)
    with torch.no_grad():
        small = base.family.sample(base.nets, asked, Progress.at(0), rng)
    by_hand = F.interpolate(small, scale_factor=2, mode="nearest")
    assert torch.equal(drawn(large), drawn(large, by_hand[:64])), "seen as they were drawn"
    assert not torch.equal(drawn(large), drawn(large, torch.zeros_like(by_hand)))
    torch.testing.assert_close(drawn(large, num=1), drawn(large)[:1])


def test_the_noise_of_drawn_pictures_is_added_and_told(cascade: tuple[Path, Generator, Generator]) -> None:
    place, base, large = cascade
    adapter = {**large.config.adapter.model_dump(), "drawn_noise": 0.25}  # type: ignore[attr-defined]
    noisy = saved(place / "noisy", config(place, adapter), LARGE, base)
    noisy.nets["ema"].load_state_dict(large.nets["ema"].state_dict())
    assert not torch.equal(drawn(noisy), drawn(large))
    upscale = UpscaleConfig(factor=2, noise=0.5)
    image = torch.rand(400, 1, 4, 4) * 2 - 1
    shown = upscale.inputs({"image": image}, Look(lambda x: x, (1, 4, 4), noise=0.25))[NAME]
    assert torch.equal(shown[:, 1], torch.full((400, 4, 4), 0.5)), "as a share of the largest"
    rng = StreamRng([Piece(0, 0, 400)], rows_per_stream=400, seed=1, images=0, phase="p")
    trained = upscale.inputs({"image": torch.zeros(400, 1, 8, 8)}, Look(lambda x: x, (1, 8, 8), rng))[NAME]
    level = trained[:, 1, 0, 0]
    assert 0.45 < float(level.mean()) < 0.55
    few, much = (trained[chosen, 0].std() for chosen in (level < 0.2, level > 0.8))
    assert float(few) < 0.06 < 0.2 < float(much), "the noise is as told"


def test_cascades_have_any_number_of_models(cascade: tuple[Path, Generator, Generator]) -> None:
    place, _, large = cascade
    adapter = {"kind": "upscale", "factor": 2, "below": {"run": "large"}}
    data = DataSpec(1, 32, 32, (), TEXT)
    whole = saved(place / "larger", config(place, adapter), data, large)
    assert set(whole.nets) == {"ema", "below_ema", "below_below_ema"}
    assert drawn(whole, num=1).shape == (1, 32, 32, 1)


@pytest.mark.parametrize(
    ("adapter", "data", "message"),
    [
        ({}, DataSpec(1, 24, 24, (), TEXT), "draws pictures of 1x8x8; factor=2 enlarges those of 1x12x12"),
        (
            {"below": {"folder": "sd"}},
            LARGE,
            "got a folder; name a trained run in model.adapter.below.run",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_one_line(
    cascade: tuple[Path, Generator, Generator], adapter: dict[str, Any], data: DataSpec, message: str
) -> None:
    place, *_ = cascade
    chosen = {"kind": "upscale", "factor": 2, "below": {"run": "base"}, **adapter}
    if "folder" in chosen["below"]:
        text = config(place).model_dump() | {"adapter": chosen}
        (problem,) = DiffusionConfig.model_validate(text).problems(data)
    else:
        (problem,) = config(place, chosen).problems(data)
    assert message in problem


def test_noise_that_training_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="training knows at most noise=0"):
        UpscaleConfig(drawn_noise=0.2)
