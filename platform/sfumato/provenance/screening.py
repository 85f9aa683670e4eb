"""What must not come out: images that a classifier finds, and prompts that a rule names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image, ImageFilter
from pydantic import Field, field_validator

from sfumato.core.conditions import NEGATIVE
from sfumato.core.config import Config
from sfumato.errors import ConfigError
from sfumato.provenance.facts import Facts
from sfumato.provenance.filters import FILTERS, Classifier, FilterConfig, Images

Action = Literal["blur", "refuse", "replace", "count"]
GREY = 128
"""Of what stands for an image that does not leave."""
_BLURRED = 8
"""Of the shorter side, the part that is the radius of a blur."""


class PromptRule(Config):
    """Prompts that match are treated, whatever their images look like."""

    pattern: str = Field(..., min_length=1, description="Regular expression, found anywhere, in any case.")
    action: Action = Field("refuse", description="blur, refuse, replace or count.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"no regular expression: {error}") from None
        return pattern


class ScreenSettings(Config):
    """What is looked for, and what happens to it."""

    images: Annotated[FilterConfig, FILTERS] | None = Field(
        None, description="Classifier of images, such as {kind: open_nsfw, threshold: 0.8}; null: none."
    )
    action: Action = Field(
        "replace",
        description="What happens to an image that it finds: blur, refuse (no file), replace (grey), count.",
    )
    prompts: tuple[PromptRule, ...] = Field(
        (), description="Rules for prompts; the first that matches counts."
    )


class Screen:
    """A screen at work; `counts` says what it met: `images`, `found`, and every action."""

    def __init__(self, settings: ScreenSettings) -> None:
        self._settings = settings
        self._rules = [(re.compile(rule.pattern, re.IGNORECASE), rule) for rule in settings.prompts]
        self._classifier: Classifier | None = None
        self.counts: Counter[str] = Counter()

    def prepare(self) -> None:
        """Load the classifier. Raises ConfigError where a package is missing."""
        if self._classifier is None and self._settings.images is not None:
            self._classifier = self._settings.images.build()

    def ask(self, facts: Sequence[Facts]) -> None:
        """Raises ConfigError for the first prompt that a rule refuses, before anything is drawn."""
        for fact in facts:
            rule = self._rule(fact)
            if rule is not None and rule.action == "refuse":
                raise ConfigError(
                    f"a prompt matches {rule.pattern!r}, which provenance.filter.prompts refuses"
                )

    def screened(self, images_NHWC: Images, facts: Sequence[Facts]) -> tuple[Images, list[dict[str, Any]]]:
        """The images, those that are found treated, and what was found of each."""
        self.prepare()
        settings, found = self._settings, []
        scores = None if self._classifier is None else self._classifier.scores(images_NHWC)
        images = images_NHWC.copy()
        for row, fact in enumerate(facts):
            entry: dict[str, Any] = {}
            rule = self._rule(fact)
            action: Action | None = rule.action if rule is not None else None
            if scores is not None and settings.images is not None:
                entry["score"] = round(float(scores[row]), 4)
                if scores[row] >= settings.images.threshold:
                    action = _sterner(action, settings.action)
            if action is not None:
                entry["action"] = action
                images[row] = treated(images[row], action)
                self.counts[action] += 1
                self.counts["found"] += 1
            self.counts["images"] += 1
            found.append(entry)
        return images, found

    def _rule(self, facts: Facts) -> PromptRule | None:
        texts = [text for name, text in facts.texts.items() if not name.startswith(NEGATIVE)]
        return next((rule for regex, rule in self._rules if any(regex.search(text) for text in texts)), None)


def treated(image_HWC: Images, action: Action) -> Images:
    """An image as it leaves. Of a refused one, grey stands in grids and arrays."""
    if action == "count":
        return image_HWC
    if action != "blur":
        return np.full_like(image_HWC, GREY)
    grey = image_HWC.shape[-1] == 1
    picture = Image.fromarray(image_HWC[..., 0] if grey else image_HWC)
    radius = max(2, min(picture.size) // _BLURRED)
    blurred = np.asarray(picture.filter(ImageFilter.GaussianBlur(radius)))
    return blurred[..., None] if grey else blurred


def _sterner(one: Action | None, other: Action) -> Action:
    order: tuple[Action, ...] = ("count", "blur", "replace", "refuse")
    return other if one is None else max(one, other, key=order.index)
