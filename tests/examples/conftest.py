"""What the examples need: packed data, a U-Net of diffusers, a trained teacher, what one process trains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import train_rank
from example_cases import Prepared
from example_sets import pack_digits, pack_views
from library_folders import save_unet
from safetensors.torch import load_file
from torch import Tensor

from sfumato.core.pretrained import Pretrained
from sfumato.runtime.runs.pretrained import look_up

HERE = Path(__file__).parent


@pytest.fixture(autouse=True, scope="module")
def found_by_ranks() -> Iterator[None]:
    """Ranks import the examples as a user's programs do, from a folder on PYTHONPATH."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Data and pretrained networks."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("digits", "views"):
        (folder / f"{name}-files").mkdir()
    sets = {
        "digits": pack_digits(folder / "digits-files", folder / "digits"),
        "views": pack_views(folder / "views-files", folder / "views"),
    }
    base = look_up(Pretrained(folder=str(save_unet(folder / "unet"))), folder, "model.base")
    train_rank.train(
        {
            "family": "diffusion",
            "model": {"network": {"channels": (8, 16), "head_dim": 8, "norm_groups": 4}, "condition": "none"}
            | {"objective": {"timesteps": 20}, "sampling": {"steps": 3}},
            "data": str(sets["digits"]),
            "train": {"images": 192, "batch": 64, "preview_samples": 0},
            "strategy": "single",
            "model_folder": str(folder / "teacher"),
            "out": str(folder / "teacher.safetensors"),
        }
    )
    teacher = look_up(Pretrained(run=str(folder / "teacher")), folder, "model.teacher")
    pretrained = {
        "adapter": {"base": base.model_dump(mode="json")},
        "distilled": {"teacher": teacher.model_dump(mode="json")},
    }
    return Prepared(sets, pretrained)


@pytest.fixture(scope="session")
def alone(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`alone(name)`: the folder with what this process trains, once, without a break: `out.safetensors` (all
    weights, averages and losses), and a run with `model`."""
    folder = tmp_path_factory.mktemp("alone")

    def trained(name: str) -> Path:
        own = folder / name
        if not own.exists():
            own.mkdir()
            (own / "run.json").write_text("{}")
            train_rank.train(
                prepared.case(name, model_folder=str(own / "model"), out=str(own / "out.safetensors"))
            )
        return own

    return trained


@pytest.fixture(scope="session")
def reference(alone: Callable[[str], Path]) -> Callable[[str], dict[str, Tensor]]:
    """`reference(name)`: what a single process computes, by "network/tensor"; with state and losses."""
    return lambda name: load_file(alone(name) / "out.safetensors")
