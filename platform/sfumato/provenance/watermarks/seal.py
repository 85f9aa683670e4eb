"""Meta's Seal models: Video Seal, Pixel Seal, Chunky Seal (Fernandez et al., 2024, arXiv 2412.09492).

They are published as TorchScript (`y_256b_img.jit`), one module with the methods `embed(images, bits)` and
`detect(images)` on images in [0, 1] of any size; `detect` returns whether there is a mark, then the bits, as
log odds. The bits hold the message as often as it fits: eight times in 256.

TorchScript holds a program, which `torch.jit.load` runs: without Python, but with the rights of this
process. So the file is named with its sha256, and a model folder that names one is loaded only with
`--trust`.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from sfumato.errors import ConfigError
from sfumato.provenance.repeated import repeated, voted
from sfumato.provenance.watermarks import (
    LENGTH,
    Bits,
    Detection,
    Images,
    Watermark,
    WatermarkConfig,
    p_value,
)


class SealConfig(WatermarkConfig):
    """A Seal model, from the file that its authors publish."""

    least: ClassVar[int] = 64
    packages: ClassVar[tuple[str, ...]] = ("scipy",)
    runs_code: ClassVar[str] = "TorchScript"

    kind: Literal["seal"] = Field("seal", description="A Seal model of Meta's, from its TorchScript file.")
    file: str = Field("", description="TorchScript file with `embed` and `detect`, such as y_256b_img.jit.")
    sha256: str = Field(
        "",
        pattern=r"^([0-9a-f]{64})?$",
        description="Of the file, which is a program: checked before it is loaded.",
    )
    capacity: int = Field(256, ge=LENGTH, description="Bits that the model hides.")

    def build(self) -> Seal:
        if not self.file:
            raise ConfigError(
                "watermark seal needs the file of its model: set file and sha256, or use spread"
            )
        return Seal(_module(self.file, self.sha256, self.capacity), self.capacity)


class Seal(Watermark):
    """The scheme with its module."""

    def __init__(self, module: Any, capacity: int) -> None:
        self._module, self._capacity = module, capacity

    def embed(self, images_NHWC: Images, bits: Bits) -> Images:
        """As `Watermark.embed`. Grey pictures get the mean of three channels; transparency stays."""
        import torch

        secret = torch.from_numpy(repeated(bits, self._capacity))[None]
        marked = images_NHWC.copy()
        for image, target in zip(images_NHWC, marked, strict=True):
            with torch.no_grad():
                found = self._module.embed(_tensor(image), secret)[0]
            colours = found.clamp(0, 1).mul(255).permute(1, 2, 0).double().numpy()
            if image.shape[-1] == 1:
                colours = colours.mean(-1, keepdims=True)
            target[..., : colours.shape[-1]] = colours.round().astype(np.uint8)
        return marked

    def detect(self, image_HWC: Images, bits: Bits) -> Detection:
        """As `Watermark.detect`. Log odds of every pixel, where a model gives those, are averaged."""
        import torch

        with torch.no_grad():
            found = self._module.detect(_tensor(image_HWC))[0]
        logits = found.flatten(1).mean(1) if found.ndim > 1 else found
        matched = int((voted(logits[1:].double().numpy()) == (bits > 0)).sum())
        return Detection(matched, p_value(matched))


def _tensor(image_HWC: Images) -> Any:
    """float32 [1, 3, H, W] in [0, 1]."""
    import torch

    colours = np.repeat(image_HWC, 3, -1) if image_HWC.shape[-1] == 1 else image_HWC[..., :3]
    return torch.from_numpy(colours.astype(np.float32) / 255).permute(2, 0, 1)[None]


@lru_cache(maxsize=2)
def _module(path: str, sha256: str, capacity: int) -> Any:
    """Raises ConfigError: a file that is missing, another one, or no Seal model of this capacity."""
    import torch

    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"watermark seal: {path}: no such file; Meta publishes it as TorchScript")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if not sha256:
        raise ConfigError(
            f"watermark seal: {path} is a program, so its sha256 is required; if you trust this file, it is "
            f"{found}"
        )
    if found != sha256:
        raise ConfigError(f"watermark seal: {path} is another file: its sha256 is {found}, not {sha256}")
    try:
        module = torch.jit.load(path, map_location="cpu").eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"watermark seal: {path} is no TorchScript file: {reason}") from None
    if missing := [name for name in ("embed", "detect") if not hasattr(module, name)]:
        raise ConfigError(f"watermark seal: {path} has no method {missing[0]!r}, so it is no Seal model")
    with torch.no_grad():
        bits = module.detect(torch.zeros(1, 3, 64, 64)).shape[1] - 1
    if bits != capacity:
        raise ConfigError(
            f"watermark seal: {path} reads {bits} bits, capacity is {capacity}; set capacity={bits}"
        )
    return module


COMPONENT = SealConfig
