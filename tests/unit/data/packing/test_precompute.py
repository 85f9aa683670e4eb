"""Columns added to a set: several encoders in several types, made again, on old sets, without a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfumato.core.columns import Column
from sfumato.data.columns import carried
from sfumato.data.config import DataSettings
from sfumato.data.format.columns import ColumnInfo, EncoderInfo
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.order.pools import content_digest
from sfumato.data.packing.pack import pack
from sfumato.data.packing.placing import check_destination, place_set
from sfumato.data.packing.precompute import Addition, encode_shard, finish, stored
from sfumato.data.packing.sources.npz import NpzSource
from sfumato.data.reading import local_reader
from sfumato.data.verification import check
from sfumato.errors import DataError

ROWS = 150
OLDER = Path(__file__).parents[1] / "format" / "older_set"


class Mean:
    """An encoder: the mean of each row of pixels, times a factor, and how many captions there were."""

    def __init__(self, factor: float, columns: Mapping[str, ColumnInfo]) -> None:
        self.factor, self.columns = factor, columns

    def encode(
        self, image_NHWC: NDArray[np.uint8], captions: Sequence[str | None]
    ) -> Mapping[str, NDArray[Any]]:
        assert len(image_NHWC) == len(captions) == 64
        (name,) = self.columns
        return {name: image_NHWC[:, :, :, 0].mean(2).astype(np.float32) * self.factor}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 4, 5), dtype=np.uint8)
    pixels[:, 0, 0] = np.arange(ROWS)
    np.savez(tmp_path / "in.npz", x=pixels)
    pack(NpzSource(path=str(tmp_path / "in.npz")), tmp_path / "set", shard_size=70)
    return tmp_path / "set"


def add(folder: Path, name: str, factor: float, dtype: str, dest: Path | None = None) -> Manifest:
    manifest, place = Manifest.load(folder), str(dest or folder)
    height = manifest.image.height
    columns = {f"{name}_mean": ColumnInfo(kind="array", dtype=dtype, shape=(height,), stored="side")}
    digest = f"{round(factor * 8):064x}"
    info = EncoderInfo(run=name, digest=digest, family="mean", images=manifest.digest, transform="none")
    addition = Addition(place, name, info, columns)
    check_destination(str(folder), manifest, addition)
    place_set(str(folder), manifest, place)
    encoder = Mean(factor, columns)
    files = [encode_shard(str(folder), manifest, n, encoder, addition) for n in range(len(manifest.shards))]
    return finish(manifest, files, addition)


def first_epoch(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    settings = DataSettings(path=str(folder), streams=1, shuffle_window=ROWS, **options)
    manifest = Manifest.load(folder)
    (micro,) = next(local_reader.read(settings, manifest, seed=1, batch=manifest.samples))
    return dict(micro.batch)


def means(batch: Mapping[str, torch.Tensor], factor: float) -> torch.Tensor:
    return torch.from_numpy(batch["image"].numpy()[:, 0].mean(2).astype(np.float32) * factor)


def test_several_encoders_stand_side_by_side(folder: Path) -> None:
    before = Manifest.load(folder)
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "manifest.json"}
    add(folder, "wide", 1.0, "float32")
    add(folder, "half", 0.5, "float16")
    after = add(folder, "brain", 0.125, "bfloat16")
    assert after.digest == before.digest
    assert {n: (folder / n).stat().st_mtime_ns for n in times} == times
    assert verify(folder, "checksum") == after
    assert check(folder)[1] == []
    assert list(after.encoders) == ["wide", "half", "brain"]
    assert after.columns["brain_mean"].column == Column("array", "bfloat16", (4,))
    batch = first_epoch(folder)
    for name, factor, dtype in (
        ("wide", 1.0, torch.float32),
        ("half", 0.5, torch.float16),
        ("brain", 0.125, torch.bfloat16),
    ):
        assert batch[f"{name}_mean"].dtype == dtype
        assert torch.equal(batch[f"{name}_mean"], means(batch, factor).to(dtype))
    assert set(first_epoch(folder, columns=("half_mean",))) == {"image", "half_mean"}


def test_an_encoder_made_again_replaces_its_own_columns_alone(folder: Path) -> None:
    add(folder, "wide", 1.0, "float32")
    first = add(folder, "other", 2.0, "float32")
    settings = DataSettings(path=str(folder))
    second = add(folder, "wide", 3.0, "float32")
    assert second.columns["other_mean"] == first.columns["other_mean"]
    assert content_digest(settings, second) != content_digest(settings, first)
    batch = first_epoch(folder)
    assert torch.equal(batch["wide_mean"], means(batch, 3.0))
    assert torch.equal(batch["other_mean"], means(batch, 2.0))
    held = {file.name for info in second.columns.values() for file in info.files.values()}
    assert {path.name for path in folder.glob("*.bin")} == held  # nothing of the old columns is left


def test_columns_are_added_to_a_link_of_the_set(folder: Path, tmp_path: Path) -> None:
    after = add(folder, "wide", 1.0, "float32", tmp_path / "more")
    assert not Manifest.load(folder).columns
    assert not list(folder.glob("*.bin"))
    for shard in after.shards:
        assert (folder / shard.name).samefile(tmp_path / "more" / shard.name)
    assert check(tmp_path / "more")[1] == []


def test_an_older_set_gains_columns_and_keeps_its_arrays(tmp_path: Path) -> None:
    after = add(OLDER, "wide", 1.0, "float32", tmp_path / "more")
    assert after.digest == Manifest.load(OLDER).digest
    batch = first_epoch(tmp_path / "more")
    assert set(batch) == {"image", "label", "latent_mean", "latent_std", "wide_mean"}
    assert torch.equal(batch["wide_mean"], means(batch, 1.0))
    assert torch.equal(batch["latent_mean"], first_epoch(OLDER)["latent_mean"])


def test_a_side_file_that_changed_is_found(folder: Path) -> None:
    manifest = add(folder, "wide", 1.0, "float32")
    file = folder / next(iter(manifest.columns["wide_mean"].files.values())).name
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"wide_mean.*\.bin: its checksum differs"):
        verify(folder)
    (fault,) = check(folder)[1]
    assert "wide_mean: its checksum differs" in str(fault)
    file.write_bytes(bytes(content[:-4]))
    with pytest.raises(DataError, match="truncated"):
        verify(folder, "size")
    with pytest.raises(DataError, match="wide_mean: the file ends before it"):
        first_epoch(folder)


def test_names_that_are_taken_are_refused(folder: Path) -> None:
    manifest = add(folder, "wide", 1.0, "float32")
    info = manifest.encoders["wide"]
    addition = Addition(str(folder), "else", info, {"wide_mean": manifest.columns["wide_mean"]})
    with pytest.raises(DataError, match="has a column 'wide_mean' already, of the encoder 'wide'"):
        check_destination(str(folder), manifest, addition)


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate([values[np.isfinite(values)], [1 + 2**-8, 1 + 3 * 2**-8, 0.0, -0.0]])
    values = values.astype(np.float32)[np.abs(values) < 3e38]
    expected = torch.from_numpy(values.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    assert np.array_equal(stored(values, "bfloat16", "z").view(np.int16), expected)
    with pytest.raises(DataError, match="float16 cannot hold; choose bfloat16"):
        stored(np.array([1e6], np.float32), "float16", "z")
    with pytest.raises(DataError, match="is not finite"):
        stored(np.array([np.nan], np.float32), "float32", "z")


def test_what_encoders_made_is_carried_by_itself(folder: Path) -> None:
    manifest = add(folder, "wide", 1.0, "float32")
    assert list(carried(DataSettings(path=str(folder)), manifest)) == ["wide_mean"]
    assert not carried(DataSettings(path=str(folder), columns=()), manifest)
