"""What a pipeline of diffusers says of its model, as the settings of a recipe.

    StableDiffusionPipeline     1.x, 2.x: U-Net, one CLIP, autoencoder, noise or v on scaled linear betas
    StableDiffusionXLPipeline   U-Net with pooled text and sizes, two CLIPs
    StableDiffusion3Pipeline    MMDiT, two CLIPs and T5, rectified flow with its shift
    PixArtAlphaPipeline         PixArt, T5
    DDPMPipeline, DDIMPipeline  a U-Net of pixels, with the classes that it knows

The scheduler gives the noise schedule, what the network predicts, and the nearest sampler. The autoencoder
brings the scale and the shift of its latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sfumato.core.pretrained_model import LibraryPipeline, PretrainedModel
from sfumato.errors import ConfigError
from sfumato.families.diffusion.samplers import Schedule, linear_range

_SCHEDULES: Mapping[str, Schedule] = {
    "linear": "linear",
    "scaled_linear": "scaled_linear",
    "squaredcos_cap_v2": "cosine",
}
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}
_SAMPLERS = {"DDIMScheduler": "ddim", "UniPCMultistepScheduler": "unipc"}
"""Samplers of the same name; all other schedulers become DPM-Solver++, which solves the same equation."""
T5_TOKENS = {"pixart": 120, "sd3": 256}
"""Tokens that the pipelines take (`max_sequence_length`)."""
Settings = dict[str, Any]


def settings(source: PretrainedModel) -> Settings:
    """The fields of a diffusion model that starts from this pipeline.

    Raises ConfigError for one of another kind.
    """
    pipeline = source.pipeline
    assert pipeline is not None, "looked up"
    if pipeline.name not in _PIPELINES:
        known = ", ".join(_PIPELINES)
        raise ConfigError(f"model.pretrained.folder: holds a {pipeline.name}; models start from {known}")
    return _PIPELINES[pipeline.name](source, pipeline)


def _sd(source: PretrainedModel, pipeline: LibraryPipeline) -> Settings:
    encoder = _encoder(source, "text_encoder", uses="states", tokens=_tokens(pipeline, "tokenizer"))
    network = {"kind": "library_text", "model": source.library}
    sampling = {"sampler": _sampler(pipeline), "steps": 25, "guidance": 7.5}
    return _of_texts(source, network, _denoising(pipeline), [encoder], sampling)


def _xl(source: PretrainedModel, pipeline: LibraryPipeline) -> Settings:
    if "text_encoder" not in pipeline.parts:
        raise ConfigError(
            "model.pretrained.folder: the SDXL refiner has one text encoder; start from the base"
        )
    encoders = [
        _encoder(source, "text_encoder", layer=-2, uses="states", tokens=_tokens(pipeline, "tokenizer")),
        _encoder(source, "text_encoder_2", layer=-2, beside=True, tokens=_tokens(pipeline, "tokenizer_2")),
    ]
    size = _side(source, pipeline)
    network = {"kind": "library_text", "model": source.library, "pooled_with_size": (size, size)}
    sampling = {"sampler": _sampler(pipeline), "steps": 25, "guidance": 5.0}
    return _of_texts(source, network, _denoising(pipeline), encoders, sampling)


def _sd3(source: PretrainedModel, pipeline: LibraryPipeline) -> Settings:
    if "text_encoder_3" not in pipeline.parts:
        raise ConfigError("model.pretrained.folder: lacks text_encoder_3 (T5); copy the whole pipeline")
    encoders = [
        _encoder(source, "text_encoder", layer=-2, tokens=_tokens(pipeline, "tokenizer")),
        _encoder(source, "text_encoder_2", layer=-2, beside=True, tokens=_tokens(pipeline, "tokenizer_2")),
        _encoder(source, "text_encoder_3", uses="states", mask=False, tokens=T5_TOKENS["sd3"]),
    ]
    shift = float(pipeline.parts["scheduler"].get("shift", 1.0))
    network = {"kind": "library_text", "model": source.library}
    sampling = {"sampler": "euler", "steps": 28, "guidance": 7.0, "shift": shift}
    objective = {"kind": "rectified_flow", "shift": shift}
    return _of_texts(source, network, objective, encoders, sampling)


def _pixart(source: PretrainedModel, pipeline: LibraryPipeline) -> Settings:
    encoder = _encoder(source, "text_encoder", uses="states", tokens=T5_TOKENS["pixart"])
    network = {"kind": "library_text", "model": source.library}
    sampling = {"sampler": _sampler(pipeline), "steps": 20, "guidance": 4.5}
    return _of_texts(source, network, _denoising(pipeline), [encoder], sampling)


def _ddpm(source: PretrainedModel, pipeline: LibraryPipeline) -> Settings:
    assert source.library is not None
    classes = source.library.config.get("num_class_embeds")
    steps = min(50, int(pipeline.parts["scheduler"].get("num_train_timesteps", 1000)))
    return {
        "condition": "none" if classes is None else "class",
        "network": {"kind": "library", "model": source.library},
        "objective": _denoising(pipeline),
        "sampling": {"sampler": _sampler(pipeline), "steps": steps},
    }


_PIPELINES: Mapping[str, Callable[[PretrainedModel, LibraryPipeline], Settings]] = {
    "StableDiffusionPipeline": _sd,
    "StableDiffusionXLPipeline": _xl,
    "StableDiffusion3Pipeline": _sd3,
    "PixArtAlphaPipeline": _pixart,
    "DDPMPipeline": _ddpm,
    "DDIMPipeline": _ddpm,
}


def _of_texts(
    source: PretrainedModel,
    network: Settings,
    objective: Settings,
    encoders: list[Settings],
    sampling: Settings,
) -> Settings:
    return {
        "network": network,
        "objective": objective,
        "text": {"encoders": encoders},
        "first_stage": {"folder": source.folder, "subfolder": "vae", "other_data": True},
        "latent_scale": 1.0,  # the library's autoencoder scales and shifts by itself
        "sampling": sampling,
    }


def _encoder(source: PretrainedModel, part: str, **fields: Any) -> Settings:
    return {"kind": "folder", "weights": {"folder": source.folder, "subfolder": part}, **fields}


def _tokens(pipeline: LibraryPipeline, part: str) -> int | None:
    """The length that the pipeline pads texts to; None if its tokenizer has no limit."""
    longest = pipeline.parts.get(part, {}).get("model_max_length")
    return longest if isinstance(longest, int) and longest < 10_000 else None


def _side(source: PretrainedModel, pipeline: LibraryPipeline) -> int:
    """The side of images that a U-Net of latents was made for."""
    assert source.library is not None, "looked up"
    levels = len(pipeline.parts["vae"].get("block_out_channels", (1,)))
    side = source.library.config.get("sample_size") or 128
    return int((side if isinstance(side, int) else side[0]) * 2 ** (levels - 1))


def _sampler(pipeline: LibraryPipeline) -> str:
    return _SAMPLERS.get(str(pipeline.parts["scheduler"].get("_class_name")), "dpmsolver++")


def _denoising(pipeline: LibraryPipeline) -> Settings:
    """The objective that the scheduler describes."""
    scheduler = pipeline.parts["scheduler"]
    prediction = scheduler.get("prediction_type", "epsilon")
    schedule = scheduler.get("beta_schedule", "linear")
    if (
        prediction not in _PREDICTIONS
        or schedule not in _SCHEDULES
        or scheduler.get("trained_betas") is not None
    ):
        known = (
            "prediction_type epsilon or v_prediction, beta_schedule linear, scaled_linear, squaredcos_cap_v2"
        )
        raise ConfigError(
            f"model.pretrained.folder: its scheduler has prediction_type {prediction}, "
            f"beta_schedule {schedule}; models start from {known}"
        )
    timesteps = int(scheduler.get("num_train_timesteps", 1000))
    found: Settings = {
        "kind": "ddpm",
        "prediction": _PREDICTIONS[prediction],
        "schedule": _SCHEDULES[schedule],
        "timesteps": timesteps,
    }
    ends = (float(scheduler.get("beta_start", 1e-4)), float(scheduler.get("beta_end", 0.02)))
    if schedule != "squaredcos_cap_v2" and ends != linear_range(timesteps, _SCHEDULES[schedule]):
        found["betas"] = ends
    if scheduler.get("rescale_betas_zero_snr"):
        found["zero_terminal_snr"] = True
    return found
