"""Two small encoders into one space, of images and of captions (as CLIP, Radford et al. 2021, fig. 3)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfumato.evaluation.features.classifier_network import Classifier

LENGTH = 32
"""Words of a caption, with its start; longer ones are cut."""
MOST_WORDS = 8192
PADDING, START, UNKNOWN = 0, 1, 2
_FIRST = 3
_WORD = re.compile(r"\w+|[^\w\s]")
_WIDTH, _DEPTH, _HEADS = 128, 2, 4
_WARMEST = math.log(100.0)
"""Of the similarities' scale, at most, as in the paper."""


def words_of(captions: Iterable[str]) -> list[str]:
    """The words of captions, the commonest first."""
    counts = Counter(word for text in captions for word in _WORD.findall(text.lower()))
    return [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST_WORDS]]


def numbered(words: Sequence[str]) -> dict[str, int]:
    """The token of each word."""
    return {word: number for number, word in enumerate(words, _FIRST)}


def tokens(texts: Sequence[str], numbers: Mapping[str, int]) -> Tensor:
    """int64 [N, LENGTH]."""
    rows = [
        [START, *(numbers.get(word, UNKNOWN) for word in _WORD.findall(text.lower()))][:LENGTH]
        for text in texts
    ]
    return torch.tensor([row + [PADDING] * (LENGTH - len(row)) for row in rows], dtype=torch.int64)


class TextEncoder(nn.Module):
    """A transformer over words; the mean of its outputs, projected: int64 [B, LENGTH] to [B, dim]."""

    def __init__(self, words: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(_FIRST + words, _WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, _WIDTH))
        nn.init.normal_(self.words.weight, std=0.1)
        nn.init.normal_(self.places, std=0.1)
        layer = nn.TransformerEncoderLayer(
            _WIDTH, _HEADS, 2 * _WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, _DEPTH, nn.LayerNorm(_WIDTH), enable_nested_tensor=False)
        self.out = nn.Linear(_WIDTH, dim)

    def forward(self, ids_BT: Tensor) -> Tensor:
        length = int((ids_BT != PADDING).sum(1).max())  # padding at the end of all changes nothing
        ids_BT = ids_BT[:, :length]
        padding_BT = ids_BT == PADDING
        hidden_BTW = self.body(self.words(ids_BT) + self.places[:length], src_key_padding_mask=padding_BT)
        kept_BT1 = (~padding_BT).unsqueeze(2)
        embedding: Tensor = self.out((hidden_BTW * kept_BT1).sum(1) / kept_BT1.sum(1))
        return embedding


class Pair(nn.Module):
    """`image` [B, C, H, W] in [-1, 1] and `text` to vectors [B, dim], whose cosine says how well they go
    together."""

    def __init__(self, channels: int, height: int, width: int, *, words: int, base: int, dim: int) -> None:
        super().__init__()
        self.pictures = Classifier(channels, height, width, 1, base=base, dim=dim)
        self.texts = TextEncoder(words, dim)
        self.warmth = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def image(self, x_BCHW: Tensor) -> Tensor:
        """Vectors [B, dim] of images."""
        embedding: Tensor = self.pictures(x_BCHW)[0]
        return embedding

    def text(self, ids_BT: Tensor) -> Tensor:
        """Vectors [B, dim] of tokens."""
        embedding: Tensor = self.texts(ids_BT)
        return embedding

    def loss(self, x_BCHW: Tensor, ids_BT: Tensor) -> Tensor:
        """The symmetric cross-entropy of the paper; images with one and the same caption share it."""
        image_BD, text_BD = F.normalize(self.image(x_BCHW)), F.normalize(self.text(ids_BT))
        logits_BB = image_BD @ text_BD.T * self.warmth.clamp(max=_WARMEST).exp()
        same_BB = (ids_BT[:, None] == ids_BT[None]).all(2).float()
        wanted_BB = same_BB / same_BB.sum(1, keepdim=True)
        return (F.cross_entropy(logits_BB, wanted_BB) + F.cross_entropy(logits_BB.T, wanted_BB)) / 2
