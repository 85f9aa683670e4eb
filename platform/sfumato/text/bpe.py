"""A byte-level BPE tokenizer learnt from captions (Sennrich et al. 2016; Radford et al. 2019, sec. 2.2).

Its merges define it completely: token 0 starts a text, 1 ends and pads it, 2 to 257 are the bytes, and each
merge adds one. Any text can be written in it. The library `tokenizers` learns and applies the merges.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from sfumato.errors import CapabilityError, ConfigError, with_extra
from sfumato.text.states import Tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 0, 1
BASE = 258
"""Tokens of a vocabulary without merges."""
SEEN = 2
"""How often a pair must occur to be merged."""


def learn(texts: Iterable[str], vocabulary: int) -> str:
    """The merges, a line each, for at most `vocabulary` tokens: the same for the same texts in any order."""
    library = _library()
    tokenizer = _tokenizer([])
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=SEEN,
        special_tokens=[START, END],
        initial_alphabet=_bytes(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return "\n".join(" ".join(pair) for pair in merges)


def tokenizer_of(merges: str) -> Tokenizer:
    """The tokenizer with these merges. Raises ConfigError if they are not merges."""
    pairs = [line.split(" ") for line in merges.split("\n") if line]
    known = set(_bytes())
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 2 or not known.issuperset(pair):
            raise ConfigError(f"merges: line {number} does not join two known tokens; leave them out")
        known.add("".join(pair))
    return _tokenizer([(left, right) for left, right in pairs])


def tokens(tokenizer: Tokenizer, texts: Sequence[str], length: int) -> Tokens:
    """The texts, each of `length` tokens: cut before its end token, or padded with end tokens."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length, pad_id=END_ID, pad_token=END)
    found = tokenizer.encode_batch(list(texts))
    return Tokens(
        torch.tensor([row.ids for row in found]),
        torch.tensor([row.attention_mask for row in found], dtype=torch.bool),
    )


def lengths(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, with its start and its end."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(row.ids) for row in tokenizer.encode_batch(list(texts))]


def _tokenizer(merges: Sequence[tuple[str, str]]) -> Tokenizer:
    library = _library()
    vocabulary = [START, END, *_bytes(), *("".join(pair) for pair in merges)]
    numbers = {token: number for number, token in reversed(list(enumerate(vocabulary)))}
    found = library.Tokenizer(library.models.BPE(vocab=numbers, merges=list(merges)))
    found.normalizer = library.normalizers.Sequence(
        [
            library.normalizers.NFC(),
            library.normalizers.Replace(library.Regex(r"\s+"), " "),
            library.normalizers.Strip(),
            library.normalizers.Lowercase(),
        ]
    )
    found.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    found.decoder = library.decoders.ByteLevel()
    found.post_processor = library.processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, START_ID), (END, END_ID)]
    )
    made: Tokenizer = found
    return made


def _bytes() -> list[str]:
    return sorted(_library().pre_tokenizers.ByteLevel.alphabet())


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise CapabilityError(f"a tokenizer needs tokenizers, not installed: {with_extra('text')}") from None
    return tokenizers
