"""Augmentation: what it does to pixels, and that it depends on seed, epoch and key alone."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.data.reading.transforms import U8, Augmentation, Colour, Crop, Flip

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
KEYS = [f"key{number}" for number in range(2000)]


def alone(augmentation: Augmentation, image: U8, epoch: int, key: str) -> U8:
    return augmentation.apply({"image": image}, epoch, key)["image"]


def of_each_key(*transforms: Flip | Crop | Colour, image: U8 = IMAGE, epoch: int = 0) -> list[U8]:
    augmentation = Augmentation(transforms, seed=3)
    return [alone(augmentation, image, epoch, key) for key in KEYS]


def test_flip_mirrors_as_often_as_asked() -> None:
    flipped = [np.array_equal(out, IMAGE[:, ::-1]) for out in of_each_key(Flip(probability=0.3))]
    same = [np.array_equal(out, IMAGE) for out in of_each_key(Flip(probability=0.3))]
    assert all(one != other for one, other in zip(flipped, same, strict=True))
    assert abs(np.mean(flipped) - 0.3) < 4 * (0.3 * 0.7 / len(KEYS)) ** 0.5


@pytest.mark.parametrize("fill", ["reflect", "edge", "zero"])
def test_crop_shifts_evenly_to_every_place(fill: str) -> None:
    mode = {"reflect": "reflect", "edge": "edge", "zero": "constant"}[fill]
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)), mode)  # type: ignore[call-overload]
    places = {(t, left): padded[t : t + 9, left : left + 7].tobytes() for t in range(5) for left in range(5)}
    assert len(set(places.values())) == 25
    counts = dict.fromkeys(places.values(), 0)
    for out in of_each_key(Crop(pad=2, fill=fill)):
        assert out.shape == IMAGE.shape
        counts[out.tobytes()] += 1
    expected = len(KEYS) / 25
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 60  # 24 degrees of freedom


def test_scaled_crop_is_pillows_resize_of_a_part() -> None:
    rows, columns = round(0.6 * 9), round(0.6 * 7)
    parts = {
        np.asarray(
            Image.fromarray(np.ascontiguousarray(IMAGE[t : t + rows, left : left + columns])).resize(
                (7, 9), Image.Resampling.BICUBIC
            )
        ).tobytes()
        for t in range(9 - rows + 1)
        for left in range(7 - columns + 1)
    }
    assert {out.tobytes() for out in of_each_key(Crop(scale=(0.6, 0.6)))} == parts


def test_colour_stays_between_its_factors() -> None:
    grey = np.full((4, 4, 1), 100, np.uint8)
    levels = np.array([out[0, 0, 0] for out in of_each_key(Colour(brightness=0.2), image=grey)])
    assert levels.min() in (80, 81)
    assert levels.max() in (119, 120)
    assert abs(levels.mean() - 100) < 1
    # Contrast: about the mean grey of the image, here 100.
    pair = np.array([[[60], [140]]], np.uint8)
    for out in of_each_key(Colour(contrast=0.5), image=pair)[:200]:
        assert abs(int(out[0, 0, 0]) + int(out[0, 1, 0]) - 200) <= 1
        assert 79 <= int(out[0, 1, 0]) - int(out[0, 0, 0]) + 40 <= 161
    # Saturation: about the grey of each pixel (ITU-R 601), which stays.
    red = np.array([[[200, 50, 50]]], np.uint8)
    luma = 0.299 * 200 + 0.587 * 50 + 0.114 * 50
    for out in of_each_key(Colour(saturation=0.5), image=red)[:200]:
        assert abs(out[0, 0].astype(float) @ [0.299, 0.587, 0.114] - luma) < 1.5


def test_draws_differ_between_keys_epochs_seeds_and_places_in_the_list() -> None:
    twice = Augmentation((Crop(pad=3), Crop(pad=3)), 1)
    once = Augmentation((Crop(pad=3),), 1)
    first = [alone(once, IMAGE, 0, key).tobytes() for key in KEYS[:50]]
    assert first == [alone(once, IMAGE, 0, key).tobytes() for key in KEYS[:50]]
    assert len(set(first)) > 20
    assert first != [alone(once, IMAGE, 1, key).tobytes() for key in KEYS[:50]]
    assert first != [alone(Augmentation((Crop(pad=3),), 2), IMAGE, 0, key).tobytes() for key in KEYS[:50]]
    again = [alone(once, alone(once, IMAGE, 0, key), 0, key).tobytes() for key in KEYS[:50]]
    assert again != [alone(twice, IMAGE, 0, key).tobytes() for key in KEYS[:50]]


def test_a_sample_is_changed_alike_on_every_rank_and_after_a_resume(digits_data: Path) -> None:
    settings = DataSettings(
        path=str(digits_data), streams=4, transforms=(Flip(), Crop(pad=1), Colour(brightness=0.3))
    )
    manifest = Manifest.load(digits_data)

    def stream(rank: int, world_size: int, images: int) -> list[torch.Tensor]:
        reading = local_reader.read(
            settings, manifest, seed=2, batch=64, images=images, rank=rank, world_size=world_size
        )
        return [micro.batch["image"] for (micro,) in islice(reading, 4)]

    whole = stream(0, 1, 64 * 26)  # the end of the first epoch and the beginning of the second
    pair = [stream(rank, 2, 64 * 26) for rank in range(2)]
    for step in range(4):
        rows = whole[step].reshape(4, 16, 1, 8, 8)
        assert torch.equal(rows[0::2].flatten(0, 1), pair[0][step])
        assert torch.equal(rows[1::2].flatten(0, 1), pair[1][step])
    assert torch.equal(stream(0, 1, 64 * 28)[0], whole[2])
    plain = settings.model_copy(update={"transforms": ()})
    (untouched,) = next(local_reader.read(plain, manifest, seed=2, batch=64, images=64 * 26))
    assert not torch.equal(untouched.batch["image"], whole[0])


def test_settings_out_of_range_are_refused() -> None:
    for bad in ((0.0, 1.0), (0.9, 0.8), (0.5, 1.5)):
        with pytest.raises(ValidationError, match="scale"):
            Crop(scale=bad)
    with pytest.raises(ValidationError):
        DataSettings.model_validate({"path": "x", "transforms": [{"kind": "rotate"}]})
