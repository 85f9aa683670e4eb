"""The keys that an error names are those of the batch that was read."""

from __future__ import annotations

from pathlib import Path

from sfumato import recipe as recipes
from sfumato.data.format.index import load
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.families import config_class
from sfumato.runtime.training.bad_samples import batch_keys, shown


def test_keys_of_a_batch_in_the_second_epoch(digits_data: Path) -> None:
    model = next(iter(config_class("diffusion").variants().values()))
    recipe = recipes.parse(
        {
            "name": "x",
            "data": {"path": str(digits_data), "streams": 8, "shuffle_window": 100},
            "model": model.model_dump(mode="json"),
            "train": {"images": 4_000, "batch": 64},
        }
    )
    manifest = Manifest.load(digits_data)
    label_of = {
        str(key): int(label)
        for index in load(digits_data, manifest)
        for key, label in zip(index.keys, index.labels, strict=True)
    }
    for images in (0, 64, 1_920):
        (micro,) = next(local_reader.read(recipe.data, manifest, seed=recipe.seed, batch=64, images=images))
        keys = batch_keys(recipe, manifest, images)
        assert len(set(keys)) == 64
        assert [label_of[key] for key in keys] == micro.batch["label"].tolist()


def test_a_long_list_is_cut_short() -> None:
    assert shown(["a", "b"]) == "a, b"
    assert shown([str(i) for i in range(20)], most=3) == "0, 1, 2 and 17 more"
