"""One sampling option at several values: the same samples, drawn once with each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import yaml

from sfumato.errors import ConfigError
from sfumato.sampling.pixels import Images

MOST = 20
"""Values, at most: more make no grid."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """The option and its values, in order."""

    option: str
    values: tuple[Any, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        """From `guidance=1,2,4,8`. Raises ConfigError."""
        option, given, listed = text.partition("=")
        words = [word.strip() for word in listed.split(",")]
        if not (option.strip() and given) or not all(words):
            raise ConfigError(f"--sweep {text}: give an option and its values, such as guidance=1,2,4,8")
        if len(words) > MOST:
            raise ConfigError(f"--sweep {option}: {len(words)} values; give at most {MOST}")
        if len(set(words)) < len(words):
            raise ConfigError(f"--sweep {text}: the same value twice; give each once")
        try:
            return cls(option.strip(), tuple(yaml.safe_load(word) for word in words))
        except yaml.YAMLError:
            raise ConfigError(f"--sweep {text}: values are numbers or words, such as 1,2,4,8") from None

    def variants(self, options: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The other options with each of the values."""
        return [{**options, self.option: value} for value in self.values]

    @property
    def titles(self) -> list[str]:
        """A heading for each value."""
        return [f"{self.option} {value}" for value in self.values]


def interleaved(drawn: Sequence[Iterable[Images]]) -> Iterator[Images]:
    """Batches [n, H, W, C] of variants as batches [n * variants, H, W, C], those of a sample together."""
    for batches in zip(*drawn, strict=True):
        whole = np.stack(batches, 1)
        yield whole.reshape(-1, *whole.shape[2:])
