"""What is said about how many images a training sees."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_recipe import write_tiny_recipe

from sfumato.recipe import load
from sfumato.runtime.commands.printed import images_of, images_text


@pytest.mark.parametrize(
    ("asked", "seen", "text"),
    [
        (3_000, 3_072, "3,072 images (3,000 rounded up to whole batches of 256)"),
        (3_072, 3_072, "3,072 images"),
        (3_073, 3_328, "3,328 images (3,073 rounded up to whole batches of 256)"),
    ],
)
def test_images_are_whole_batches(asked: int, seen: int, text: str, tmp_path: Path) -> None:
    recipe = load(write_tiny_recipe(tmp_path, "data", train={"images": asked, "batch": 256}))
    assert images_of(recipe) == seen and images_text(recipe, seen) == text
    assert images_text(recipe, 512) == "512 images", "a training that stopped early was not rounded"
