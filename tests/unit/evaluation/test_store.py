"""Files that are whole or absent, and labels that follow the reference's frequencies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import SfumatoError
from sfumato.evaluation.metrics.metric import MetricResult
from sfumato.evaluation.report import finite
from sfumato.evaluation.store import is_whole, read_arrays, write_arrays, write_bytes, write_json
from sfumato.evaluation.subjects.labels import stratified_labels


def test_arrays_come_back_with_their_facts(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.safetensors"
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.arange(3, dtype=np.uint8)}
    write_arrays(path, arrays, {"seconds": 1.5, "name": "é"})
    stored = read_arrays(path)
    assert stored is not None
    assert stored[1] == {"seconds": 1.5, "name": "é"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(stored[0][name], array)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_truncated_file_counts_as_absent(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "file"
    write_arrays(path, {"a": np.zeros(100)}, {})
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:keep])
    assert not is_whole(path)
    assert read_arrays(path) is None
    assert read_arrays(tmp_path / "nowhere") is None


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_number_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"fd": float("nan")})
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(SfumatoError, match="metric fd came out as nan"):
        finite(MetricResult("fd", float("nan")))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.integers(1, 100))
def test_labels_follow_the_frequencies(counts: list[int], num: int) -> None:
    counts_K = np.array(counts, dtype=np.int64)
    total = int(counts_K.sum())
    labels = stratified_labels(counts_K, max(num, total))
    assert np.bincount(labels[:total], minlength=len(counts)).tolist() == counts
    np.testing.assert_array_equal(stratified_labels(counts_K, num), labels[:num])
    got = np.bincount(labels[:num], minlength=len(counts))
    # Off from num * frequency by about one sample a class, wherever the list is cut.
    assert np.abs(got - num * counts_K / total).max() < 2
    assert (counts_K[labels] > 0).all(), "a class without real images is never asked for"


def test_no_labelled_images_is_refused() -> None:
    with pytest.raises(ValueError, match="no labelled images"):
        stratified_labels(np.zeros(3, dtype=np.int64), 5)
