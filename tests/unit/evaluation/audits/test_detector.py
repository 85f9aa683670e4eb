"""Detectors: what they tell apart, what carries over, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sfumato.errors import CheckpointError, DataError
from sfumato.evaluation.audits.detector import ALL, CARD, WEIGHTS, Detector, matrix

Pixels = NDArray[np.uint8]
Command = Callable[..., tuple[int, str, str]]


def pictures(seed: int, count: int, kind: str = "real") -> Pixels:
    """Smooth 8 x 8 pictures; `dots` have a bright pixel in a corner, `grain` have noise."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3, 3)).repeat(3, axis=1).repeat(3, axis=2)[:, :8, :8] * 40 + 128
    if kind == "dots":
        x[:, 0, 0] = 255
    if kind == "grain":
        x += rng.normal(size=x.shape) * 60
    return x.clip(0, 255).astype(np.uint8)[..., None]


def test_the_matrix_says_what_a_detector_knows_and_what_carries_over() -> None:
    made = {
        "grain": pictures(1, 120, "grain"),
        "more grain": pictures(2, 120, "grain"),
        "same": pictures(3, 120),
    }
    found = matrix(pictures(0, 120), made, seen=1_600, seed=0)
    assert set(found.areas) == {*made, ALL}
    assert found.areas["grain"]["grain"].value > 0.9
    assert found.areas["grain"]["more grain"].value > 0.9, "what was learnt holds for its like"
    assert 0.25 < found.areas["grain"]["same"].value < 0.75
    assert abs(found.areas["same"]["same"].value - 0.5) < 0.25, "nothing to learn"
    assert found.areas[ALL]["grain"].value > 0.9
    assert all(0 <= a.low <= a.value <= a.high <= 1 for row in found.areas.values() for a in row.values())


def test_the_same_call_trains_the_same_detector_and_a_folder_keeps_it(tmp_path: Path) -> None:
    sets = pictures(0, 60), pictures(1, 40, "dots")
    first, second = (Detector.of(*sets, seen=600, seed=5) for _ in range(2))
    query = pictures(9, 10, "dots")
    np.testing.assert_array_equal(first.scores(query), second.scores(query))
    first.save(tmp_path / "kept", {"real": "digits"})
    np.testing.assert_array_equal(Detector.load(tmp_path / "kept").scores(query), first.scores(query))
    with pytest.raises(DataError, match="takes images of 8x8 with 1 channel, got 16x8"):
        first.scores(np.zeros((2, 8, 16, 1), np.uint8))
    (tmp_path / "kept" / WEIGHTS).write_bytes(b"not safetensors, which could be anything")
    with pytest.raises(Exception, match="damaged") as error:
        Detector.load(tmp_path / "kept")
    assert isinstance(error.value, CheckpointError)
    with pytest.raises(CheckpointError, match="train a detector first"):
        Detector.load(tmp_path / "nothing")


def test_the_command_trains_by_a_run_and_by_images_and_scores(
    earlier_run: Callable[[str, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sfumato_here: Command,
) -> None:
    run = earlier_run("runs", tmp_path)
    monkeypatch.chdir(tmp_path)
    np.savez("made.npz", images=pictures(1, 48, "grain")[..., 0])
    call = ("detector", "train", "--by", str(run), "--by", "made.npz", "--real", "data/digits")
    options = ("--out", "out", "--samples", "48", "--seen", "400")
    status, out, error = sfumato_here(*call, *options, "--json")
    assert status == 0, error
    report = json.loads(out)
    assert report["families"] == {run.name: "diffusion", "made.npz": "images"}
    assert set(report["auroc"]) == {run.name, "made.npz", ALL}
    assert report["auroc"]["made.npz"]["made.npz"]["auroc"] > 0.8
    assert (tmp_path / "out" / CARD).is_file()
    status, out, error = sfumato_here("detector", "score", "out", "made.npz", "--json")
    assert status == 0 and len(json.loads(out)["scores"]) == 48, error
    status, _, error = sfumato_here(*call, *options)
    assert status == 2 and "not empty" in error and "Traceback" not in error
    np.savez("large.npz", images=np.zeros((50, 9, 9), np.uint8))
    status, _, error = sfumato_here(
        "detector", "train", "--by", "large.npz", "--real", "data/digits", "--out", "other"
    )
    assert status == 2 and "9x9" in error
