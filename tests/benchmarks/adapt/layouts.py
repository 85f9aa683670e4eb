"""Prompt-to-Prompt: whether the edit of a sample keeps its layout, and shows the new colour."""

from __future__ import annotations

from typing import Any

import numpy as np
from judging import SEED, overlaps, ratio, share, silhouettes

from sfumato.core.batch import Texts
from sfumato.core.conditions import Listed
from sfumato.data.shapes.vocabulary import COLOURS, HELD_OUT_PAIRS, SHAPES
from sfumato.editing.edit import options_for
from sfumato.editing.operations.prompt_to_prompt import PromptToPrompt
from sfumato.evaluation.metrics.alignment import verdicts
from sfumato.sampling.generator import Generator

PAIRS = 12
"""Of a source and its edit."""


def prompt_to_prompt(model: Generator, base: Generator | None, number: int) -> dict[str, Any]:
    """IoU of the silhouettes of a sample and of its edit to another colour, beside those of the sample and of
    what the edit's text alone draws, from other noise and from the same; alignment of the edits."""
    rows = -(-number // PAIRS)
    before, after, others, same, texts = [], [], [], [], []
    for shape, old, new in swaps():
        source, text = f"a {old} {shape}", f"a {new} {shape}"
        operation = PromptToPrompt(source=source, num=rows, maps=False)
        options = options_for(operation, model, {})
        asked = {"text": Listed("text", Texts([text]))}
        pairs = np.stack(list(operation.drawn(model, asked, options, SEED)))
        before.append(pairs[:, 0])
        after.append(pairs[:, 1])
        others.append(model.sample(rows, seed=SEED + 1, prompts=text))
        same.append(model.sample(rows, seed=SEED, prompts=text))
        texts += [text] * rows
    shown = {name: np.concatenate(found) for name, found in (("after", after), ("same", same))}
    layout = silhouettes(np.concatenate(before))
    kept, anew, alike = (
        overlaps(layout, silhouettes(found))
        for found in (shown["after"], np.concatenate(others), shown["same"])
    )
    return {
        "IoU, edited": float(np.mean(kept)),
        "IoU, drawn anew": float(np.mean(anew)),
        "IoU, drawn anew from the same noise": float(np.mean(alike)),
        "edited to anew": ratio(kept, anew, 2.0),
        "edited to anew from the same noise": ratio(kept, alike, 1.0),
        "alignment, edited": share(verdicts(shown["after"], texts)[:, 2], 0.0),
        "alignment, drawn anew": share(verdicts(shown["same"], texts)[:, 2], 0.0),
    }


def swaps() -> list[tuple[str, str, str]]:
    """`PAIRS` times a shape, a colour and another colour, both of which training has of that shape."""
    found = []
    for number in range(PAIRS):
        shape = SHAPES[number % len(SHAPES)]
        seen = [colour for colour in COLOURS if (colour, shape) not in HELD_OUT_PAIRS]
        found.append((shape, seen[number % len(seen)], seen[(number + 3) % len(seen)]))
    return found
