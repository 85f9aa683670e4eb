"""A model folder is whole or absent, and says in one line what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import sfumato
from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import CheckpointError, ConfigError, SfumatoError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.sampling import model_folder
from sfumato.sampling.model_folder import read_model_folder, save_model_folder

DATA = DataSpec(1, 8, 8, ("näh", "b"))
CONFIG = DiffusionConfig.tiny()
OWN_FAMILY = """
from sfumato.families.diffusion.config import DiffusionConfig

class Mine(DiffusionConfig):
    pass
"""


def weights(seed: int = 0, config: DiffusionConfig = CONFIG) -> dict[str, dict[str, torch.Tensor]]:
    with seeded(seed):
        return {"ema": config.build(DATA).nets["network"].build().state_dict()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model_folder(
        tmp_path / "m",
        CONFIG,
        DATA,
        weights(),
        name="digits",
        progress=Progress.at(7),
        notes={"license": "CC0"},
    )
    return tmp_path / "m"


def edit(folder: Path, **changes: object) -> None:
    card = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**card, **changes}))


def test_it_holds_what_was_stored(folder: Path) -> None:
    stored = read_model_folder(folder)
    assert (stored.name, stored.progress, stored.notes) == ("digits", Progress.at(7), {"license": "CC0"})
    assert (stored.config, stored.data) == (CONFIG, DATA)
    for key, value in weights()["ema"].items():
        assert torch.equal(stored.weights["ema"][key], value)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "ema.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_it_keeps_how_far_the_model_was_trained_and_older_cards_load(folder: Path) -> None:
    progress = Progress(step=3, images=48, total_images=64, batch=16)
    save_model_folder(folder, CONFIG, DATA, weights(), name="digits", progress=progress)
    assert sfumato.load(folder).progress == progress
    card = json.loads((folder / "config.json").read_text())
    del card["progress"]
    (folder / "config.json").write_text(json.dumps(card))
    assert sfumato.load(folder).progress == Progress(step=48, images=48, total_images=48, batch=1)


def test_the_digest_is_of_the_weights_too(tmp_path: Path) -> None:
    def digest(seed: int) -> str:
        return save_model_folder(
            tmp_path / str(seed), CONFIG, DATA, weights(seed), name="n", progress=Progress.at(1)
        )

    first = digest(0)
    assert first == read_model_folder(tmp_path / "0").digest
    assert first == digest(0)
    assert first != digest(1)


def test_a_newer_model_replaces_an_older_one_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    save_model_folder(folder, CONFIG, DATA, weights(1), name="newer", progress=Progress.at(9))
    assert read_model_folder(folder).name == "newer"
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.tex").write_text("text")
    with pytest.raises(ConfigError, match="is not a model folder"):
        save_model_folder(other, CONFIG, DATA, weights(), name="n", progress=Progress.at(1))
    assert (other / "chapter1.tex").read_text() == "text"


def test_an_interrupted_write_leaves_the_older_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_model_folder(folder).digest

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_folder, "_replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_model_folder(folder, CONFIG, DATA, weights(1), name="newer", progress=Progress.at(9))
    assert read_model_folder(folder).digest == before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def damage_weights(folder: Path) -> None:
    content = bytearray((folder / "ema.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "ema.safetensors").write_bytes(content)


def wrong_network(folder: Path) -> None:
    bigger = CONFIG.model_copy(update={"condition": "none"})
    card = json.loads((folder / "config.json").read_text())
    shutil.rmtree(folder)
    save_model_folder(folder, CONFIG, DATA, weights(0, bigger), name="n", progress=Progress.at(1))
    edit(folder, config=card["config"])


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (shutil.rmtree, "is not a model folder"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "format None"),
        (lambda f: edit(f, format=2), "format 2; this version of Sfumato reads format 1"),
        (lambda f: edit(f, images="many"), "field 'images'"),
        (lambda f: edit(f, progress={"step": 1}), "field 'progress'"),
        (lambda f: edit(f, data={"channels": 1}), "field 'data'"),
        (lambda f: edit(f, config={"family": "diffusion", "widht": 3}), "does not take: widht"),
        (lambda f: edit(f, family="difusion"), "did you mean 'diffusion'"),
        (lambda f: edit(f, weights_sha256={}), "no weights for network 'ema'"),
        (lambda f: edit(f, weights_sha256={"../m/ema": "0"}), "is not a file name"),
        (lambda f: (f / "ema.safetensors").unlink(), "is missing"),
        (damage_weights, "is damaged"),
        (wrong_network, "the weights do not match its configuration"),
    ],
)
def test_what_is_wrong_is_one_line(folder: Path, harm: object, says: str) -> None:
    assert callable(harm)
    harm(folder)
    with pytest.raises(SfumatoError, match=says) as caught:
        sfumato.load(folder)
    assert isinstance(caught.value, CheckpointError | ConfigError)
    assert "\n" not in str(caught.value)


def test_a_family_of_ones_own_needs_trust(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_family_for_test.py").write_text(OWN_FAMILY)
    monkeypatch.syspath_prepend(str(tmp_path))
    from sfumato.families import config_class

    config = config_class("own_family_for_test:Mine").tiny()
    save_model_folder(tmp_path / "m", config, DATA, weights(), name="n", progress=Progress.at(1))
    with pytest.raises(ConfigError, match="trust=True"):
        sfumato.load(tmp_path / "m")
    assert type(sfumato.load(tmp_path / "m", trust=True).config) is type(config)
