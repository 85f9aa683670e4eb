"""unCLIP's prior and decoder, which train in one run: two ranks compute what one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from example_sets import pack_digits
from launch import launch
from matrix import TRAIN

from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import finish
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.runtime.commands.precompute_jobs import jobs_of

RECIPE = """
name: t
data: {{path: {data}}}
model: {{family: flow}}
train: {{images: 8, batch: 8}}
evaluate: {{features: thumbnail}}
"""


def embedded(folder: Path) -> tuple[Path, int]:
    """Digits with captions and features, and how many numbers these have."""
    data, place = pack_digits(folder, folder / "packed"), folder / "embedded"
    (folder / "r.yaml").write_text(RECIPE.format(data=data))
    before = Manifest.load(data)
    (job,) = jobs_of(str(folder / "r.yaml"), str(data), str(place), "features", folder)
    place_set(str(data), before, str(place))
    encoder = job.encoder("cpu")
    finish(before, [job.perform(n, before, encoder) for n in range(len(before.shards))], job.addition)
    return place, job.addition.columns["features"].shape[0]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_ranks_equal_one_process(strategy: str, tmp_path: Path) -> None:
    data, length = embedded(tmp_path)
    prior = {"width": 8, "depth": 1, "heads": 2}
    adapter = {"kind": "embedding", "length": length, "tokens": 2, "prior": prior}
    content = {**DiffusionConfig.variants()["pixart"].model_dump(mode="json"), "adapter": adapter}
    model = DiffusionConfig.model_validate(content).model_dump(mode="json")
    job = {"family": "diffusion", "model": model, "data": str(data), "train": TRAIN}
    job |= {"reading": {"columns": ["text", "features"]}}
    one = launch(tmp_path / "one", world_size=1, strategy="single", **job)
    two = launch(tmp_path / "two", world_size=2, strategy=strategy, **job)
    assert one.keys() == two.keys()
    assert any(name.startswith("prior") for name in one)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-5, atol=1e-5)
