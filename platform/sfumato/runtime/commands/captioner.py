"""An image-to-text model of transformers, from a folder, that writes captions: BLIP, GIT, LLaVA, Qwen-VL, ...

Decoding is greedy. Nothing is downloaded or unpickled, and no code in the folder runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sfumato.data.format.columns import EncoderInfo
from sfumato.data.format.manifest import Manifest, file_digest
from sfumato.errors import ConfigError
from sfumato.evaluation.features.transformers_folder import transformers_problems

ASKED = "Describe this image in one sentence."
"""What a model that chats is asked, unless --prompt says something else."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_SAFELY = {"local_files_only": True, "trust_remote_code": False}  # no code in the folder is run


@dataclass(frozen=True, slots=True)
class CaptionModel:
    """A model in a folder, and how it is asked."""

    folder: str
    kind: str
    digest: str
    tokens: int
    prompt: str | None

    def info(self, named: str, manifest: Manifest) -> EncoderInfo:
        """The manifest entry of what it writes."""
        return EncoderInfo(
            run=named,
            digest=self.digest,
            family=self.kind,
            images=manifest.digest,
            transform=f"greedy, at most {self.tokens} tokens" + (f", {self.prompt}" if self.prompt else ""),
        )


def look_up(folder: Path, tokens: int, prompt: str | None) -> CaptionModel:
    """The model in a folder. Raises ConfigError, in one line, if it holds none that writes of images."""
    if problems := transformers_problems("of captions"):
        raise ConfigError(*problems)
    if not folder.is_dir():
        raise ConfigError(f"--caption: {str(folder)!r} is no folder; name that of an image-to-text model")
    if not (folder / "config.json").is_file() or not any((folder / name).is_file() for name in WEIGHTS):
        raise ConfigError(f"--caption: {str(folder)!r} has no config.json with model.safetensors")
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    try:
        kind = str(AutoConfig.from_pretrained(folder, **_SAFELY).model_type)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--caption: {folder}: {str(error).splitlines()[0]}") from error
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise ConfigError(
            f"--caption: {folder} holds a model of type {kind!r}, which writes no texts of images; wanted "
            "one such as blip, git or llava"
        )
    _processors(folder)
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja"):
            digest.update(f"{path.name} {file_digest(str(folder), path.name)}\n".encode())
    return CaptionModel(str(folder), kind, digest.hexdigest(), tokens, prompt)


def _processors(folder: Path) -> tuple[Any, Any]:
    """What prepares images (and prompts), and the tokenizer. Raises ConfigError, in one line."""
    import transformers as library

    auto: Any = library
    try:
        whole = auto.AutoProcessor.from_pretrained(folder, **_SAFELY)
        if hasattr(whole, "tokenizer"):
            return whole, whole.tokenizer
    except (OSError, ValueError, ImportError):
        pass  # its parts may be there
    try:
        images = auto.AutoImageProcessor.from_pretrained(folder, **_SAFELY)
        return images, auto.AutoTokenizer.from_pretrained(folder, **_SAFELY)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--caption: {folder}: no image processor and tokenizer ({reason})") from error


class FolderCaptioner:
    """A `data.packing.captioning.Captioner`."""

    def __init__(self, model: CaptionModel, device: str = "cpu") -> None:
        import transformers as library

        if look_up(Path(model.folder), model.tokens, model.prompt) != model:
            raise ConfigError(f"--caption: {model.folder} has changed since the work began")
        self._model, self._device = model, device
        self._processor, self._tokenizer = _processors(Path(model.folder))
        auto: Any = library.AutoModelForImageTextToText
        try:
            network, report = auto.from_pretrained(
                model.folder, use_safetensors=True, output_loading_info=True, **_SAFELY
            )
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"--caption: {model.folder} cannot be loaded ({reason})") from error
        if report["missing_keys"]:
            lacks = sorted(report["missing_keys"])[0]
            raise ConfigError(f"--caption: {model.folder} lacks weights, for example {lacks}")
        self._network = network.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def captions(self, image_NHWC: NDArray[np.uint8]) -> Sequence[str]:
        """One for each image, without what the model was asked."""
        pictures = [Image.fromarray(each.squeeze()).convert("RGB") for each in image_NHWC]
        asked = self._asked()
        texts: dict[str, Any] = {} if asked is None else {"text": [asked] * len(pictures), "padding": True}
        inputs = self._processor(images=pictures, return_tensors="pt", **texts).to(self._device)
        found = self._network.generate(
            **inputs, max_new_tokens=self._model.tokens, do_sample=False, num_beams=1
        )
        length = 0 if asked is None else inputs["input_ids"].shape[1]
        if length and torch.equal(found[:, :length], inputs["input_ids"]):
            found = found[:, length:]
        told: list[str] = self._tokenizer.batch_decode(found, skip_special_tokens=True)
        return told

    def _asked(self) -> str | None:
        """The prompt as the model expects it; None for one that needs none."""
        prompt = self._model.prompt
        if getattr(self._processor, "chat_template", None) is None:
            return prompt
        content = [{"type": "image"}, {"type": "text", "text": prompt or ASKED}]
        told = self._processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return str(told)
