"""An image as a prompt: its embedding by a frozen encoder, and attention to it beside that to the text.

Decoupled cross-attention (Ye et al. 2023, IP-Adapter, eq. 4, 5) adds to every attention to texts one with the
same queries and with keys and values of the image's tokens:

    softmax(Q K^T / sqrt d) V + scale softmax(Q K'^T / sqrt d) V'
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.core.family import Frozen
from sfumato.core.pretrained import LibraryModel, Pretrained
from sfumato.layers import library_networks
from sfumato.text.states import States

NAME, SCALE = "image_prompt_embedding", "image_prompt_scale"
"""Of the inputs of a network: the embeddings, and a factor on what attention to them adds."""
_SIDE = 224
"""Of the images that networks get whose configuration names no side."""
_OF_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_OF_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of pixels in [0, 1]."""


def frozen(encoder: Pretrained) -> Frozen:
    """The encoder in a folder of transformers. Raises ConfigError if it has not been looked up."""
    opened = library_networks.opened(encoder)
    return Frozen(build=opened.build, weights=opened.weights)


def encoder_problems(encoder: Pretrained, field: str) -> list[str]:
    """Why this is no encoder of images, one line each; none before it is looked up."""
    if encoder.source[0] != "folder" and encoder.library is None:
        return [f"{field}: name the folder of a network of images of transformers in {field}.folder"]
    library = encoder.library
    if library is not None and (library.library != "transformers" or not length_of(library)):
        return [
            (
                f"{field}: {library.name} is no network of images of transformers; name the folder of one, "
                "such as a CLIPVisionModelWithProjection"
            )
        ]
    return []


def length_of(library: LibraryModel) -> int:
    """Numbers of an embedding; 0 for a network that is none of images."""
    config = library_networks.config_of(library)
    if not hasattr(config, "num_channels"):
        return 0
    if library.name.endswith("WithProjection"):
        return int(config.projection_dim)
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else getattr(config, "hidden_size", 0))


@torch.no_grad()
def embedded(network: nn.Module, image_BCHW: Tensor) -> Tensor:
    """The embeddings of images in [-1, 1], [B, D]: projected ones where the network projects, else pooled.

    Images are resized to the side that the network was trained on, and normalised as CLIP's or ImageNet's.
    """
    config: Any = network.config
    side = getattr(config, "image_size", _SIDE)
    size = (side, side) if isinstance(side, int) else tuple(side)
    channels = image_BCHW.expand(-1, 3, -1, -1) if image_BCHW.shape[1] == 1 else image_BCHW
    if channels.shape[-2:] != size:
        channels = F.interpolate(channels.float(), size, mode="bicubic", antialias=True)
    statistics = _OF_CLIP if "CLIP" in type(network).__name__ else _OF_IMAGENET
    mean, std = (channels.new_tensor(value).view(1, 3, 1, 1) for value in statistics)
    found: Any = network(((channels * 0.5 + 0.5).clamp(0, 1) - mean) / std)
    for name in ("image_embeds", "pooler_output"):
        value: Tensor | None = getattr(found, name, None)
        if value is not None:
            return value.flatten(1)
    return found.last_hidden_state[:, 0]  # type: ignore[no-any-return]


class ImageTokens(nn.Module):
    """What a U-Net gets beside its states: tokens of an embedding, by a linear map and a normalisation."""

    def __init__(self, length: int, tokens: int, width: int) -> None:
        super().__init__()
        self._length, self._tokens = length, tokens
        self.proj = nn.Linear(length, tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x_BCHW: Tensor, t: Tensor, text: States, inputs: Mapping[str, Tensor]
    ) -> dict[str, Any]:
        """Under the name by which diffusers hands them to attention processors."""
        embedding_BD = inputs.get(NAME)
        if embedding_BD is None:
            embedding_BD = self.proj.weight.new_zeros(len(x_BCHW), self._length)
        tokens_BND = self.norm(self.proj(embedding_BD).unflatten(1, (self._tokens, -1)))
        return {"cross_attention_kwargs": {"ip_hidden_states": (tokens_BND, inputs.get(SCALE))}}


class Decoupled(nn.Module):
    """An attention processor of diffusers that also attends to an image, if it is given one."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        outer, inner = attention.to_k.in_features, attention.to_k.out_features
        self.to_k_ip = nn.Linear(outer, inner, bias=False)
        self.to_v_ip = nn.Linear(outer, inner, bias=False)

    def begin(self, attention: Any) -> None:
        """Attend to the image as to the text (Ye et al. 2023, sec. 3.2.2), in place."""
        with torch.no_grad():
            self.to_k_ip.weight.copy_(attention.to_k.weight)
            self.to_v_ip.weight.copy_(attention.to_v.weight)

    def __call__(  # diffusers reads the names of what it takes
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        ip_hidden_states: tuple[Tensor, Tensor | None] | None = None,
    ) -> Tensor:
        """[B, Q, C] of queries [B, Q, C] and states of a text [B, T, D]; `ip_hidden_states` are the image's
        tokens [B, N, D] and, unless it is one, the scale of each row [B]."""
        text_BTD = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        rows, tokens = text_BTD.shape[:2]
        query = _heads(attn.to_q(hidden_states), attn.heads)
        mask = attn.prepare_attention_mask(attention_mask, tokens, rows)
        if mask is not None:
            mask = mask.view(rows, attn.heads, -1, mask.shape[-1])
        key, value = (_heads(layer(text_BTD), attn.heads) for layer in (attn.to_k, attn.to_v))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        if ip_hidden_states is not None:
            image_BND, scale_B = ip_hidden_states
            key, value = (_heads(layer(image_BND), attn.heads) for layer in (self.to_k_ip, self.to_v_ip))
            image = F.scaled_dot_product_attention(query, key, value)
            found = found + (image if scale_B is None else scale_B.view(-1, 1, 1, 1).to(image.dtype) * image)
        joined = found.transpose(1, 2).flatten(2).to(query.dtype)
        out: Tensor = attn.to_out[1](attn.to_out[0](joined))
        if attn.residual_connection:
            out = out + hidden_states
        scaled: Tensor = out / attn.rescale_output_factor
        return scaled


def _heads(x_BTC: Tensor, heads: int) -> Tensor:
    """[B, H, T, C / H]."""
    return x_BTC.view(*x_BTC.shape[:2], heads, -1).transpose(1, 2)


def attentions(unet: Any) -> dict[str, Any]:
    """The attentions to texts of a U-Net of diffusers by the places that IP-Adapter files give them: their
    numbers among all attentions."""
    places = enumerate(name.removesuffix(".processor") for name in unet.attn_processors)
    return {str(place): unet.get_submodule(name) for place, name in places if name.endswith("attn2")}
