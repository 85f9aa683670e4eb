"""Write a trained model as a diffusers pipeline folder.

An unconditional model becomes a stock pipeline, `DDIMPipeline` for the ddim sampler and `DDPMPipeline`
(whose loop fits any scheduler) for the others:

    DiffusionPipeline.from_pretrained(folder)(batch_size=4, num_inference_steps=50)

`DDIMPipeline` is right only where the number of steps divides T (`pipeline.respaced`). For a model whose
number of steps does not, ddim without noise becomes first-order DPM-Solver++ in a `DDPMPipeline`, which is
the same method (Lu et al. 2022, sec. 4.1) and steps right. A stock pipeline has diffusers' own timesteps, one
too many for some numbers of steps (`pipeline.set_timesteps`): avoid such numbers there.

diffusers has no pipeline for a class-conditional `UNet2DModel`, so such a folder carries its own code,
`pipeline.py`, which diffusers runs only on request:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)(class_labels=[7, 7], guidance_scale=1.5)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DPMSolverMultistepScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)

from sfumato.errors import ConfigError
from sfumato.families.diffusion import pipeline
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling

INDEX = "model_index.json"


def write_pipeline(
    folder: Path, unet: UNet2DModel, scheduler: Any, options: DDPMSampling, *, conditional: bool
) -> None:
    """Save U-Net (safetensors), scheduler and, for a conditional model, the pipeline's code.

    Raises ConfigError if diffusers cannot sample with `options`.
    """
    if options.guide is not None:
        raise ConfigError("sampling.guide: a diffusers pipeline has one network; leave it out")
    if not type(scheduler).__module__.startswith("diffusers."):
        raise ConfigError(
            f"sampling.sampler: diffusers has no {options.sampler.kind} of order 3; set its order to 2"
        )
    if not conditional:
        scheduler, unet = stock(scheduler, options), _predicting_the_mean(unet, scheduler, options)
        kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
        kind(unet=unet, scheduler=scheduler).save_pretrained(folder)
        return
    pipeline.ClassConditionalPipeline(
        unet=unet,
        scheduler=scheduler,
        steps=options.steps,
        guidance=options.guidance,
        eta=options.eta,
        guidance_interval=options.guidance_interval,
        guidance_rescale=options.guidance_rescale,
    ).save_pretrained(folder)
    code = Path(pipeline.__file__)
    shutil.copyfile(code, folder / code.name)
    # diffusers looks for the class in this file of the folder when the name is a pair.
    index = json.loads((folder / INDEX).read_text())
    index["_class_name"] = [code.stem, pipeline.ClassConditionalPipeline.__name__]
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def stock(scheduler: Any, options: DDPMSampling) -> Any:
    """The scheduler, or one of the same steps that diffusers takes right."""
    if isinstance(scheduler, UniPCMultistepScheduler):
        raise ConfigError(
            "sampling.sampler: diffusers' pipeline without classes cannot run unipc; use dpmsolver++"
        )
    if not isinstance(scheduler, DDIMScheduler):
        return scheduler
    timesteps = scheduler.config.num_train_timesteps
    if timesteps % options.steps == 0:
        return scheduler
    if options.eta:
        near = min((n for n in range(1, timesteps + 1) if timesteps % n == 0), key=_distance(options.steps))
        raise ConfigError(
            f"sampling.steps: {options.steps} does not divide the {timesteps} timesteps, as diffusers' DDIM "
            f"with eta={options.eta:g} needs; use steps={near}, or eta=0"
        )
    return DPMSolverMultistepScheduler.from_config(
        scheduler.config,
        algorithm_type="dpmsolver++",
        solver_order=1,
        thresholding=scheduler.config.clip_sample,
        sample_max_value=1.0,
    )


def _predicting_the_mean(unet: UNet2DModel, scheduler: Any, options: DDPMSampling) -> UNet2DModel:
    """The U-Net; without the channels of a learned variance, if the scheduler does not use them.

    Raises ConfigError if a stock pipeline would add noise to the images with that variance.
    """
    channels = unet.config.in_channels
    if unet.config.out_channels == channels:
        return unet
    if scheduler.config.get("variance_type") == "learned_range":
        if options.steps != scheduler.config.num_train_timesteps:
            raise ConfigError(
                f"sampling.steps: {options.steps}; with a learned variance diffusers' last step adds noise, "
                f"unless there are {scheduler.config.num_train_timesteps}; use so many, or another sampler"
            )
        return unet
    smaller = UNet2DModel.from_config({**unet.config, "out_channels": channels})
    state = unet.state_dict()
    last = {key: value[:channels] for key, value in state.items() if key.startswith("conv_out.")}
    smaller.load_state_dict({**state, **last})
    return smaller


def _distance(wish: int) -> Callable[[int], int]:
    return lambda number: abs(number - wish)
