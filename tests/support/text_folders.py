"""Tiny text models of transformers with random weights, in folders that the library writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfumato.core.rng import seeded
from sfumato.text import bpe

KINDS = ("clip", "clip_projected", "clip_whole", "t5", "t5_wide", "t5_whole", "bert", "gpt2", "qwen2")
_SMALL: dict[str, Any] = {
    "vocab_size": 262,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_CLIP = {**_SMALL, "max_position_embeddings": 9, "bos_token_id": bpe.START_ID, "eos_token_id": bpe.END_ID}
_T5 = {"vocab_size": 262, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 2, "num_heads": 2}
_IMAGES = {**_SMALL, "image_size": 8, "patch_size": 4}


def text_model(kind: str, seed: int = 0) -> Any:
    """One of `KINDS`."""
    import transformers as library

    ends = {"bos_token_id": bpe.START_ID, "eos_token_id": bpe.END_ID}
    gpt2 = {"vocab_size": 262, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16, **ends}
    qwen2 = {**_SMALL, "num_key_value_heads": 1, "max_position_embeddings": 32, **ends}
    clip = {"text_config": _CLIP, "vision_config": _IMAGES, "projection_dim": 6}
    name, config = {
        "clip": ("CLIPTextModel", library.CLIPTextConfig(**_CLIP)),
        "clip_projected": ("CLIPTextModelWithProjection", library.CLIPTextConfig(**_CLIP, projection_dim=6)),
        "clip_whole": ("CLIPModel", library.CLIPConfig(**clip)),
        "t5": ("T5EncoderModel", library.T5Config(**_T5)),
        "t5_wide": ("T5EncoderModel", library.T5Config(**{**_T5, "d_model": 32})),
        "t5_whole": ("T5ForConditionalGeneration", library.T5Config(**_T5, num_decoder_layers=1)),
        "bert": ("BertModel", library.BertConfig(**_SMALL, max_position_embeddings=9)),
        "gpt2": ("GPT2LMHeadModel", library.GPT2Config(**gpt2)),
        "qwen2": ("Qwen2ForCausalLM", library.Qwen2Config(**qwen2)),
    }[kind]
    with seeded(seed, kind):
        return getattr(library, name)(config).eval()


def save_text_model(folder: Path, kind: str, seed: int = 0) -> Path:
    """The model with a tokenizer of bytes beside it."""
    text_model(kind, seed).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path, merges: str = "t h\nth e") -> Any:
    """A byte-level tokenizer, as transformers writes it."""
    import transformers as library

    tokenizer = library.PreTrainedTokenizerFast(
        tokenizer_object=bpe.tokenizer_of(merges),
        bos_token=bpe.START,
        eos_token=bpe.END,
        pad_token=bpe.END,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
