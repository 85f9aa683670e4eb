"""The models of `bench_text.py`, and diffusers' example of text to image run as it is."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "support"))
from text_folders import save_tokenizer

NEEDS = ("accelerate", "datasets", "torchvision")
STEPS = (4, 24)
_CLIP: dict[str, Any] = {
    "vocab_size": 262,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "max_position_embeddings": 77,
}
_OF_SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}


def missing(script: Path | None, python: str) -> str | None:
    """Why that interpreter cannot run the example."""
    if script is None:
        return "no --script train_text_to_image.py given"
    if not script.is_file():
        return f"no file {script}"
    command = [python, "-c", f"import {', '.join(NEEDS)}"]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        return f"{python} cannot import all of {', '.join(NEEDS)} (--python: another interpreter)"
    return None


def save_pipeline(folder: Path, side: int) -> Path:
    """A Stable Diffusion with random weights and few channels."""
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    save_tokenizer(folder / "tokenizer")
    text = CLIPTextConfig(
        hidden_size=64, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, **_CLIP
    )
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            block_out_channels=(16, 32),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=8,
            sample_size=side,
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        unet=UNet2DConditionModel(
            sample_size=side // 2,
            block_out_channels=(32, 64),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=64,
            attention_head_dim=4,
            norm_num_groups=8,
        ),
        scheduler=DDPMScheduler(**_OF_SD),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def save_encoder(folder: Path) -> Path:
    """CLIP's text model of 12 layers and half its width."""
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    config = CLIPTextConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=12, num_attention_heads=8, **_CLIP
    )
    CLIPTextModel(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def compute(recipe: Path, data: Path, place: Path) -> None:
    """The states of the recipe's encoder, as actors of `sfumato precompute` compute them."""
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.packing.placing import place_set
    from sfumato.data.packing.precompute import finish
    from sfumato.runtime.commands.precompute_jobs import jobs_of

    manifest = Manifest.load(data)
    place_set(str(data), manifest, str(place))
    for job in jobs_of(str(recipe), str(data), str(place), "text", place.parent):
        encoder = job.encoder("cpu")
        files = [job.perform(number, manifest, encoder) for number in range(len(manifest.shards))]
        finish(manifest, files, job.addition)


def transformers_alone(path: Path, rows: int, steps: int) -> float:
    """Seconds of the transformers of the recipe's U-Net, and of its text encoder, forwards and back."""
    from sfumato import recipe as recipes
    from sfumato.data.columns import spec_of
    from sfumato.data.format.manifest import Manifest
    from sfumato.runtime.runs import from_data

    recipe = recipes.load(path)
    manifest = Manifest.load(recipe.data.path)
    recipe = from_data.learnt(recipe, manifest, lambda text: None)
    spec = spec_of(recipe.data, manifest)
    network: Any = recipe.model.build(spec).nets["network"].build()  # type: ignore[union-attr]
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((module, args, kwargs))

    hooks = [
        module.register_forward_pre_hook(keep, with_kwargs=True)
        for module in network.modules()
        if type(module).__name__ in ("Transformer2DModel", "JointEncoder")
    ]
    text = recipe.model.text.encoders[0]  # type: ignore[attr-defined]
    ids, mask = text.tokenize(["a large red cube"] * rows, None)
    inputs = {"text_encoder_ids": ids, "text_encoder_mask": mask}
    network(torch.randn(rows, *spec.shape), torch.zeros(rows), inputs, return_dict=False)
    for hook in hooks:
        hook.remove()
    spent = []
    for _ in range(steps):
        start = time.perf_counter()
        for module, args, kwargs in calls:
            leaves = [each.detach().requires_grad_(each.is_floating_point()) for each in args]
            found = module(*leaves, **{k: _detached(v) for k, v in kwargs.items()})
            first = found[0] if isinstance(found, tuple) else found.sample
            first.sum().backward()
        spent.append(time.perf_counter() - start)
    return sorted(spent)[len(spent) // 2]


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


def rate(
    options: argparse.Namespace, pipeline: Path, pictures: Path, side: int, batch: int, scratch: Path
) -> float:
    """Images a second of the example's loop."""
    scratch.mkdir()
    seconds = [_run(options, pipeline, pictures, side, batch, scratch, steps) for steps in STEPS]
    return (STEPS[1] - STEPS[0]) * batch / (seconds[1] - seconds[0])


def _run(
    options: argparse.Namespace,
    pipeline: Path,
    pictures: Path,
    side: int,
    batch: int,
    scratch: Path,
    steps: int,
) -> float:
    asked = {
        "pretrained_model_name_or_path": pipeline,
        "train_data_dir": pictures,
        "caption_column": "text",
        "resolution": side,
        "train_batch_size": batch,
        "max_train_steps": steps,
        "learning_rate": 1e-5,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "checkpointing_steps": 1_000_000,
        "mixed_precision": "no",
        "output_dir": scratch / f"out-{steps}",
        "cache_dir": scratch / "cache",
    }
    command = [options.python, str(options.script), "--use_ema", *(f"--{n}={v}" for n, v in asked.items())]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(scratch / "hub"),
        "ACCELERATE_USE_CPU": "true",
    }
    start = time.perf_counter()
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the example ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return time.perf_counter() - start
