"""IP-Adapter: its own weights train, diffusers draws the same with them, and a file of it starts one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapting import DATA, PROMPTS, control_images, looked_up, nets_of, step
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_pipelines import save_pipeline
from torch import Tensor, nn

from sfumato.core.batch import DataSpec, Texts
from sfumato.core.columns import Column
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.core.stored import matches
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families.diffusion.adapters.ip_adapter import FILE, IPAdapterConfig
from sfumato.families.diffusion.config import DiffusionConfig

SCALE, GUIDANCE = 0.6, 3.0
PIXELS = ((control_images() / 2 + 0.5) * 255).round()
"""[2, 1, 8, 8], whole levels of 8 bits, as files have them."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion, and a CLIP of images with visible weights."""
    root = tmp_path_factory.mktemp("image-prompts")
    save_pipeline(root / "sd", "sd")
    encoder = IPAdapterConfig.tiny().frozen()["image_encoder"]
    with seeded(0, "encoder"):
        network: Any = encoder.build()
        for weight in network.parameters():
            if weight.dim() > 1:
                nn.init.normal_(weight, std=0.3)
    network.save_pretrained(root / "clip")
    return root


def started(folders: Path, sampling: dict[str, Any] | None = None, **adapter: Any) -> DiffusionConfig:
    options = {"steps": 3, "guidance": GUIDANCE, "image_guidance": GUIDANCE, **(sampling or {})}
    parts = {"kind": "ip_adapter", "column": "edge", **adapter}
    if not {"length", "encoder"} & set(adapter):
        parts["encoder"] = {"folder": str(folders / "clip")}
    return looked_up(folders, pretrained={"folder": str(folders / "sd")}, adapter=parts, sampling=options)


@torch.no_grad()
def sampled(config: DiffusionConfig, nets: Any, prompt: Tensor | None) -> Tensor:
    conditions: dict[str, Any] = {"text": Texts(PROMPTS)}
    conditions |= {} if prompt is None else {"image_prompt": prompt}
    request = SampleRequest(num=2, options=config.sampling, conditions=conditions)
    return config.build(DATA).sample(nets, request, Progress.at(0), SampleRng(7, range(2)))


@pytest.fixture(scope="module")
def trained(folders: Path) -> tuple[DiffusionConfig, dict[str, nn.Module], list[str]]:
    """After a step, and the names of the tensors that moved."""
    config = started(folders, {"adapter_scale": SCALE})
    assert config.problems(DATA) == []
    nets = nets_of(config)
    before = {name: value.clone() for name, value in nets["network"].state_dict().items()}
    step(config, nets, rate=1.0)
    moved = [n for n, value in nets["network"].state_dict().items() if not torch.equal(value, before[n])]
    return config, nets, moved


def test_its_own_weights_alone_train_and_begin_as_the_texts(folders: Path, trained: Any) -> None:
    config, _, moved = trained
    assert moved and all(matches(name, config.adapter.trained()) for name in moved)
    fresh = nets_of(config)["network"].state_dict()
    copied = [name for name in fresh if name.endswith("attn2.processor.to_k_ip.weight")]
    assert copied
    for name in copied:
        assert torch.equal(fresh[name], fresh[name.replace("processor.to_k_ip", "to_k")])


def test_diffusers_draws_the_same_from_the_exported_folder(
    trained: Any, folders: Path, tmp_path: Path
) -> None:
    from diffusers import StableDiffusionPipeline

    config, nets, _ = trained
    own = sampled(config, nets, PIXELS / 127.5 - 1)
    config.build(DATA).export_diffusers(nets, str(tmp_path / "out"), config.sampling)
    plain = looked_up(folders, pretrained={"folder": str(folders / "sd")}, sampling={"steps": 3})
    plain.build(DATA).export_diffusers(nets_of(plain), str(tmp_path / "base"), plain.sampling)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    pipeline.load_ip_adapter(str(tmp_path / "out"), subfolder="", weight_name=FILE)
    pipeline.set_ip_adapter_scale(SCALE)
    pipeline.set_progress_bar_config(disable=True)
    noise = SampleRng(7, range(2)).normal(2, 4, 4)
    for row, prompt in enumerate(PROMPTS):
        shown = Image.fromarray(PIXELS[row, 0].numpy().astype(np.uint8)).convert("RGB")
        images = pipeline(
            prompt,
            ip_adapter_image=shown,
            num_inference_steps=3,
            guidance_scale=GUIDANCE,
            latents=noise[row : row + 1],
            output_type="np",
        ).images
        expected = own[row : row + 1].numpy() / 2 + 0.5
        np.testing.assert_allclose(images.transpose(0, 3, 1, 2), expected, atol=1e-4)


def test_a_file_starts_another_one(trained: Any, folders: Path, tmp_path: Path) -> None:
    config, nets, moved = trained
    config.build(DATA).export_diffusers(nets, str(tmp_path / "out"), config.sampling)
    file = tmp_path / "out" / FILE
    found = nets_of(started(folders, start={"file": str(file)}))["network"].state_dict()
    assert all(torch.equal(found[name], nets["ema"].state_dict()[name]) for name in moved)
    stored = load_file(file)
    stored["image_proj.norm.weight"] = torch.zeros(3)
    save_file(stored, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"has 3 for image_proj\.norm\.weight, this model needs 8"):
        nets_of(started(folders, start={"file": str(tmp_path / "other.safetensors")}))


def test_scale_zero_is_the_base_and_no_image_is_an_embedding_of_zeros(folders: Path, trained: Any) -> None:
    config, nets, _ = trained
    prompt = PIXELS / 127.5 - 1
    off = started(folders, {"adapter_scale": 0.0, "image_guidance": 1.0})
    plain = looked_up(
        folders, pretrained={"folder": str(folders / "sd")}, sampling={"steps": 3, "guidance": GUIDANCE}
    )
    assert torch.equal(sampled(off, nets, prompt), sampled(plain, nets_of(plain), None))
    shown, without = sampled(config, nets, prompt), sampled(started(folders), nets, None)
    assert float((shown - without).abs().max()) > 1e-3
    adapter = config.adapter
    assert adapter is not None
    assert (
        float(adapter.without({"image_prompt_embedding": torch.ones(2, 6)})["image_prompt_embedding"].sum())
        == 0
    )


def test_embeddings_of_the_data_take_the_place_of_an_encoder(folders: Path) -> None:
    data = DataSpec(1, 8, 8, (), {"text": Column("text", "str"), "seen": Column("vector", "float32", (5,))})
    config = started(folders, column="seen", length=5)
    assert config.problems(data) == []
    assert "image_encoder" not in config.build(data).samplers
    (found,) = [each for each in config.conditions(data) if each.name == "image_prompt"]
    assert (found.kind, found.shape) == ("vector", (5,))
    wrong = started(folders, column="seen", length=4).problems(data)
    assert wrong == ["model.adapter.length: 4, but 'seen' has 5 numbers"]


def test_what_cannot_prompt_is_refused(folders: Path) -> None:
    def line(**adapter: Any) -> str:
        return started(folders, **adapter).problems(DATA)[0]

    assert "got both of encoder and length" in line(encoder={"folder": str(folders / "clip")}, length=3)
    assert "got neither" in line(encoder=None)
    assert "no images 'photo', only image, text, edge" in line(column="photo")
    text = line(encoder={"folder": str(folders / "sd"), "subfolder": "text_encoder"})
    assert "CLIPTextModel is no network of images" in text
    assert "name a safetensors file" in line(start={"folder": str(folders / "clip")})
    config = started(folders, tokens=2)
    with pytest.raises(ConfigError, match="reads IP-Adapters of 4 tokens, this one has 2"):
        config.build(DATA).export_diffusers(nets_of(config), str(folders / "x"), config.sampling)
    plain = looked_up(
        folders, pretrained={"folder": str(folders / "sd")}, sampling={"steps": 1, "adapter_scale": 2.0}
    )
    with pytest.raises(ConfigError, match="adapter_scale: this model has no adapter"):
        sampled(plain, nets_of(plain), None)
