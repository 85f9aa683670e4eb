"""Tokenizers in folders of transformers, as bytes that travel with a model's weights.

The bytes are JSON: the content of `tokenizer.json`, and the token that pads. They are a buffer of the frozen
network, so that a model folder needs nothing else, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfumato.errors import CapabilityError, ConfigError, with_extra
from sfumato.text.states import Tokens

_SAFELY = {"local_files_only": True, "trust_remote_code": False}  # no code in the folder is run
_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.model",
)


def packed(folder: Path, *, clip: bool) -> bytes:
    """The tokenizer in a folder. Raises ConfigError, in one line, if there is none."""
    present = [(name, (folder / name).stat().st_mtime_ns) for name in _FILES if (folder / name).is_file()]
    if not present:
        raise ConfigError(
            f"{folder} has no tokenizer ({', '.join(_FILES[:4])}); name the folder that has one "
            "in the text encoder's field tokenizer"
        )
    return _packed(folder, clip, tuple(present))


@lru_cache(maxsize=8)
def _packed(folder: Path, clip: bool, stamp: tuple[tuple[str, int], ...]) -> bytes:
    """Read once while its files, told apart by `stamp`, are the same."""
    try:
        import transformers
    except ImportError:
        raise CapabilityError(
            f"a tokenizer needs transformers, not installed: {with_extra('text')}"
        ) from None
    # Which is CLIP's cannot be told from the folder of a text model alone.
    kind: Any = transformers.CLIPTokenizer if clip else transformers.AutoTokenizer
    try:
        found = kind.from_pretrained(folder, **_SAFELY)
        content = found.backend_tokenizer.to_str()
    except Exception as error:  # the library raises nothing narrower for damaged files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{folder}: no tokenizer can be loaded ({reason})") from error
    pad = found.pad_token_id if found.pad_token_id is not None else found.eos_token_id
    return json.dumps({"tokenizer": content, "pad": pad or 0}, sort_keys=True).encode()


def tokens(buffer: Tensor, texts: Sequence[str], length: int) -> Tokens:
    """The texts by the tokenizer in a buffer, each cut or padded at its end to `length` tokens."""
    tokenizer, pad = _opened(bytes(buffer.cpu().numpy().tobytes()))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=pad, pad_token=tokenizer.id_to_token(pad) or "")
    found = tokenizer.encode_batch(list(texts))
    return Tokens(
        torch.tensor([row.ids for row in found]),
        torch.tensor([row.attention_mask for row in found], dtype=torch.bool),
    )


def lengths(content: bytes, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has before it is cut."""
    tokenizer, _ = _opened(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(row.ids) for row in tokenizer.encode_batch(list(texts))]


def transformers_of(buffer: Tensor, length: int) -> Any:
    """The tokenizer in a buffer as transformers', for texts of `length` tokens."""
    tokenizer, pad = _opened(bytes(buffer.cpu().numpy().tobytes()))
    return for_transformers(tokenizer, tokenizer.id_to_token(pad), length)


def for_transformers(tokenizer: Any, pad: str, length: int) -> Any:
    """transformers' tokenizer that does the same as one of `tokenizers`, padding with the token `pad`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    own = Tokenizer.from_str(tokenizer.to_str())
    own.no_truncation()
    own.no_padding()
    return PreTrainedTokenizerFast(
        tokenizer_object=own, pad_token=pad, eos_token=pad, model_max_length=length, padding_side="right"
    )


@lru_cache(maxsize=8)
def _opened(content: bytes) -> tuple[Any, int]:
    from tokenizers import Tokenizer

    found = json.loads(content)
    return Tokenizer.from_str(found["tokenizer"]), int(found["pad"])
