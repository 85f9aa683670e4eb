"""Data of several image sizes: which models take it, what they train and are measured on, who is refused."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import members
import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import families, recipe
from sfumato.core.batch import Piece
from sfumato.core.rng import StreamRng
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.pools import pools_of
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.data.reading import local_reader
from sfumato.errors import ConfigError
from sfumato.evaluation.references.reference import PackedReference
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.recipe import Recipe
from sfumato.runtime.runs import sizes
from sfumato.training.loop import Trainer, install


@pytest.fixture(scope="module")
def bucketed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty landscapes of 16x8 and twenty portraits of 8x16, brighter ones."""
    folder = tmp_path_factory.mktemp("bucketed")
    (folder / "in").mkdir()
    for number in range(60):
        shape = (8, 16, 3) if number < 40 else (16, 8, 3)
        Image.fromarray(np.full(shape, 4 * number, np.uint8)).save(folder / "in" / f"{number:02d}.png")
    source = FolderSource(path=str(folder / "in"), buckets=("16x8", "8x16"))
    pack(source, folder / "data", shard_size=15)
    return folder / "data"


def recipe_on(data: Path, model: dict[str, Any]) -> Recipe:
    return recipe.parse(
        {
            "name": "buckets",
            "data": {"path": str(data), "streams": 4, "shuffle_window": 8},
            "model": model,
            "train": {"images": 96, "batch": 8, "log_every": 8, "preview_samples": 0},
        }
    )


def check(job: Recipe) -> None:
    manifest = Manifest.load(job.data.path)
    sizes.check(job, manifest, pools_of(job.data, manifest))


@pytest.mark.parametrize("family", families.names())
def test_families_that_take_one_size_are_refused(family: str, bucketed: Path, digits_data: Path) -> None:
    config = families.config_class(family).tiny()
    job = recipe_on(bucketed, config.model_dump(mode="json"))
    if config.takes_several_sizes():
        check(job)
    else:
        with pytest.raises(ConfigError, match=r"2 sizes \(16x8, 8x16\).*pack with a size") as error:
            check(job)
        assert len(error.value.problems) == 1
    check(recipe_on(digits_data, config.model_dump(mode="json")))  # one size suits them all


def test_diffusion_takes_them_with_networks_that_have_positions_for_all() -> None:
    variants = families.config_class("diffusion").variants()
    for name, config in variants.items():
        able = config.network.kind in ("unet", "unet_text", "pixart", "flux", "library", "library_text")
        assert config.takes_several_sizes() == able, name
    mmdit = variants["mmdit"]
    with_room = mmdit.model_copy(update={"network": mmdit.network.model_copy(update={"largest": 4})})
    assert with_room.takes_several_sizes()


@pytest.mark.parametrize("kind", ["unet", "unet_text", "pixart", "flux", "mmdit"])
def test_networks_that_say_so_train_on_several_sizes(kind: str) -> None:
    variants = families.config_class("diffusion").variants().values()
    config = next(config for config in variants if config.network.kind == kind)
    if kind == "mmdit":
        config = config.model_copy(update={"network": config.network.model_copy(update={"largest": 4})})
    family = config.build(members.DATA)
    nets = members.build(family)
    for height, width in ((8, 8), (8, 16), (16, 8)):
        batch = {**members.batch(), "image": torch.zeros(members.ROWS, 1, height, width)}
        rng = StreamRng([Piece(0, 0, members.ROWS)], rows_per_stream=4, seed=0, images=64, phase="p")
        (phase,) = family.phases
        seen = members.view(nets, phase.trains)
        prepared = family.prepare(seen, batch, members.PROGRESS, rng)
        loss_B = phase.loss(seen, prepared, members.PROGRESS, rng).loss_B
        assert loss_B.shape == (members.ROWS,) and loss_B.isfinite().all(), (height, width)


def test_every_size_has_to_suit_the_network(bucketed: Path) -> None:
    network = {"channels": [8, 8, 8, 8, 8], "norm_groups": 4, "head_dim": 8}
    with pytest.raises(ConfigError) as error:
        check(recipe_on(bucketed, {"family": "diffusion", "network": network}))
    (line,) = error.value.problems  # that of most images is one of the recipe's own
    assert "which a width of 8 does not allow" in line
    assert line.endswith("(of the images that are 8x16)")


def test_a_diffusion_model_trains_on_all_sizes(bucketed: Path) -> None:
    job = recipe_on(bucketed, families.config_class("diffusion").tiny().model_dump(mode="json"))
    manifest = Manifest.load(bucketed)
    family, strategy = job.model.build(manifest.spec), Single(Placement())
    install(family, strategy, seed=0)
    reading = local_reader.read(job.data, manifest, seed=0, batch=8)
    shapes = {micro.batch["image"].shape[2:] for (micro,) in islice(reading, 12)}
    assert shapes == {(8, 16), (16, 8)}
    losses: list[float] = []
    trainer = Trainer(
        family,
        strategy,
        job.train,
        seed=0,
        streams=4,
        report=lambda _, metrics: losses.append(metrics["train/denoise/loss"]),
    )
    trainer.run(local_reader.read(job.data, manifest, seed=0, batch=8))
    assert len(losses) == 12
    assert np.isfinite(losses).all()


def test_the_reference_has_the_size_that_is_drawn(bucketed: Path, digits_data: Path) -> None:
    reference = PackedReference(bucketed)
    assert (reference.size, reference.spec.height, reference.spec.width) == (40, 8, 16)
    images, _ = reference.read(0, 40)
    assert images.shape == (40, 8, 16, 3)
    assert sorted(images[:, 0, 0, 0]) == [4 * number for number in range(40)]
    assert reference.digest != Manifest.load(bucketed).digest
    assert PackedReference(digits_data).digest == Manifest.load(digits_data).digest
