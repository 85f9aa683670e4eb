"""IP-Adapter (Ye et al. 2023, sec. 3.2): an image as a prompt. A frozen encoder embeds it, a projection turns
the embedding into tokens, and every attention to the text gets a second one to these (`image_prompt.py`).

Its own weights alone train. The image is by default the one that is learnt, as in the paper; its embedding is
zeroed now and then, which stands for no image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.family import Frozen, Nets
from sfumato.core.pretrained import LibraryModel, Pretrained
from sfumato.errors import CheckpointError, ConfigError
from sfumato.families.diffusion.adapters import AdapterConfig, Look
from sfumato.families.diffusion.adapting import image_prompt
from sfumato.families.diffusion.adapting.image_prompt import (
    NAME,
    SCALE,
    Decoupled,
    ImageTokens,
    attentions,
    embedded,
)
from sfumato.families.diffusion.adapting.steering import conditioned, core
from sfumato.families.diffusion.networks.unet_text import TextUNet

CONDITION = "image_prompt"
ENCODER = "image_encoder"
"""Of the frozen network among the family's, and of its folder in an export."""
FILE = "ip_adapter.safetensors"
TOKENS = 4
"""Of the paper; diffusers reads no other number."""
_FIELD = "model.adapter.encoder"
_TINY = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "projection_dim": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


class IPAdapterConfig(AdapterConfig):
    """Attention to an image beside that to the text."""

    names: ClassVar[tuple[str, ...]] = (NAME, SCALE)
    scaled: ClassVar[bool] = True
    kind: Literal["ip_adapter"] = Field("ip_adapter", description="Selects an image as a prompt.")
    column: str = Field(
        "image", description="The column of the data that holds the image, or its embedding without encoder."
    )
    encoder: Pretrained | None = Field(
        None,
        description="Folder of a network of images of transformers, which stays frozen; diffusers reads "
        "those of CLIP with a projection. null: `column` holds embeddings.",
    )
    length: int | None = Field(
        None, ge=1, description="Numbers of an embedding in `column`; with an encoder they are its own."
    )
    tokens: int = Field(TOKENS, ge=1, description="Tokens that an embedding becomes.")
    dropout: float = Field(
        0.05, ge=0, lt=1, description="Share of images that training leaves out, for image_guidance."
    )
    start: Pretrained | None = Field(
        None,
        description="Start from this IP-Adapter, a safetensors file, instead of from the text's weights.",
    )

    @property
    def width(self) -> int:
        """Numbers of an embedding. Raises ConfigError for an encoder that has not been looked up."""
        if self.encoder is None:
            assert self.length is not None, "checked among the problems"
            return self.length
        if self.encoder.library is None:
            raise ConfigError("model.adapter.encoder: has not been looked up")
        return image_prompt.length_of(self.encoder.library)

    def conditions(self, data: DataSpec) -> tuple[Condition, ...]:
        """The image, or its embedding; it may be left out."""
        if self.encoder is None:
            return (Condition(CONDITION, self.column, "vector", shape=(self.length or 1,)),)
        column = data.columns.get(self.column)
        shape = data.shape if column is None else tuple(column.shape)
        return (Condition(CONDITION, self.column, "image", shape=shape),)

    def frozen(self) -> dict[str, Frozen]:
        """The encoder."""
        return {} if self.encoder is None else {ENCODER: image_prompt.frozen(self.encoder)}

    def inputs(self, rows: Mapping[str, Any], look: Look) -> dict[str, Tensor]:
        """The embedding, zero where it is dropped, and the scale, if it is not one."""
        if self.column not in rows:
            return {}
        shown: Tensor = rows[self.column]
        embedding_BD = shown.float() if self.encoder is None else embedded(look.nets[ENCODER], shown).float()
        dropped_B = look.dropped(self.dropout)
        if dropped_B is not None:
            embedding_BD = embedding_BD.masked_fill(dropped_B.to(embedding_BD.device).unsqueeze(1), 0.0)
        if look.scale == 1:
            return {NAME: embedding_BD}
        return {NAME: embedding_BD, SCALE: embedding_BD.new_full((len(embedding_BD),), look.scale)}

    @property
    def droppable(self) -> bool:
        """With dropout."""
        return self.dropout > 0

    def without(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """An embedding of zeros."""
        return {name: torch.zeros_like(value) if name == NAME else value for name, value in inputs.items()}

    def trained(self) -> tuple[str, ...]:
        """The projection, and the second attentions."""
        return ("*beside.*", "*.processor.to_?_ip.*")

    def added(self, network: nn.Module) -> nn.Module:
        """With the projection beside its U-Net, and attentions in it."""
        inner: Any = core(network)
        assert isinstance(inner, TextUNet), "checked among the problems"
        unet: Any = inner.unet
        for attention in attentions(unet).values():
            attention.set_processor(Decoupled(attention))
        conditioned(network).beside = ImageTokens(self.width, self.tokens, unet.config.cross_attention_dim)
        return network

    @property
    def begins(self) -> bool:
        """What attends to images starts as what attends to texts."""
        return True

    def begin(self, network: nn.Module) -> None:
        """Copy the base's keys and values, or read the file. Raises CheckpointError if it does not fit."""
        if self.start is not None:
            self._load(network, Path(self.start.file))
            return
        inner: Any = core(network)
        for attention in attentions(inner.unet).values():
            attention.processor.begin(attention)

    def problems(self, network: nn.Module) -> list[str]:
        """Another network than a U-Net of texts; no encoder, or one that is none."""
        if not isinstance(core(network), TextUNet):
            return [
                "model.adapter: ip_adapter needs a U-Net of texts: unet_text, Stable Diffusion 1, 2 or XL"
            ]
        if (self.encoder is None) == (self.length is None):
            given = "neither" if self.encoder is None else "both"
            return [
                (
                    f"model.adapter: got {given} of encoder and length; name an encoder's folder, or give "
                    "the length of the embeddings in the data's column"
                )
            ]
        if self.start is not None and self.start.source[0] != "file":
            return ["model.adapter.start: name a safetensors file in model.adapter.start.file"]
        return [] if self.encoder is None else image_prompt.encoder_problems(self.encoder, _FIELD)

    def data_problems(self, data: DataSpec) -> list[str]:
        """A column that is missing, or holds neither pictures nor such embeddings."""
        column, has = data.columns.get(self.column), ", ".join(data.columns)
        kind = "vector" if self.encoder is None else "image"
        if column is None or column.kind != kind:
            what = "vectors" if kind == "vector" else "images"
            mend = (
                "name it in data.columns" if kind == "image" else "run `sfumato precompute --arrays features`"
            )
            return [f"model.adapter.column: the data has no {what} {self.column!r}, only {has}; {mend}"]
        if kind == "vector" and tuple(column.shape) != (self.length,):
            return [f"model.adapter.length: {self.length}, but {self.column!r} has {column.shape[0]} numbers"]
        if kind == "image" and column.shape[0] not in (1, 3):
            return [
                f"model.adapter.column: {self.column!r} has {column.shape[0]} channels; name one of 1 or 3"
            ]
        return []

    def files(self, nets: Nets, base: str) -> IPAdapterFiles:
        """Projection and attentions, with the encoder if it is one that diffusers reads.

        Raises ConfigError for a number of tokens that diffusers does not read.
        """
        if self.tokens != TOKENS:
            raise ConfigError(
                f"model.adapter.tokens: diffusers reads IP-Adapters of {TOKENS} tokens, this one has "
                f"{self.tokens}; use --format safetensors"
            )
        encoder = nets.get(ENCODER)
        known = type(encoder).__name__ == "CLIPVisionModelWithProjection"
        return IPAdapterFiles(_own(nets["ema"]), encoder if known else None)

    def _load(self, network: nn.Module, file: Path) -> None:
        from safetensors.torch import load_file

        if file.suffix != ".safetensors":
            raise CheckpointError(
                f"model.adapter.start: {file} is not read, since such files may run code; name a "
                ".safetensors file"
            )
        stored, own = load_file(file), _own(network)
        for name, value in own.items():
            if name not in stored or stored[name].shape != value.shape:
                found = "x".join(map(str, stored[name].shape)) if name in stored else "none"
                raise CheckpointError(
                    f"model.adapter.start: {file} has {found} for {name}, this model needs "
                    f"{'x'.join(map(str, value.shape))}; name a plain IP-Adapter of this base and encoder"
                )
            value.copy_(stored[name])

    @classmethod
    def tiny(cls) -> Self:
        """Of the images themselves, by a CLIP of one layer."""
        model = LibraryModel(library="transformers", name="CLIPVisionModelWithProjection", config=_TINY)
        return cls(encoder=Pretrained(library=model))


@dataclass(frozen=True, slots=True)
class IPAdapterFiles:
    """A folder for `load_ip_adapter(FOLDER, subfolder="", weight_name="ip_adapter.safetensors")`."""

    tensors: Mapping[str, Tensor]
    encoder: Any
    """A `CLIPVisionModelWithProjection`; None where embeddings are given instead of images."""

    def write(self, folder: Path, name: str) -> None:
        """Into a new folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        save_file({name: value.contiguous() for name, value in self.tensors.items()}, folder / FILE)
        if self.encoder is not None:
            self.encoder.save_pretrained(folder / ENCODER)


def _own(network: nn.Module) -> dict[str, Tensor]:
    """Its tensors by their names in IP-Adapter files; they share the network's memory."""
    inner: Any = core(network)
    found = {f"image_proj.{name}": value for name, value in conditioned(network).beside.state_dict().items()}
    for place, attention in attentions(inner.unet).items():
        found |= {
            f"ip_adapter.{place}.{name}": each for name, each in attention.processor.state_dict().items()
        }
    return found


COMPONENT = IPAdapterConfig
