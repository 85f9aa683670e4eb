"""Denoising from noise to images, and the diffusers pipeline of a class-conditional model.

Training, sampling and exported folders run this one file: an export copies it beside the weights. So it
imports torch and diffusers alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
    UniPCMultistepScheduler,
)
from diffusers.utils.torch_utils import randn_tensor


@dataclass(frozen=True)
class Guidance:
    """How a prediction is moved away from a worse one: of no class, or of a worse network.

    `weight` is 1 + w of Ho & Salimans 2022, eq. 6, and w of Karras et al. 2024, eq. 1: 1 does nothing.
    `interval` holds the noise levels sigma above and up to which it acts (Kynkäänniemi et al. 2024, eq. 6);
    None: at all. `rescale` is phi of Lin et al. 2023, eq. 16, which restores the deviation of the better
    prediction's values: 0 does nothing, 1 all of it. `image` is s_I of Brooks et al. 2023, eq. 3, whose
    s_T is `weight`: how far the prediction moves from that of neither text nor image to that of the image.
    """

    weight: float = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    image: float = 1.0

    def acts(self, sigma: float | None) -> bool:
        """Whether it changes a prediction at this noise level, which only an interval needs."""
        if self.interval is None or (self.weight == 1 and self.image == 1):
            return self.weight != 1 or self.image != 1
        assert sigma is not None, "an interval needs the noise level"
        return self.interval[0] < sigma <= self.interval[1]

    def mixed(self, worse: torch.Tensor, better: torch.Tensor) -> torch.Tensor:
        """worse + weight (better - worse), rescaled; each [B, C, H, W], in the network's own units."""
        guided = worse + self.weight * (better - worse)
        if not self.rescale:
            return guided
        own, wanted = (part.flatten(1).std(dim=1).view(-1, 1, 1, 1) for part in (guided, better))
        return guided * (1 + self.rescale * (wanted / own.clamp(min=1e-12) - 1))


def guided_output(
    unet: torch.nn.Module,
    x: torch.Tensor,
    t: torch.Tensor,
    given: torch.Tensor | Mapping[str, torch.Tensor] | None,
    *,
    guidance: Guidance,
    null: int | Mapping[str, torch.Tensor],
    nothing: Mapping[str, torch.Tensor] | None = None,
    sigma: float | None = None,
    worse: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The network's output, guided away from that of `worse` or, without one, of its own for `null`.

    The output may be noise or v: both are affine in the predicted image with the same coefficients, so that
    guiding one guides the other. Channels beyond those of `x`, which hold a variance, are not guided (Peebles
    & Xie 2023, code). Where guidance does not act, the network runs once, on the plain batch.

    Args:
        x: noisy images [B, C, H, W].
        t: timestep, a scalar tensor.
        given: class of each image [B], int64, or named inputs with a row for each, or None.
        null: the class that stands for none, or such inputs of what to be guided away from.
        nothing: inputs without an image either, where `guidance.image` acts: a third evaluation.
        sigma: noise level of t, standard deviation of the noise over the factor of the image.
        worse: another network's output at (x, t).
    """

    def mixed(of_worse: torch.Tensor, better: torch.Tensor) -> torch.Tensor:
        channels = x.shape[1]
        image = guidance.mixed(of_worse[:, :channels], better[:, :channels])
        return image if better.shape[1] == channels else torch.cat([image, better[:, channels:]], dim=1)

    if not guidance.acts(sigma) or (given is None and worse is None):
        return unet(x, t, given, return_dict=False)[0]  # type: ignore[no-any-return]
    if worse is not None:
        return mixed(worse(x, t), unet(x, t, given, return_dict=False)[0])
    assert given is not None, "checked above"
    if nothing is None:
        uncond, cond = unet(torch.cat([x, x]), t, _both(null, given), return_dict=False)[0].chunk(2)
        return mixed(uncond, cond)
    assert isinstance(null, Mapping)
    rows = _both(nothing, _both(null, given))
    neither, uncond, cond = unet(torch.cat([x, x, x]), t, rows, return_dict=False)[0].chunk(3)
    channels = x.shape[1]
    found = mixed(uncond, cond)
    moved = found[:, :channels] + (guidance.image - 1) * (uncond - neither)[:, :channels]
    return torch.cat([moved, found[:, channels:]], dim=1)


def _both(
    null: int | Mapping[str, torch.Tensor], given: torch.Tensor | Mapping[str, torch.Tensor]
) -> torch.Tensor | dict[str, torch.Tensor]:
    """The rows of the one, then those of the other."""
    if isinstance(given, torch.Tensor):
        assert isinstance(null, int)
        return torch.cat([torch.full_like(given, null), given])
    assert isinstance(null, Mapping)
    return {name: torch.cat([null[name], value]) for name, value in given.items()}


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Give a scheduler exactly `steps` timesteps, falling and none below zero; 1 <= steps <= T.

    diffusers counts "trailing" timesteps in floating-point numbers, T, T - T/steps, ..., and for some numbers
    of steps (61, 103, 121 of 1000) takes one too many, -1. DPM-Solver++, which on a cosine schedule starts
    somewhat below T, but keeps the distance T/steps, comes to -1 or to fewer steps than it was asked for.
    UniPC counts its steps by its noise levels, which must match. Where diffusers is right, its timesteps
    stay.
    """
    scheduler.set_timesteps(steps)
    found = scheduler.timesteps
    if isinstance(scheduler, UniPCMultistepScheduler) and len(found) != steps:
        scheduler.timesteps = found[:steps]
        scheduler.sigmas = torch.cat([scheduler.sigmas[:steps], scheduler.sigmas[-1:]])
        scheduler.num_inference_steps = steps
    elif not isinstance(scheduler, DPMSolverMultistepScheduler):
        scheduler.timesteps = found[found >= 0]
    elif len(found) != steps or found[-1] < 0:
        first = max(int(found[0]) + 1, steps)  # at least one for each step, even where it starts below
        scheduler.set_timesteps(timesteps=[round(first * (steps - i) / steps) - 1 for i in range(steps)])


def respaced(scheduler: Any) -> Any:
    """A copy of a DDIM or DDPM scheduler that knows only the levels of its timesteps, numbered n - 1 to 0.

    A step of DDIM leads to the next of its timesteps, and the last one to the image (Song et al. 2021, sec.
    4.2). diffusers goes T // steps timesteps down instead, which misses the next one where `steps` does not
    divide T, and leaves noise in the image. Among these levels alone the next one is always one down, as in
    guided-diffusion's code (Dhariwal & Nichol 2021). Where `steps` divides T, no bit of DDIM differs. DDPM
    with a learned variance needs it too: its step at timestep 0 alone adds no noise.
    """
    spaced = copy.copy(scheduler)
    steps = len(scheduler.timesteps)
    spaced.alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps.flip(0).cpu()]
    spaced.timesteps = torch.arange(steps).flip(0)
    spaced.num_inference_steps = scheduler.config.num_train_timesteps  # so that a step is one level
    return spaced


@torch.no_grad()
def denoise(
    unet: torch.nn.Module,
    scheduler: Any,
    x: torch.Tensor,
    *,
    steps: int,
    generators: list[torch.Generator] | torch.Generator | None,
    eta: float = 0.0,
    given: torch.Tensor | Mapping[str, torch.Tensor] | None = None,
    guidance: Guidance = Guidance(),
    null: int | Mapping[str, torch.Tensor] = 0,
    nothing: Mapping[str, torch.Tensor] | None = None,
    worse: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    progress: Callable[[Iterable[torch.Tensor]], Iterable[torch.Tensor]] = iter,
    first: int = 0,
) -> torch.Tensor:
    """Run a diffusers scheduler from noise `x` [B, C, H, W] to images of the same shape.

    `generators` has one generator a row, from which the scheduler draws the noise of its steps. With `first`,
    x has the noise of that one of its timesteps, where it begins.
    """
    set_timesteps(scheduler, steps)
    timesteps = scheduler.timesteps[first:]
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    sigmas = (1 / scheduler.alphas_cumprod - 1).sqrt()[timesteps.cpu()].tolist()
    # UniPC draws nothing, and takes no generators.
    extra: dict[str, Any] = (
        {} if isinstance(scheduler, UniPCMultistepScheduler) else {"generator": generators}
    )
    if isinstance(scheduler, DDIMScheduler):
        scheduler = respaced(scheduler)
        # A step's noise is that of the clipped image, as in guided-diffusion's code (Dhariwal & Nichol 2021).
        # diffusers' default keeps the network's, and much guidance then leaves noise in the image.
        extra |= {"eta": eta, "use_clipped_model_output": bool(scheduler.config.clip_sample)}
    with_variance = scheduler.config.get("variance_type") == "learned_range"
    if with_variance:
        scheduler = respaced(scheduler)
    levels = scheduler.timesteps[first:]
    for t, level, sigma in zip(progress(timesteps), levels, sigmas, strict=True):
        output = guided_output(
            unet, x, t, given, guidance=guidance, null=null, nothing=nothing, sigma=sigma, worse=worse
        )
        if not with_variance:
            output = output[:, : x.shape[1]]
        x = scheduler.step(output, level, x, **extra).prev_sample
    return x


class ClassConditionalPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Class-conditional generation with classifier-free guidance.

    `steps`, `guidance` and `eta` are the defaults of a call, saved with the pipeline, as are the guidance's
    interval and rescaling. The last class embedding of the network stands for no class.
    """

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        steps: int = 50,
        guidance: float = 1.0,
        eta: float = 0.0,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
    ):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            steps=steps,
            guidance=guidance,
            eta=eta,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels: list[int] | int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[Any]:
        """One image a class label.

        Args:
            class_labels: class indices.
            generator: one generator, or one a label.
            guidance_scale: 1 is the plain conditional model.
            num_inference_steps: denoising steps.
            eta: noise of a DDIM scheduler.
            output_type: `pil`, `np` (float [N, H, W, C] in [0, 1]) or `pt` (float [N, C, H, W] in [0, 1]).
            return_dict: False returns a plain tuple.
        """
        labels = [class_labels] if isinstance(class_labels, int) else list(class_labels)
        null_class = self.unet.config.num_class_embeds - 1
        if any(not 0 <= label < null_class for label in labels):
            raise ValueError(f"class_labels must be in 0 .. {null_class - 1}, got {labels}")
        device = self._execution_device
        shape = (len(labels), self.unet.config.in_channels, *self.unet.config.sample_size)
        images = denoise(
            self.unet,
            self.scheduler,
            randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype),
            steps=self.config.steps if num_inference_steps is None else num_inference_steps,
            generators=generator,
            eta=self.config.eta if eta is None else eta,
            given=torch.tensor(labels, device=device),
            guidance=Guidance(
                self.config.guidance if guidance_scale is None else guidance_scale,
                self.config.guidance_interval,
                self.config.guidance_rescale,
            ),
            null=null_class,
            progress=self.progress_bar,
        )
        self.maybe_free_model_hooks()
        shown = self._shown((images / 2 + 0.5).clamp(0, 1), output_type)
        return ImagePipelineOutput(images=shown) if return_dict else (shown,)

    def _shown(self, images: torch.Tensor, output_type: str) -> Any:
        if output_type == "pt":
            return images
        array = images.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array
