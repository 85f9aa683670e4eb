"""How the states of several encoders are combined: as SDXL, SD3 and Flux do."""

from __future__ import annotations

import torch

from sfumato.text.states import States, TextShape, combined, combined_shape


def part(tokens: int, width: int, pooled: int, fill: float) -> States:
    return States(
        torch.full((2, tokens, width), fill),
        torch.arange(tokens).expand(2, tokens) < tokens - 1,
        torch.full((2, pooled), fill),
    )


def shape_of(states: States) -> TextShape:
    return TextShape(*states.states.shape[1:], states.pooled.shape[1])


def check(parts: list[States], beside: list[bool]) -> States:
    found = combined(parts, beside)
    assert shape_of(found) == combined_shape([shape_of(part) for part in parts], beside)
    assert found.mask.shape == found.states.shape[:2]
    return found


def test_two_clips_side_by_side() -> None:
    """SDXL: 77 tokens of width 768 + 1280, pooled of the second alone."""
    found = check([part(4, 3, 0, 1.0), part(4, 5, 5, 2.0)], [False, True])
    assert found.states[0, 0].tolist() == [1.0] * 3 + [2.0] * 5
    assert found.pooled.shape == (2, 5)


def test_t5_after_two_clips() -> None:
    """SD3: CLIP's states padded with zeros to T5's width, then T5's tokens; pooled of both CLIPs."""
    found = check([part(4, 3, 3, 1.0), part(4, 5, 5, 2.0), part(6, 10, 0, 3.0)], [False, True, False])
    assert found.states.shape == (2, 10, 10)
    assert found.states[0, 0].tolist() == [1.0] * 3 + [2.0] * 5 + [0.0] * 2
    assert found.states[0, 4].tolist() == [3.0] * 10
    assert found.mask[0].tolist() == [True] * 3 + [False] + [True] * 5 + [False]
    assert found.pooled[0].tolist() == [1.0] * 3 + [2.0] * 5


def test_pooled_of_one_and_tokens_of_another() -> None:
    """Flux."""
    found = check([part(0, 0, 3, 1.0), part(6, 10, 0, 2.0)], [False, False])
    assert found.states.shape == (2, 6, 10) and found.pooled.shape == (2, 3)
