"""Stage `pack`: what it is keyed by, and whose data sets it replaces."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfumato.data.format.manifest import Manifest
from sfumato.errors import DataError
from sfumato.runtime.pipeline.kinds.pack import PackStage
from sfumato.runtime.pipeline.place import PipelinePlace
from sfumato.runtime.pipeline.stage import Outputs, Work
from sfumato.runtime.runs.display import Display


class Project:
    """A folder with pictures, and a stage that packs them."""

    def __init__(self, folder: Path) -> None:
        self.place = PipelinePlace(folder, folder)
        self.data = folder / "packed"
        for number in range(4):
            self.draw(f"{number}.png", number)

    def draw(self, name: str, seed: int) -> None:
        path = self.place.root / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    def stage(self, **changes: Any) -> PackStage:
        source = {"kind": "folder", "path": "pictures"}
        return PackStage.model_validate({"kind": "pack", "source": source, "dest": "packed", **changes})

    def pack(self, before: Outputs | None = None, *, again: bool = False, **changes: Any) -> Outputs:
        work = Work(place=self.place, display=Display(), before=before, again=again)
        return self.stage(**changes).perform(work)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_the_key_follows_the_files_and_the_settings(project: Project) -> None:
    key = project.stage().identity(project.place)
    assert project.stage().identity(project.place) == key
    assert project.stage(needs=["other"]).identity(project.place) == key, "which is no input"
    assert project.stage(shard_size=2).identity(project.place) != key
    picture = project.place.root / "pictures" / "0.png"
    os.utime(picture, ns=(1, 1))
    touched = project.stage().identity(project.place)
    assert touched != key
    project.draw("new.png", 9)
    assert project.stage().identity(project.place) not in (key, touched)


def test_its_own_data_set_is_replaced_and_the_same_input_gives_the_same(project: Project) -> None:
    first = project.pack()
    assert (first["samples"], first["digest"]) == (4, Manifest.load(project.data).digest)
    assert project.stage().in_place(first, project.place)
    assert project.pack(first, again=True) == first
    project.draw("new.png", 9)
    second = project.pack(first)
    assert second["samples"] == 5 and second["digest"] != first["digest"]
    assert not project.stage().in_place(first, project.place)


def test_a_split_set_gives_both_parts(project: Project) -> None:
    source = {"kind": "folder", "path": "pictures", "val": 0.4}
    made = project.pack(source=source)
    assert made["data"] == str(project.data / "train") and made["val"] == str(project.data / "val")
    assert Manifest.load(made["val"]).samples + made["samples"] == 4
    assert project.pack(made, again=True, source=source) == made


def test_a_data_set_of_somebody_else_is_taken_but_never_replaced(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    Project(project.place.root).pack()
    adopted = project.pack()
    assert adopted["adopted"] and "was packed before, not by this pipeline" in capsys.readouterr().err
    with pytest.raises(DataError, match="was packed elsewhere, so this pipeline does not replace it"):
        project.pack(adopted, again=True)
    project.draw("new.png", 9)
    other = {**adopted, "digest": "0" * 64}
    with pytest.raises(DataError, match="holds a data set that this pipeline did not pack; remove it"):
        project.pack(other)
    assert Manifest.load(project.data).samples == 4
