"""Write a trained model as a diffusers pipeline folder.

An unconditional model becomes a stock pipeline, `DDIMPipeline` for the ddim sampler and `DDPMPipeline`
(whose loop fits any scheduler) for the others:

    DiffusionPipeline.from_pretrained(folder)(batch_size=4, num_inference_steps=50)

A stock pipeline has diffusers' own timesteps, which are one too many for some numbers of steps (see
`pipeline.set_timesteps`): such numbers are to be avoided there.

diffusers has no pipeline for a class-conditional `UNet2DModel`, so such a folder carries its own code,
`pipeline.py`, which diffusers runs only on request:

    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)(class_labels=[7, 7], guidance_scale=1.5)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, UNet2DModel

from sfumato.families.diffusion import pipeline
from sfumato.families.diffusion.objectives.ddpm import DDPMSampling

INDEX = "model_index.json"


def write_pipeline(
    folder: Path, unet: UNet2DModel, scheduler: Any, options: DDPMSampling, *, conditional: bool
) -> None:
    """Save U-Net (safetensors), scheduler and, for a conditional model, the pipeline's code."""
    if not conditional:
        kind = DDIMPipeline if isinstance(scheduler, DDIMScheduler) else DDPMPipeline
        kind(unet=unet, scheduler=scheduler).save_pretrained(folder)
        return
    pipeline.ClassConditionalPipeline(
        unet=unet, scheduler=scheduler, steps=options.steps, guidance=options.guidance, eta=options.eta
    ).save_pretrained(folder)
    code = Path(pipeline.__file__)
    shutil.copyfile(code, folder / code.name)
    # diffusers looks for the class in this file of the folder when the name is a pair.
    index = json.loads((folder / INDEX).read_text())
    index["_class_name"] = [code.stem, pipeline.ClassConditionalPipeline.__name__]
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
