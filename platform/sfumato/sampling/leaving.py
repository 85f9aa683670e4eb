"""What is known about a model's pictures when they leave by its door."""

from __future__ import annotations

from collections.abc import Sequence

from sfumato.core.conditions import Source
from sfumato.provenance.facts import Facts


def facts_of(source: Source, indices: Sequence[int], seed: int) -> list[Facts]:
    """Those of samples `indices` of a seed, with the conditions of `source`."""
    texts = {
        name: rows.read([index % len(rows) for index in indices])
        for name, rows in source.items()
        if rows.kind == "text"
    }
    return [
        Facts({name: str(values[place]) for name, values in texts.items()}, seed, index)
        for place, index in enumerate(indices)
    ]
