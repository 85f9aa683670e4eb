"""Known limits: what a reader of a card must know before trusting a model or its figures.

Each is a conclusion from the facts. What was not measured is said as plainly as what was measured badly.
The author adds others in `registry.limits`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Facts = Mapping[str, Any]
FEW_SAMPLES = 1_000


def limits_of(facts: Facts) -> list[str]:
    """The limits, a sentence each; the author's first."""
    own = list(facts["recipe"]["registry"]["limits"])
    return [*own, *_of_data(facts), *_of_figures(facts), *_of_topics(facts), *_of_pictures(facts)]


def _of_data(facts: Facts) -> list[str]:
    found = []
    for data in facts["data"]:
        if "missing" in data:
            found.append(f"The data set {data['path']!r} was not there when this card was written.")
            continue
        name = data["name"]
        if not data["licence"] and not data.get("licences"):
            found.append(f"The licence of the data set {name!r} is not known.")
        unlicensed = data.get("licences", {}).get("", 0)
        if unlicensed:
            found.append(f"{unlicensed:,} of {data['samples']:,} images of {name!r} come without a licence.")
        if not data.get("left_out"):
            found.append(
                f"The data set {name!r} was packed without opt-out lists or removal of near duplicates."
            )
    if not facts["model"]["licence"]:
        found.append("The author has not said under which licence the model may be used.")
    return found


def _of_figures(facts: Facts) -> list[str]:
    report = facts["evaluation"]
    if report is None:
        return ["The model was not evaluated: nothing is known of its quality."]
    found = []
    if report["samples"] < FEW_SAMPLES:
        found.append(f"Figures are of {report['samples']:,} samples; distances need more to be stable.")
    for figure, causes in report["marks"].items():
        found.append(f"{figure} says little: {'; '.join(causes)}.")
    trained_on = {data.get("digest") for data in facts["data"]}
    if report["reference_digest"] in trained_on:
        found.append(
            "Distances, precision and recall compare with the training images, so a model that repeats them "
            "looks good: read them with the figures on memorisation."
        )
    return found


def _of_topics(facts: Facts) -> list[str]:
    said = {
        "memorisation": "Whether the model repeats training images was not measured.",
        "bias": "Whether the model favours or neglects kinds of images was not measured.",
        "detection": "How easily its images are told from real ones was not measured.",
    }
    return [text for topic, text in said.items() if not facts["topics"].get(topic)]


def _of_pictures(facts: Facts) -> list[str]:
    if not facts["provenance"]:
        return ["The recipe asks for no mark in the images: nothing in them says that they are generated."]
    return []
