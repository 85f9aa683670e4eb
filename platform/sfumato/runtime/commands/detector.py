"""`sfumato detector`: networks that tell generated images from real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sfumato.errors import ConfigError, DataError
from sfumato.evaluation.audits.detector import CARD, Detector, Matrix, matrix
from sfumato.evaluation.references.reference import Reference
from sfumato.evaluation.statistics import Int64Array, UInt8Array
from sfumato.evaluation.subjects.images import check_same_kind, open_images
from sfumato.evaluation.subjects.labels import stratified_labels
from sfumato.evaluation.subjects.model_sources import load_model
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.targets import model_of, target_of
from sfumato.sampling.model_files import read_card

SHOWN = 10


def train(
    by: Sequence[str],
    real: str,
    *,
    samples: int,
    seen: int,
    seed: int,
    out: Path,
    overwrite: bool,
    trust: bool,
    root: Path,
    display: Display,
) -> dict[str, Any]:
    """Train a detector for each source in `by`, runs or images of any program, against the images `real`.

    Writes the detector of all sources and the matrix into `out`; returns the matrix as plain data.

    Raises ConfigError for too few or repeated sources, DataError for images that do not go together.
    """
    if not by:
        raise ConfigError("--by: name at least one run whose samples to detect")
    if len(set(by)) < len(by):
        raise ConfigError(f"--by: {max(by, key=list(by).count)} is named twice")
    if out.exists() and any(out.iterdir()) and not (overwrite and (out / CARD).is_file()):
        raise ConfigError(
            f"--out {out}: not empty; choose another folder, or replace a detector by --overwrite"
        )
    reference = open_images(real)
    made, families = {}, {}
    for word in by:
        name = Path(word).name or word
        display.stage(f"sample {name}")
        made[name], families[name] = _images(word, reference, samples, seed, trust, root, display)
        display.done(f"{len(made[name]):,} images of {families[name]}")
    if len(made) < len(by):
        raise ConfigError("--by: two sources have the same last name: rename or copy one of them")
    display.stage("train")
    found = matrix(_spread(reference, samples), made, seen=seen, seed=seed)
    display.done(f"{len(found.areas)} detectors, {seen:,} images each")
    report = {
        "real": real,
        "samples": samples,
        "seen": seen,
        "seed": seed,
        "families": families,
        "auroc": {name: {other: a.told() for other, a in row.items()} for name, row in found.areas.items()},
        "folder": str(out),
    }
    _save(found, out, report)
    return report


def score(detector: Path, images: str, *, display: Display) -> dict[str, Any]:
    """Log odds of being generated for every image, by a trained detector."""
    network = Detector.load(detector)
    opened = open_images(images)
    display.stage("score")
    scores = np.concatenate([network.scores(block) for block, _ in opened.blocks()])
    display.done(f"{len(scores):,} images")
    return {
        "images": len(scores),
        "generated": float((scores > 0).mean()),
        "scores": [round(float(value), 4) for value in scores],
    }


def text_of(report: Mapping[str, Any]) -> str:
    """The matrix for people: learnt from in rows, judged on in columns."""
    from rich.console import Console
    from rich.table import Table

    table = Table("learnt from \\ judged on")
    names = list(next(iter(report["auroc"].values())))
    for name in names:
        table.add_column(f"{name}\n({report['families'][name]})")
    for name, row in report["auroc"].items():
        table.add_row(name, *(f"{a['auroc']:.3f}\n{a['low']:.3f} to {a['high']:.3f}" for a in row.values()))
    console = Console(width=max(80, 24 * (len(names) + 1)), highlight=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get() + "AUROC with 95 % intervals; 0.5 is chance."


def _save(found: Matrix, out: Path, report: Mapping[str, Any]) -> None:
    try:
        found.detector.save(out, {key: value for key, value in report.items() if key != "folder"})
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error.strerror or error}") from error


def _images(
    word: str, real: Reference, samples: int, seed: int, trust: bool, root: Path, display: Display
) -> tuple[UInt8Array, str]:
    """Samples of a run, or images that another program made, and the family's name."""
    target = target_of(word, root=root)
    if target.kind == "recipe":
        raise ConfigError(f"--by {word}: that is a recipe; name its run")
    if target.kind == "images":
        images = open_images(target.place)
        check_same_kind(images.spec, real.spec, what=f"{word} has")
        return _spread(images, samples), "images"
    place = target.place if target.run is None or target.kind == "checkpoint" else str(target.run.path)
    with model_of(place, root=root, trust=trust) as found:
        source = load_model(found.model, {}, device="cuda", trust=found.trusted, reference=real)
        check_same_kind(source.spec, real.spec, what=f"{word} makes")
        labels = _labels(real, samples) if source.conditional else None
        blocks = []
        for index in range(-(-samples // source.block)):
            rows = slice(index * source.block, (index + 1) * source.block)
            mine = None if labels is None else labels[rows]
            blocks.append(source.draw(index, seed=seed, labels_B=mine).images)
            display.update(min(samples, rows.stop), samples)
        family = str(read_card(found.model)[0]["family"])
    return np.concatenate(blocks)[:samples], family.rpartition(":")[2]


def _labels(real: Reference, samples: int) -> Int64Array:
    """Classes in the shares of the real images, so that a detector cannot go by them."""
    counts = np.zeros(real.spec.num_classes, np.int64)
    for _, labels in real.blocks():
        if labels is not None:
            counts += np.bincount(labels, minlength=len(counts))
    return stratified_labels(counts, samples)


def _spread(images: Reference, most: int) -> UInt8Array:
    """Up to so many of the images, evenly spread."""
    rows = np.unique(np.linspace(0, images.size - 1, min(most, images.size)).round().astype(np.int64))
    return np.concatenate([block for block, _ in images.blocks()])[rows]
