"""Checks that the widths of a network suit group normalisation."""

from __future__ import annotations

from collections.abc import Sequence


def check_widths(channels: Sequence[int], norm_groups: int) -> None:
    """Raises ValueError, with the nearest width, for one that is not a positive multiple of `norm_groups`."""
    bad = [width for width in channels if width <= 0 or width % norm_groups]
    if bad:
        near = max(1, round(bad[0] / norm_groups)) * norm_groups
        raise ValueError(
            f"channels: {bad[0]} is not a positive multiple of norm_groups={norm_groups}; "
            f"the nearest is {near}"
        )
