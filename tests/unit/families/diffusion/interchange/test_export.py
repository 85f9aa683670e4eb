"""An exported folder draws in diffusers, without Sfumato's code, what Sfumato draws."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DiffusionPipeline
from diffusers.utils import dynamic_modules_utils

from sfumato.core.batch import DataSpec
from sfumato.core.family import ExportsDiffusers
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling
from sfumato.sampling.generator import Generator
from sfumato.sampling.pixels import Images

STEPS = 5
SAMPLINGS = [
    DDPMSampling(sampler="ddim", steps=STEPS),
    DDPMSampling(sampler="ddim", steps=STEPS, eta=0.7),
    DDPMSampling(sampler="ddpm", steps=STEPS),
    DDPMSampling(sampler="dpmsolver++", steps=STEPS),
    DDPMSampling(sampler="ddim", steps=STEPS, clip=False),
]
ALL_STEPS = DDPMSampling(sampler="ddpm", steps=20)
CARRIED = [*SAMPLINGS, DDPMSampling(sampler="ddim", steps=3, eta=0.7)]  # 3 does not divide the 20 timesteps


def named(sampling: DDPMSampling) -> str:
    return f"{sampling.sampler.kind}-{sampling.steps}-eta{sampling.eta:g}-clip{sampling.clip}"


def generator(
    sampling: DDPMSampling, classes: tuple[str, ...], channels: int = 1, *, variance: str = "fixed"
) -> Generator:
    config = DiffusionConfig.tiny()
    objective = config.objective.model_copy(update={"variance": variance})
    config = config.model_copy(update={"sampling": sampling, "objective": objective})
    data = DataSpec(channels, 8, 8, classes)
    with seeded(0, "init", "network"):
        net = config.build(data).nets["network"].build()
    return Generator(config, data, {"ema": net})


def export(model: Generator, folder: Path) -> None:
    assert isinstance(model.family, ExportsDiffusers)
    model.family.export_diffusers(model.nets, str(folder), model.config.sampling)


def quiet(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(images: list[object]) -> Images:
    array = np.stack([np.asarray(image) for image in images])
    return array[..., None] if array.ndim == 3 else array


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=named)
@pytest.mark.parametrize("channels", [1, 3])
def test_unconditional_is_a_stock_pipeline(sampling: DDPMSampling, channels: int, tmp_path: Path) -> None:
    model = generator(sampling, (), channels)
    export(model, tmp_path)
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    assert type(pipeline) is (DDIMPipeline if sampling.sampler.kind == "ddim" else DDPMPipeline)
    clips = model.config.sampling.clip is not False
    ddim = {"eta": sampling.eta, "use_clipped_model_output": clips}
    extra = ddim if sampling.sampler.kind == "ddim" else {}
    theirs = pipeline(
        batch_size=model.block,
        generator=SampleRng(4, range(model.block)).generators,
        num_inference_steps=STEPS,
        **extra,
    ).images
    np.testing.assert_array_equal(pixels(theirs), model.sample(model.block, seed=4))
    assert not list(tmp_path.rglob("*.bin"))
    assert not list(tmp_path.rglob("*.py"))


@pytest.mark.parametrize("clip", [None, False])
def test_steps_that_do_not_divide_t_are_exported_too(clip: bool | None, tmp_path: Path) -> None:
    model = generator(DDPMSampling(sampler="ddim", steps=3, clip=clip), ())
    export(model, tmp_path)
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    noise = SampleRng(4, range(model.block)).generators
    theirs = pixels(pipeline(batch_size=model.block, generator=noise, num_inference_steps=3).images)
    ours = model.sample(model.block, seed=4)
    apart = np.abs(theirs.astype(int) - ours.astype(int))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01, "another order of rounding, no other step"


def test_noisy_steps_that_diffusers_gets_wrong_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps: 3 does not divide the 20 .* use steps=2, or eta=0"):
        export(generator(DDPMSampling(sampler="ddim", steps=3, eta=0.5), ()), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sampling", [DDPMSampling(sampler="ddim", steps=STEPS), ALL_STEPS], ids=named)
def test_a_learned_variance_is_exported(sampling: DDPMSampling, tmp_path: Path) -> None:
    """As the scheduler's variance type where it is used, and not at all where it is not."""
    model = generator(sampling, (), variance="learned")
    export(model, tmp_path)
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path))
    used = sampling.sampler.kind == "ddpm"
    assert pipeline.unet.config.out_channels == (2 if used else 1)
    assert pipeline.scheduler.config.get("variance_type") == ("learned_range" if used else None)
    extra = {} if used else {"use_clipped_model_output": True}
    noise = SampleRng(4, range(model.block)).generators
    theirs = pipeline(
        batch_size=model.block, generator=noise, num_inference_steps=sampling.steps, **extra
    ).images
    apart = np.abs(pixels(theirs).astype(int) - model.sample(model.block, seed=4).astype(int))
    assert apart.max() <= 1 and (apart > 0).mean() < 0.01


def test_a_learned_variance_that_diffusers_would_leave_in_the_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps: 5; with a learned variance .* there are 20; use so many"):
        export(generator(DDPMSampling(sampler="ddpm", steps=STEPS), (), variance="learned"), tmp_path)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize(
    "sampling", CARRIED, ids=lambda s: f"{s.sampler.kind}-eta{s.eta:g}-clip{s.clip}-{s.steps}"
)
def test_class_conditional_carries_its_pipeline(
    sampling: DDPMSampling, guidance: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    model = generator(sampling.model_copy(update={"guidance": guidance}), ("a", "b", "c"))
    export(model, folder)
    pipeline = quiet(DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
    assert type(pipeline).__module__.startswith("diffusers_modules.")
    labels = [index % 3 for index in range(model.block)]
    noise = SampleRng(4, range(model.block))
    theirs = pipeline(labels, generator=noise.generators).images
    ours = model.sample(model.block, seed=4)
    np.testing.assert_array_equal(pixels(theirs), ours)
    other = pipeline(
        labels, generator=SampleRng(4, range(model.block)).generators, guidance_scale=5.0, output_type="pt"
    )
    assert other.images.shape == (model.block, 1, 8, 8)
    assert torch.is_tensor(other.images)
    assert (other.images.numpy() * 255).round().astype(np.uint8).tobytes() != ours.tobytes()


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "unipc", "guidance": 2.5},
        {"sampler": "sde-dpmsolver++", "guidance": 2.5},
        {"sampler": "ddim", "guidance": 2.5, "guidance_interval": (0.3, 5.0), "guidance_rescale": 0.7},
    ],
    ids=["unipc", "sde", "interval"],
)
def test_a_pipeline_carries_what_guides_it(
    changes: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    model = generator(DDPMSampling.model_validate({"steps": STEPS, **changes}), ("a", "b", "c"))
    export(model, tmp_path / "model")
    pipeline = quiet(DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True))
    labels = [index % 3 for index in range(model.block)]
    theirs = pipeline(labels, generator=SampleRng(4, range(model.block)).generators).images
    np.testing.assert_array_equal(pixels(theirs), model.sample(model.block, seed=4))


@pytest.mark.parametrize(
    ("sampler", "classes", "says"),
    [
        ("unipc", (), "cannot run unipc"),
        ({"kind": "dpmsolver++", "order": 3}, ("a", "b"), "of order 3"),
        ({"kind": "sde-dpmsolver++", "order": 3}, (), "of order 3"),
    ],
)
def test_samplers_that_diffusers_lacks_are_refused(
    sampler: object, classes: tuple[str, ...], says: str, tmp_path: Path
) -> None:
    sampling = DDPMSampling.model_validate({"sampler": sampler, "steps": STEPS})
    with pytest.raises(ConfigError, match=says):
        export(generator(sampling, classes), tmp_path / "model")


def test_diffusers_does_not_run_the_folders_code_untold(tmp_path: Path) -> None:
    export(generator(SAMPLINGS[0], ("a", "b")), tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    export(generator(SAMPLINGS[0], ("a", "b")), tmp_path / "model")
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", trust_remote_code=True)
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        pipeline([2])
