"""Side files of several values a sample: what is read is what was written, and damage is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sfumato.data.format.columns import ColumnInfo, SideFile
from sfumato.data.format.ranges import read_ranges
from sfumato.data.format.several import Writer, table_of, whole
from sfumato.data.packing.precompute import stored
from sfumato.errors import DataError

SHAPE = (5, 3)
LENGTHS = [[2, 5], [0], [1, 3, 4]]


def written(folder: Path, dtype: str) -> tuple[SideFile, list[np.ndarray]]:
    """Samples of several values, of which so many rows are not zero."""
    writer, values = Writer(folder / "x.bin"), []
    for number, lengths in enumerate(LENGTHS):
        for length in lengths:
            value = np.zeros(SHAPE, np.float32)
            value[:length] = np.random.default_rng(10 * number + length).normal(size=(length, 3))
            values.append(stored(value, dtype, "x"))
            writer.add(values[-1])
        writer.end_sample()
    return writer.close("x.bin"), values


def info(dtype: str) -> ColumnInfo:
    return ColumnInfo(kind="array", dtype=dtype, shape=SHAPE, stored="several", texts="text")


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_every_value_comes_back_and_takes_its_own_place(tmp_path: Path, dtype: str, size: int) -> None:
    file, values = written(tmp_path, dtype)
    assert file.bytes == sum(map(sum, LENGTHS)) * 3 * size + 8 * (4 + 7 + 2)
    table = table_of(str(tmp_path), file)
    assert table.samples == 3
    places = [(row, number) for row, lengths in enumerate(LENGTHS) for number in range(len(lengths))]
    ranges = [table.range(row, number) for row, number in places]
    for content, value in zip(read_ranges(str(tmp_path), "x.bin", ranges), values, strict=True):
        assert whole(content, info(dtype), "here").tobytes() == value.tobytes()
    assert table.range(1, 2) == table.range(1, 0), "a sample has fewer than another"


def test_damage_is_one_line(tmp_path: Path) -> None:
    file, _ = written(tmp_path, "float32")
    content = (tmp_path / "x.bin").read_bytes()
    for name, changed in {
        "short": content[:-8],
        "empty": b"",
        "counts": content[:-8] + (10**6).to_bytes(8, "little"),
        "order": content[:-64] + content[-32:-24] + content[-56:],
    }.items():
        (tmp_path / f"{name}.bin").write_bytes(changed)
        other = file.model_copy(update={"name": f"{name}.bin", "bytes": max(1, len(changed))})
        with pytest.raises(DataError, match=r"damaged; precompute the data set again"):
            table_of(str(tmp_path), other)
    with pytest.raises(DataError, match="13 bytes are no value of it"):
        whole(b"x" * 13, info("float32"), "here")
