"""Models that see a picture besides noise and text: channels beside the noisy image, or tokens."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from adapting import DATA, PROMPTS, control_images, drawn, looked_up, nets_of, step
from tiny_pipelines import save_pipeline
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece, Texts
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.families.diffusion.adapters import ADAPTERS, Look
from sfumato.families.diffusion.adapters.inpainting import drawn_masks
from sfumato.families.diffusion.adapters.upscale import UpscaleConfig
from sfumato.families.diffusion.adapting.concatenation import NAME
from sfumato.families.diffusion.adapting.steering import Widened
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.pipeline import Guidance, guided_output

PROGRESS = Progress.at(0)
PARTS = {
    "instruct": {"column": "edge"},
    "inpainting": {"column": "edge"},
    "upscale": {"factor": 2},
    "segmentation": {"column": "edge", "classes": 3, "step": 120},
    "reference": {"column": "edge", "channels": 1, "side": 2, "width": 8},
}


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("pipelines") / "sd", "sd")


def started(folder: Path, **model: Any) -> DiffusionConfig:
    return _started(folder, json.dumps(model))


@cache
def _started(folder: Path, asked: str) -> DiffusionConfig:
    sampling = {"steps": 3, "guidance": 3.0}
    return looked_up(
        folder.parent, pretrained={"folder": str(folder)}, sampling=sampling, **json.loads(asked)
    )


@torch.no_grad()
def sampled(config: DiffusionConfig, nets: Any, **conditions: Any) -> Tensor:
    request = SampleRequest(num=2, options=config.sampling, conditions=conditions)
    return config.build(DATA).sample(nets, request, PROGRESS, SampleRng(7, range(2)))


def adapter_of(kind: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **PARTS[kind], **more}


@pytest.mark.parametrize("kind", [kind for kind in PARTS if kind != "reference"])
def test_the_first_step_sees_the_base_and_later_ones_the_picture(kind: str, sd: Path) -> None:
    plain, config = started(sd), started(sd, adapter=adapter_of(kind))
    assert config.problems(DATA) == []
    base, nets = nets_of(plain), nets_of(config)
    torch.testing.assert_close(drawn(config, nets), drawn(plain, base), rtol=0, atol=1e-6)
    step(config, nets, rate=1.0)
    assert float((drawn(config, nets) - drawn(plain, base)).abs().max()) > 1e-3
    (layer,) = [module for module in nets["network"].modules() if isinstance(module, Widened)]
    assert float(layer.added.weight.detach().abs().max()) > 0


def test_a_reference_adds_tokens_and_may_be_left_out(sd: Path) -> None:
    config = started(sd, adapter=adapter_of("reference"))
    assert config.problems(DATA) == []
    nets = nets_of(config)
    before = {name: value.clone() for name, value in nets["network"].state_dict().items()}
    step(config, nets, rate=0.5)
    moved = [n for n, value in nets["network"].state_dict().items() if not torch.equal(value, before[n])]
    assert moved
    assert all("entering" in name for name in moved), "the base keeps its weights"
    without = sampled(config, nets, text=Texts(PROMPTS))
    shown = sampled(config, nets, text=Texts(PROMPTS), reference=control_images())
    assert float((shown - without).abs().max()) > 1e-4


def test_two_weights_mix_three_predictions_as_in_the_paper() -> None:
    """Brooks et al. 2023, eq. 3, written out."""

    def network(x: Tensor, t: Tensor, given: Any, return_dict: bool = False) -> tuple[Tensor]:
        return (x * given["image"].view(-1, 1, 1, 1) + given["text"].view(-1, 1, 1, 1),)

    x = torch.randn(2, 1, 4, 4)
    image, text = torch.tensor([1.5, -2.0]), torch.tensor([0.3, 0.7])
    zero = torch.zeros(2)
    found = guided_output(
        network,  # type: ignore[arg-type]
        x,
        torch.tensor(1),
        {"image": image, "text": text},
        guidance=Guidance(weight=7.5, image=1.5),
        null={"image": image, "text": zero},
        nothing={"image": zero, "text": zero},
    )

    def e(i: Tensor, t: Tensor) -> Tensor:
        return network(x, torch.tensor(1), {"image": i, "text": t})[0]

    expected = (
        e(zero, zero) + 1.5 * (e(image, zero) - e(zero, zero)) + 7.5 * (e(image, text) - e(image, zero))
    )
    torch.testing.assert_close(found, expected)


def test_an_instructed_model_draws_the_same_in_diffusers(sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionInstructPix2PixPipeline

    options = {"steps": 3, "guidance": 3.0, "image_guidance": 1.7}
    config = looked_up(
        tmp_path, pretrained={"folder": str(sd)}, adapter=adapter_of("instruct"), sampling=options
    )
    nets = nets_of(config)
    step(config, nets, rate=1.0)
    own = sampled(config, nets, text=Texts(PROMPTS), before=control_images())
    config.build(DATA).export_diffusers(nets, str(tmp_path / "out"), config.sampling)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPTS,
        image=control_images() / 2 + 0.5,
        num_inference_steps=3,
        guidance_scale=3.0,
        image_guidance_scale=1.7,
        latents=SampleRng(7, range(2)).normal(2, 4, 4),
        output_type="np",
    ).images
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), own.numpy() / 2 + 0.5, atol=1e-4)


def test_an_inpainting_model_draws_the_same_in_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import StableDiffusionInpaintPipeline
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Posterior

    monkeypatch.setattr(Posterior, "sample", lambda self, generator=None: self.mode())

    config = started(save_pipeline(tmp_path / "sd", "sd_four"), adapter=adapter_of("inpainting"))
    nets = nets_of(config)
    step(config, nets, rate=1.0)
    mask = torch.full((2, 1, 8, 8), -1.0)
    mask[:, :, 4:] = 1
    own = sampled(config, nets, text=Texts(PROMPTS), known=control_images(), mask=mask)
    config.build(DATA).export_diffusers(nets, str(tmp_path / "out"), config.sampling)
    pipeline = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPTS,
        image=control_images() / 2 + 0.5,
        mask_image=mask / 2 + 0.5,
        height=8,
        width=8,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=SampleRng(7, range(2)).normal(4, 4, 4),
        output_type="np",
    ).images
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), own.numpy() / 2 + 0.5, atol=1e-4)


def test_a_t2i_adapter_trains_alone_and_draws_the_same_in_diffusers(sd: Path, tmp_path: Path) -> None:
    from diffusers import StableDiffusionAdapterPipeline, StableDiffusionPipeline, T2IAdapter

    t2i = {"kind": "t2i", "column": "edge", "channels": 1, "blocks": 1}
    plain, config = started(sd), started(sd, adapter=t2i)
    assert config.problems(DATA) == []
    nets = nets_of(config)
    before = {name: value.clone() for name, value in nets["network"].state_dict().items()}
    step(config, nets, rate=1.0)
    moved = [n for n, value in nets["network"].state_dict().items() if not torch.equal(value, before[n])]
    assert moved
    assert all(".beside." in name for name in moved)
    config.build(DATA).export_diffusers(nets, str(tmp_path / "t2i"), config.sampling)
    plain.build(DATA).export_diffusers(nets_of(plain), str(tmp_path / "whole"), plain.sampling)
    parts = StableDiffusionPipeline.from_pretrained(tmp_path / "whole").components
    del parts["image_encoder"]
    adapter = T2IAdapter.from_pretrained(tmp_path / "t2i")
    pipeline = StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        PROMPTS,
        image=control_images() / 2 + 0.5,
        height=8,
        width=8,
        num_inference_steps=3,
        guidance_scale=3.0,
        latents=SampleRng(7, range(2)).normal(2, 4, 4),
        output_type="np",
    ).images
    own = sampled(config, nets, text=Texts(PROMPTS), control=control_images())
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), own.numpy() / 2 + 0.5, atol=1e-4)


def test_the_shares_of_dropped_pictures_are_those_of_the_paper() -> None:
    rng = StreamRng([Piece(0, 0, 20_000)], rows_per_stream=20_000, seed=1, images=0, phase="p")
    text_B = rng.uniform() < 0.1
    look = Look(lambda x: x, (1, 8, 8), rng, text_B)
    dropped = look.dropped(0.05)
    assert dropped is not None
    both, alone = (dropped & text_B).float().mean(), (dropped & ~text_B).float().mean()
    assert float(both) == pytest.approx(0.05, abs=0.005)
    assert float(alone) == pytest.approx(0.05 * 0.9, abs=0.005)
    assert Look(lambda x: x, (1, 8, 8)).dropped(0.5) is None, "nothing is dropped when images are drawn"


def test_drawn_masks_are_boxes_and_strokes_of_the_row_alone() -> None:
    def masks(rows: int) -> Tensor:
        rng = StreamRng([Piece(0, 0, rows)], rows_per_stream=64, seed=1, images=0, phase="p")
        return drawn_masks(rng, 16, 16)

    found = masks(64)
    assert torch.equal(found[:8], masks(8))
    assert set(found.unique().tolist()) == {0.0, 1.0}
    share = found.mean(dim=(1, 2, 3))
    assert float(share.min()) > 0.02
    assert float(share.max()) < 0.95


def test_a_small_picture_given_by_repeated_pixels_is_seen_as_it_is() -> None:
    config, small = UpscaleConfig(factor=4), torch.rand(2, 3, 2, 2) * 2 - 1
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    seen = config.inputs({"image": large}, Look(lambda x: x, (3, 8, 8)))[NAME]
    expected = F.interpolate(small, scale_factor=4, mode="bicubic").clamp(-1, 1)
    torch.testing.assert_close(seen, expected)


def test_a_map_says_where_each_class_is() -> None:
    config = ADAPTERS.find("segmentation").model_validate({"column": "edge", "classes": 3, "step": 100})
    values = torch.tensor([[0, 100], [200, 0]], dtype=torch.float32).view(1, 1, 2, 2) / 127.5 - 1
    shown = config.inputs({"edge": values}, Look(lambda x: x, (1, 2, 2)))[NAME]
    assert shown[0].argmax(dim=0).tolist() == [[0, 1], [2, 0]]
    assert float(shown.sum()) == 4


@pytest.mark.parametrize("labels", [False, True])
def test_networks_without_texts_take_pictures_from_the_start(labels: bool) -> None:
    """Super-resolution of pictures without captions, with and without classes, from fresh weights."""
    data = DataSpec(1, 8, 8, ("a", "b") if labels else ())
    tiny = DiffusionConfig.tiny().model_dump()
    tiny["sampling"] |= {"guidance": 1.5 if labels else 1.0, "image_guidance": 2.0}
    config = DiffusionConfig.model_validate({**tiny, "adapter": adapter_of("upscale", dropout=0.1)})
    assert config.problems(data) == []
    family = config.build(data)
    nets = {name: spec.build() for name, spec in family.nets.items() if hasattr(spec, "build")}
    nets["ema"] = nets["network"]
    rng = StreamRng([Piece(0, 0, 2)], rows_per_stream=2, seed=5, images=0, phase="denoise")
    batch: Any = {"image": control_images()} | ({"label": torch.tensor([0, 1])} if labels else {})
    prepared = family.prepare(nets, batch, PROGRESS, rng)
    family.phases[0].loss(nets, prepared, PROGRESS, rng).loss_B.mean().backward()
    layer = next(module for module in nets["network"].modules() if isinstance(module, Widened))
    assert layer.added.weight.grad is not None
    assert layer.base_layer.weight.grad is not None
    torch.nn.init.normal_(layer.added.weight)
    conditions: Any = {"small": control_images()} | ({"label": torch.tensor([0, 1])} if labels else {})

    def images(small: Tensor) -> Tensor:
        request = SampleRequest(num=2, options=config.sampling, conditions={**conditions, "small": small})
        with torch.no_grad():
            return family.sample(nets, request, PROGRESS, SampleRng(7, range(2)))

    assert float((images(control_images()) - images(-control_images())).abs().max()) > 1e-3


def test_what_cannot_be_shown_is_refused(sd: Path) -> None:
    def line(**adapter: Any) -> str:
        return started(sd, adapter=adapter).problems(DATA)[0]

    assert "the data has no 'before'" in line(kind="instruct")
    assert "4 takes 128 classes above 255" in line(kind="segmentation", column="edge", classes=128, step=4)
    assert "3 does not divide the height" in line(kind="upscale", factor=3)
    assert "has no image 'reference' of 3 channels" in line(kind="reference")
    assert "nothing matches 'attn9'" in line(kind="upscale", factor=2, train=["attn9"])
    guided = DiffusionConfig.model_validate(
        {
            **DiffusionConfig.tiny().model_dump(),
            "adapter": {"kind": "upscale", "factor": 2},
            "sampling": {"steps": 3, "image_guidance": 2.0},
        }
    )
    assert "needs model.adapter.dropout" in guided.problems(DataSpec(1, 8, 8))[0]
