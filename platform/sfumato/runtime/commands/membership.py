"""`sfumato membership`: attacks on a run's training data, with ROC curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sfumato import recipe as recipes
from sfumato.errors import CapabilityError, ConfigError, DataError
from sfumato.evaluation.audits.membership import RATES, likelihood_ratio, prints_of
from sfumato.evaluation.intervals.roc import area, curve, lines_of, plot, true_positives_at
from sfumato.evaluation.references.reference import PackedReference, Reference
from sfumato.evaluation.statistics import Float64Array
from sfumato.evaluation.subjects.images import check_same_kind, open_images
from sfumato.evaluation.subjects.model_sources import load_model
from sfumato.evaluation.subjects.source import GivesLikelihood
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.targets import run_folder_of

Bools = npt.NDArray[np.bool_]
REPORT, PICTURE = "membership.json", "roc.png"


@dataclass(frozen=True, slots=True)
class _Scored:
    """Minus the bits per dimension of every candidate, and whether the run was trained on it."""

    score_N: Float64Array
    inside_N: Bools


def infer(
    run: str,
    data: Sequence[str],
    *,
    shadows: Sequence[str],
    seed: int,
    out: Path | None,
    root: Path,
    display: Display,
) -> dict[str, Any]:
    """Attack a run with the images of these sets, of which it was trained on some and not on others.

    Which ones is found by their pixels. With `shadows`, runs that were trained on other parts of the same
    images, also by likelihood ratio. Writes report and picture into `out`; returns the report.

    Raises CapabilityError for a model without a likelihood, ConfigError where all or none of the images were
    trained on.
    """
    sets = [open_images(place) for place in data]
    for images in sets[1:]:
        check_same_kind(images.spec, sets[0].spec, what="a set has")
    prints = [prints_of(block for block, _ in images.blocks()) for images in sets]
    target = _scored(run, sets, prints, seed, root, display)
    for kind, there in (("all", target.inside_N.all()), ("none", not target.inside_N.any())):
        if there:
            raise ConfigError(
                f"{kind} of these images were trained on: name sets of both kinds, for example the train and "
                "val parts of the data"
            )
    attacks = {"loss threshold": (target.score_N, np.ones(len(target.score_N), bool))}
    if shadows:
        others = [_scored(word, sets, prints, seed, root, display) for word in shadows]
        try:
            attacks["likelihood ratio"] = likelihood_ratio(
                target.score_N,
                np.stack([other.score_N for other in others]),
                np.stack([other.inside_N for other in others]),
            )
        except ValueError as error:
            raise ConfigError(f"--shadow: {error}") from None
    report = {
        "run": run,
        "data": list(data),
        "shadows": list(shadows),
        "images": len(target.score_N),
        "members": int(target.inside_N.sum()),
        "attacks": {name: _judged(*attack, target.inside_N) for name, attack in attacks.items()},
    }
    if out is not None:
        _write(out, report, {name: _curve(*attack, target.inside_N) for name, attack in attacks.items()})
        report["folder"] = str(out)
    return report


def text_of(report: dict[str, Any]) -> str:
    """Each attack on a few lines."""
    lines = [f"{report['members']:,} of {report['images']:,} images were trained on"]
    for name, found in report["attacks"].items():
        judged = found["area"]
        lines.append(
            f"{name}: AUROC {judged['auroc']:.3f} ({judged['low']:.3f} to {judged['high']:.3f}), "
            f"{judged['positives']:,} members and {judged['negatives']:,} others"
        )
        lines += [f"  {line}" for line in lines_of(found["rates"])]
    return "\n".join(lines)


def _scored(
    word: str,
    sets: Sequence[Reference],
    prints: Sequence[Sequence[str]],
    seed: int,
    root: Path,
    display: Display,
) -> _Scored:
    folder, about = run_folder_of(word, root=root)
    recipe = recipes.load(folder.path / "recipe.yaml")
    display.stage(f"score {folder.id}")
    seen: set[str] = set()
    for place in (recipe.data.path, *(mixed.path for mixed in recipe.data.mix)):
        reference = PackedReference(place, recipe.data.on_error)
        seen.update(prints_of(block for block, _ in reference.blocks()))
    scores = [_bits(folder.model, images, seed, display) for images in sets]
    display.done(about)
    inside = [one in seen for part in prints for one in part]
    return _Scored(-np.concatenate(scores), np.array(inside))


def _bits(model: Path, images: Reference, seed: int, display: Display) -> Float64Array:
    source = load_model(model, {}, device="cuda", trust=True, reference=images)
    check_same_kind(images.spec, source.spec, what="the sets hold")
    if not isinstance(source, GivesLikelihood):
        raise CapabilityError(
            f"{model}: membership is inferred from a likelihood or a bound, which this family does not have"
        )
    parts = []
    for index, first in enumerate(range(0, images.size, source.block)):
        block = images.read(first, min(first + source.block, images.size))
        parts.append(source.bits(index, block, seed=seed, images=images))
        display.update(min(first + source.block, images.size), images.size)
    return np.concatenate(parts)


def _judged(score_N: Float64Array, usable_N: Bools, inside_N: Bools) -> dict[str, Any]:
    positive, negative = score_N[usable_N & inside_N], score_N[usable_N & ~inside_N]
    if not len(positive) or not len(negative):
        raise ConfigError(
            "--shadow: no member, or no other image, is both in and out of the shadow runs' data"
        )
    return {
        "area": area(positive, negative).told(),
        "rates": [true_positives_at(positive, negative, rate) for rate in RATES],
    }


def _curve(score_N: Float64Array, usable_N: Bools, inside_N: Bools) -> tuple[Float64Array, Float64Array]:
    return curve(score_N[usable_N & inside_N], score_N[usable_N & ~inside_N])


def _write(out: Path, report: dict[str, Any], curves: dict[str, tuple[Float64Array, Float64Array]]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        plot(curves, "Membership inference").savefig(out / PICTURE, dpi=120)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error
