"""A frozen text encoder for `sfumato precompute`: hidden states of captions, from a transformers folder.

Generators of images are conditioned on the last hidden states of CLIP (Rombach et al. 2022) or T5 (Saharia
et al. 2022), one vector per token. Every caption is cut or padded to the same number of tokens; padding
is zero, and a mask marks it. Nothing is downloaded, nothing unpickled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sfumato.data.format.columns import ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest, file_digest
from sfumato.errors import ConfigError
from sfumato.evaluation.features.transformers_folder import load_folder, transformers_problems

EMBEDDING, MASK = "text_embedding", "text_mask"
_CLASSES = {
    "clip": "CLIPTextModel",
    "clip_text_model": "CLIPTextModel",
    "t5": "T5EncoderModel",
    "bert": "BertModel",
}
_LONGEST = 512
_SAFELY = {"local_files_only": True, "trust_remote_code": False}  # no code in the folder is run
_NEEDED = ("config.json", "model.safetensors")
_READ = (
    *_NEEDED,
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "spiece.model",
)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A text encoder in a folder, and the number of tokens per caption."""

    folder: str
    kind: str
    digest: str
    tokens: int
    width: int

    def info(self, named: str, manifest: Manifest) -> EncoderInfo:
        """The manifest entry of the encoded set. Raises ConfigError if there are no captions."""
        if not manifest.captions:
            raise ConfigError(
                f"--arrays text: no sample of {manifest.name} has a caption; pack them with captions"
            )
        return EncoderInfo(
            run=named,
            digest=self.digest,
            family=self.kind,
            images=manifest.digest,
            transform=f"captions of {self.tokens} tokens, last hidden states",
        )

    def columns(self, dtype: str) -> dict[str, ColumnInfo]:
        """The hidden states of every token, of this type, and the mask of tokens that are not padding."""
        shape = (self.tokens, self.width)
        return {
            EMBEDDING: ColumnInfo(kind="array", dtype=dtype, shape=shape, stored="side"),
            MASK: ColumnInfo(kind="array", dtype="int64", shape=shape[:1], stored="side"),
        }


def look_up(folder: Path, tokens: int | None) -> TextModel:
    """The text encoder in a folder; `tokens` None takes the model's maximum.

    Raises ConfigError, in one line, if the folder holds none.
    """
    if problems := transformers_problems("of text"):
        raise ConfigError(*problems)
    if missing := [name for name in _NEEDED if not (folder / name).is_file()]:
        raise ConfigError(f"--arrays text: {str(folder)!r} has no {' and no '.join(missing)}")
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(folder, **_SAFELY)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--arrays text: {folder}: {str(error).splitlines()[0]}") from error
    if config.model_type not in _CLASSES:
        raise ConfigError(
            f"--arrays text: {folder} holds a model of type {config.model_type!r}; wanted one of "
            f"{', '.join(_CLASSES)}"
        )
    config = config.get_text_config()
    places = getattr(config, "max_position_embeddings", None)  # T5's positions have no limit
    if tokens is not None and places is not None and tokens > places:
        raise ConfigError(f"--tokens: got {tokens}, the model has places for {places}")
    kind = config.model_type.removesuffix("_text_model")
    _tokenizer(folder, kind)
    digest = hashlib.sha256()
    for name in sorted(name for name in _READ if (folder / name).is_file()):
        digest.update(f"{name} {file_digest(str(folder), name)}\n".encode())
    return TextModel(
        str(folder), kind, digest.hexdigest(), tokens or places or _LONGEST, int(config.hidden_size)
    )


def _tokenizer(folder: Path, kind: str) -> Any:
    import transformers

    # Which is CLIP's cannot be told from the folder of a text model alone.
    cls: Any = transformers.CLIPTokenizer if kind == "clip" else transformers.AutoTokenizer
    try:
        return cls.from_pretrained(folder, **_SAFELY)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--arrays text: {folder}: no tokenizer can be loaded ({reason})") from error


class TextEncoder:
    """A `ShardEncoder`: for every caption its hidden states [tokens, width] and mask [tokens]."""

    def __init__(self, model: TextModel, columns: Mapping[str, ColumnInfo], device: str = "cpu") -> None:
        import transformers

        if look_up(Path(model.folder), model.tokens) != model:
            raise ConfigError(f"--arrays text: {model.folder} has changed since the work began")
        self.columns = columns
        self._model, self._device = model, device
        cls: Any = getattr(transformers, _CLASSES[model.kind])
        self._network = (
            load_folder(cls, Path(model.folder), "of text").to(device).eval().requires_grad_(False)
        )
        self._tokenizer = _tokenizer(Path(model.folder), model.kind)

    @torch.no_grad()
    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        """The arrays of `columns`; images are ignored, and a missing caption counts as an empty one."""
        told = self._tokenizer(
            [caption or "" for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=self._model.tokens,
            return_tensors="pt",
        )
        mask_NT = told["attention_mask"].to(self._device)
        out = self._network(input_ids=told["input_ids"].to(self._device), attention_mask=mask_NT)
        hidden_NTD = out.last_hidden_state.float() * mask_NT[..., None]
        embedding, mask = self.columns
        return {embedding: hidden_NTD.cpu().numpy(), mask: mask_NT.long().cpu().numpy()}
