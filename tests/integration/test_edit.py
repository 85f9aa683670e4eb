"""Images edited by Ray actors: the same pixels as without any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.families import config_class
from sfumato.sampling.model_folder import save_model_folder

Command = Callable[..., tuple[int, str, str]]
DATA = DataSpec(1, 8, 8, ("zero", "one"))
IMAGES = 150
"""Three blocks."""


@pytest.mark.usefixtures("ray_local")
def test_actors_give_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sfumato_here: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_class("diffusion").tiny()
    with seeded(0, "network"):
        weights = config.build(DATA).nets["network"].build().state_dict()  # type: ignore[union-attr]
    save_model_folder("model", config, DATA, {"ema": weights}, name="tiny", progress=Progress.at(64))
    (tmp_path / "in").mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(tmp_path / "in" / f"{number:03d}.png")
    for actors in ("0", "2"):
        request = ("edit", "model", "in", "--strength", "0.5", "--label", "one", "--actors", actors)
        status, _, err = sfumato_here(*request, "--out", f"by-{actors}")
        assert status == 0, err
    here, there = (sorted((tmp_path / f"by-{actors}").iterdir()) for actors in ("0", "2"))
    assert len(here) == IMAGES + 2
    assert [path.name for path in here] == [path.name for path in there]
    assert all(one.read_bytes() == two.read_bytes() for one, two in zip(here, there, strict=True))
