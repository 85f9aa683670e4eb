"""A frozen text encoder from a folder of transformers: CLIP, T5, BERT and the like, or a language model.

Rombach et al. 2022 take CLIP's last states; Podell et al. 2023 and Esser et al. 2024 those of the layer
before (`layer: -2`), and CLIP's projected pooled state; Saharia et al. 2022 the last ones of T5. Of a
decoder-only language model the hidden states count. Nothing is downloaded, unpickled or run from the folder.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.family import Frozen
from sfumato.core.pretrained import IDENTIFIED, LibraryModel, Pretrained
from sfumato.errors import ConfigError
from sfumato.layers import library_networks
from sfumato.text import tokenizers_folder
from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.states import States, TextShape, Tokens

LONGEST = 512
"""Tokens of an encoder whose positions have no limit, and the most that are taken by default."""
_DTYPES = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
_ENCODERS = {
    "CLIPModel": "CLIPTextModelWithProjection",
    "T5Model": "T5EncoderModel",
    "T5ForConditionalGeneration": "T5EncoderModel",
    "MT5Model": "MT5EncoderModel",
    "MT5ForConditionalGeneration": "MT5EncoderModel",
    "UMT5Model": "UMT5EncoderModel",
    "UMT5ForConditionalGeneration": "UMT5EncoderModel",
}
"""The encoders of models that have another half."""
_OTHER_HALF = ("vision_model.*", "visual_projection.*", "logit_scale", "decoder.*", "lm_head.*")


class FolderConfig(TextEncoderConfig):
    """A text encoder of transformers with its stored weights."""

    kind: Literal["folder"] = Field("folder", description="Selects a frozen encoder from a folder.")
    weights: Pretrained = Field(
        description="The encoder: {folder: /models/clip}, of a pipeline with subfolder: text_encoder."
    )
    tokenizer: Annotated[str | None, IDENTIFIED] = Field(
        None,
        description="Folder of the tokenizer, if it is not beside the encoder or in `tokenizer` next to it.",
    )
    digest: str | None = Field(None, description="sha256 of the tokenizer; recorded when a run starts.")
    tokenizer_bytes: Annotated[int | None, IDENTIFIED] = Field(
        None, description="Length of the tokenizer; recorded when a run starts."
    )
    layer: int = Field(
        -1, le=-1, description="Whose states: -1 the last with its normalisation, -2 the layer before, ..."
    )
    pooling: Literal["model", "mean", "first"] = Field(
        "model",
        description="The pooled state: the model's own (projected, if it has a projection), the mean of all "
        "tokens but padding, or the first token's. A model without its own gives the mean.",
    )
    mask: bool | None = Field(
        None,
        description="Hide padding from the encoder; null does, except from CLIP, where it follows the "
        "text. SD3 "
        "and Flux show it to T5.",
    )
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Of its weights.")
    shard: bool = Field(
        False, description="Let a strategy that shards parameters spread it, and offload it with them."
    )

    def shape(self) -> TextShape:
        """By the encoder's configuration. Raises ConfigError before it is looked up."""
        config = self._library_config()
        width = int(config.hidden_size)
        pooled = width
        if self._class().endswith("WithProjection") and self.pooling == "model":
            pooled = int(config.projection_dim)
        return TextShape(min(self.tokens or LONGEST, self._places() or LONGEST), width, pooled)

    def problems(self) -> list[str]:
        """Another kind of model, more tokens than it has places, a layer that it does not have."""
        try:
            config = self._library_config()
        except ConfigError as error:
            return [f"weights: {problem}" for problem in error.problems]
        found = []
        kind = self._library().config.get("model_type", "?")
        if getattr(config, "vocab_size", None) is None or getattr(config, "hidden_size", None) is None:
            found.append(
                f"weights.folder: {self.weights.source[1]!r} holds a model of type {kind!r}, not of text"
            )
        elif self.tokens is not None and (places := self._places()) is not None and self.tokens > places:
            found.append(f"tokens: got {self.tokens}, the encoder has places for {places}")
        elif -self.layer > int(config.num_hidden_layers):
            found.append(f"layer: got {self.layer}, the encoder has {config.num_hidden_layers} layers")
        return found

    def tokenize(self, texts: Sequence[str], network: nn.Module | None) -> Tokens:
        """By the tokenizer in the network."""
        assert network is not None, "it is frozen"
        buffer = network.tokenizer
        assert isinstance(buffer, Tensor)
        return tokenizers_folder.tokens(buffer, texts, self.shape().tokens)

    def build(self) -> FolderEncoder:
        """The network with random weights, and its tokenizer if that is there."""
        buffer = torch.frombuffer(bytearray(self._stored_or_empty()), dtype=torch.uint8)
        return FolderEncoder(self, library_networks.build(self._encoder()), buffer)

    def frozen(self) -> Frozen:
        """The network and its stored weights."""
        weights = self.weights.weights(into="model", fresh=("tokenizer",), unused=self._unused())
        return Frozen(build=self.build, weights=weights, dtype=_DTYPES[self.dtype], shard=self.shard)

    def learnt(self, captions: Callable[[], Iterable[str]]) -> Self:
        """With a record of the tokenizer. Raises ConfigError if it is another one than recorded."""
        content = self._packed()
        digest = hashlib.sha256(content).hexdigest()
        if self.digest not in (None, digest):
            raise ConfigError(
                f"{self._tokenizer_folder()}: its tokenizer is another one than recorded; put the old one "
                f"back, or "
                "leave digest out"
            )
        place = None if self.tokenizer is None else str(Path(self.tokenizer).resolve())
        found = {"digest": digest, "tokenizer_bytes": len(content), "tokenizer": place}
        return self.model_copy(update=found)

    def in_diffusers(self, network: nn.Module) -> tuple[Any, Any]:
        """The model and the tokenizer of the folder."""
        assert isinstance(network, FolderEncoder)
        return network.model, tokenizers_folder.transformers_of(network.tokenizer, self.shape().tokens)

    def lengths(self, captions: Sequence[str]) -> list[int] | None:
        """As its tokenizer counts."""
        return tokenizers_folder.lengths(self._packed(), captions)

    @property
    def layer_used(self) -> int:
        """As set."""
        return self.layer

    @property
    def as_called(self) -> bool:
        """Of the last layer, without a mask."""
        return self.layer == -1 and not self.hides_padding and self.padding == "states"

    @property
    def hides_padding(self) -> bool:
        """Whether the encoder gets the mask."""
        return not self._class().startswith("CLIP") if self.mask is None else self.mask

    def _stored_or_empty(self) -> bytes:
        """The tokenizer; zeros of its length where it is not at hand, since a model folder holds it."""
        if self.tokenizer_bytes is None:
            return self._packed()
        try:
            content = self._packed()
        except ConfigError:
            content = b""
        recorded = hashlib.sha256(content).hexdigest() == self.digest
        return content if recorded else bytes(self.tokenizer_bytes)

    def _packed(self) -> bytes:
        return tokenizers_folder.packed(self._tokenizer_folder(), clip=self._class().startswith("CLIP"))

    def _tokenizer_folder(self) -> Path:
        if self.tokenizer is not None:
            return Path(self.tokenizer)
        own = Path(self.weights.folder, self.weights.subfolder)
        beside = own.with_name(own.name.replace("text_encoder", "tokenizer"))
        return beside if self.weights.subfolder and beside.is_dir() else own

    def _library(self) -> LibraryModel:
        library = self.weights.library
        if library is None:
            library_networks.opened(self.weights)  # raises the error that says why
            raise AssertionError("it is not a library's folder")
        if library.library != "transformers":
            raise ConfigError(
                f"folder: {self.weights.source[1]!r} is of {library.library}, not of transformers"
            )
        return library

    def _class(self) -> str:
        name = self._library().name
        return _ENCODERS.get(name, name)

    def _encoder(self) -> LibraryModel:
        library = self._library()
        config = library.config
        if library.name == "CLIPModel":
            config = {**config["text_config"], "projection_dim": config.get("projection_dim", 512)}
        return library.model_copy(update={"name": self._class(), "config": config})

    def _unused(self) -> tuple[str, ...]:
        return _OTHER_HALF if self._library().name in _ENCODERS else ()

    def _library_config(self) -> Any:
        return library_networks.config_of(self._encoder())

    def _places(self) -> int | None:
        """Positions that the encoder has learnt; None if it takes any number."""
        if "T5" in self._class():
            return None
        places = getattr(self._library_config(), "max_position_embeddings", None)
        return None if places is None else int(places)


class FolderEncoder(nn.Module):
    """An encoder of transformers with its tokenizer."""

    tokenizer: Tensor

    def __init__(self, config: FolderConfig, model: nn.Module, tokenizer: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("tokenizer", tokenizer)
        self._hides, self._layer, self._pooling = config.hides_padding, config.layer, config.pooling

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> States:
        """float32, whatever its own type is."""
        body = self._body()
        options: dict[str, Any] = {"output_hidden_states": True} if self._layer != -1 else {}
        if "use_cache" in inspect.signature(body.forward).parameters:
            options["use_cache"] = False
        found = body(input_ids=ids_BT, attention_mask=mask_BT.long() if self._hides else None, **options)
        states = found.last_hidden_state if self._layer == -1 else found.hidden_states[self._layer]
        return States(states.float(), mask_BT, self._pooled(found, mask_BT).float())

    def _body(self) -> Any:
        """The model without a language model's head."""
        model: Any = self.model
        return model.base_model if model.get_output_embeddings() is not None else model

    def _pooled(self, found: Any, mask_BT: Tensor) -> Tensor:
        last_BTD: Tensor = found.last_hidden_state
        if self._pooling == "model":
            for name in ("text_embeds", "pooler_output"):
                if (own := getattr(found, name, None)) is not None:
                    pooled: Tensor = own
                    return pooled
        if self._pooling == "first":
            return last_BTD[:, 0]
        weight_BT1 = mask_BT.unsqueeze(-1).to(last_BTD.dtype)
        return (last_BTD * weight_BT1).sum(dim=1) / weight_BT1.sum(dim=1).clamp(min=1)


COMPONENT = FolderConfig
