"""Features of images as a column: those of the extractor itself, by a recipe's evaluation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.pack import pack
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import finish
from sfumato.data.reading import local_reader
from sfumato.errors import ConfigError
from sfumato.evaluation.features import all_features
from sfumato.evaluation.references.reference import PackedReference
from sfumato.runtime.commands.precompute_jobs import jobs_of

RECIPE = """
name: t
data: {{path: {data}}}
model: {{family: flow}}
train: {{images: 8, batch: 8}}
evaluate: {{features: {features}}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six grey pictures."""
    folder = tmp_path_factory.mktemp("grey")
    (folder / "in").mkdir()
    for number in range(6):
        picture = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(picture).save(folder / "in" / f"{number}.png")
    pack(str(folder / "in"), folder / "data", shard_size=4)
    return folder / "data"


def recipe(place: Path, data: Path, features: str) -> str:
    (place / "recipe.yaml").write_text(RECIPE.format(data=data, features=features))
    return str(place / "recipe.yaml")


def test_vectors_are_those_of_the_extractor(data: Path, tmp_path: Path) -> None:
    dest, before = str(tmp_path / "data"), Manifest.load(data)
    (job,) = jobs_of(recipe(tmp_path, data, "thumbnail"), str(data), dest, "features", tmp_path, name="looks")
    place_set(str(data), before, dest)
    encoder = job.encoder("cpu")
    finish(before, [job.perform(n, before, encoder) for n in range(2)], job.addition)
    manifest = verify(dest, "checksum")
    assert manifest.columns["looks"].kind == "vector"
    settings = DataSettings(path=dest, streams=1, shuffle_window=4, columns=("looks",))
    batch = next(local_reader.read(settings, manifest, seed=1, batch=6))[0].batch
    kind = all_features()["thumbnail"]
    extractor = kind.build(PackedReference(data), kind.options(), tmp_path)
    expected = extractor.extract(batch["image"].permute(0, 2, 3, 1).numpy()).embedding_ND
    np.testing.assert_allclose(batch["looks"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_recipe_has_to_name_one_extractor(data: Path, tmp_path: Path) -> None:
    for features, words in (
        ("auto", "is auto; name one of"),
        ("[pixels, thumbnail]", "is pixels, thumbnail; name"),
    ):
        with pytest.raises(ConfigError, match=words):
            jobs_of(recipe(tmp_path, data, features), str(data), str(tmp_path / "x"), "features", tmp_path)
