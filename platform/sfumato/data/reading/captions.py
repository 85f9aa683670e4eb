"""How captions are drawn as they are read: one of several texts, and tags in a new order.

Every draw is a function of (seed, epoch, column, key), so workers, resumes and read tasks change nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from sfumato.core.config import Config

_UNIT = 2.0**-53


class CaptionSettings(Config):
    """Captions that are lists of tags: `1girl, smile, hat`."""

    shuffle_tags: bool = Field(False, description="Put the tags of a caption in a new order in every epoch.")
    keep_tags: int = Field(0, ge=0, description="How many tags stay at the front, in their order.")
    drop_tags: float = Field(0.0, ge=0, lt=1, description="Share of the other tags that are left out.")
    separator: str = Field(",", min_length=1, description="What stands between two tags.")

    @model_validator(mode="after")
    def _has_effect(self) -> CaptionSettings:
        if not self.shuffle_tags and not self.drop_tags:
            raise ValueError("it changes nothing; set shuffle_tags or drop_tags, or leave it out")
        return self

    def drawn(self, caption: str, told: str) -> str:
        """The caption as this draw has it; `told` names the draw."""
        tags = [tag.strip() for tag in caption.split(self.separator) if tag.strip()]
        kept, others = tags[: self.keep_tags], tags[self.keep_tags :]
        others = [tag for n, tag in enumerate(others) if _uniform(told, f"drop{n}") >= self.drop_tags]
        if self.shuffle_tags:
            places = sorted(range(len(others)), key=lambda n: _uniform(told, f"place{n}"))
            others = [others[n] for n in places]
        space = "" if self.separator.isspace() else " "
        return f"{self.separator}{space}".join([*kept, *others])


class Draw:
    """What an epoch sees of the texts of samples; without a seed, the first text of each as it is."""

    def __init__(self, seed: int | None, epoch: int = 0, captions: CaptionSettings | None = None) -> None:
        self._seed, self._epoch, self._captions = seed, epoch, captions

    def number(self, name: str, key: str, count: int, weights: Sequence[float] | None) -> int:
        """Which of `count` texts of column `name` is drawn; without weights, all are equally likely."""
        if count < 2 or self._seed is None:
            return 0
        ends = np.cumsum(weights if weights else [1.0] * count)
        at = int(np.searchsorted(ends, _uniform(self._told(name, key)) * ends[-1], side="right"))
        return min(at, count - 1)

    def text(self, name: str, key: str, texts: Sequence[str] | None, weights: Sequence[float] | None) -> str:
        """The text; empty if the sample has none."""
        if not texts:
            return ""
        found = texts[self.number(name, key, len(texts), weights)]
        if self._seed is None or self._captions is None:
            return found
        return self._captions.drawn(found, self._told(name, key))

    def _told(self, name: str, key: str) -> str:
        return f"{self._seed}\x1f{self._epoch}\x1f{name}\x1f{key}"


def _uniform(told: str, purpose: str = "") -> float:
    """A number in [0, 1) by what is told and what it is for."""
    told = f"{told}\x1f{purpose}" if purpose else told
    digest = hashlib.blake2b(told.encode("utf-8", "surrogateescape"), digest_size=8, person=b"text").digest()
    return (int.from_bytes(digest, "big") >> 11) * _UNIT
