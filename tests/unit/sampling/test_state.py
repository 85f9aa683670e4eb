"""A model folder keeps the family's state, and what samples is handed it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.state import initial
from sfumato.errors import CheckpointError
from sfumato.families.gan.config import GanConfig
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import read_model_folder, save_model_folder

DATA = DataSpec(1, 8, 8)
CONFIG = GanConfig.variants()["running"]


def saved(folder: Path, shift: float = 0.0) -> str:
    family = CONFIG.build(DATA)
    torch.manual_seed(0)
    weights = {"ema": family.nets["generator"].build().state_dict()}
    state = {name: value + shift for name, value in initial(family).items()}
    return save_model_folder(
        folder, CONFIG, DATA, weights, name="m", progress=replace(Progress.at(64), state=state)
    )


def test_the_state_comes_back_and_changes_what_is_drawn(tmp_path: Path) -> None:
    digests = {saved(tmp_path / "a"), saved(tmp_path / "b", shift=0.5)}
    assert len(digests) == 2, "the card holds the state's sha256"
    first, other = (Generator.load(tmp_path / name) for name in "ab")
    for name, value in initial(CONFIG.build(DATA)).items():
        found = other.progress.state[name]
        assert torch.equal(found, value + 0.5) and found.dtype == value.dtype
    assert (first.sample(4, seed=1) != other.sample(4, seed=1)).any()
    again = Generator(CONFIG, DATA, other.nets, progress=other.progress)
    assert (again.sample(4, seed=1) == other.sample(4, seed=1)).all()


def test_a_damaged_or_foreign_state_is_refused_and_an_older_card_has_the_first_values(tmp_path: Path) -> None:
    saved(tmp_path / "a", shift=0.5)
    file, card = tmp_path / "a" / "state.safetensors", tmp_path / "a" / "config.json"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"state\.safetensors is damaged"):
        read_model_folder(tmp_path / "a")
    file.write_bytes(content)
    fields = json.loads(card.read_text())
    other = {**fields, "config": {**fields["config"], "spectral_norm": "converged"}}
    card.write_text(json.dumps(other))
    with pytest.raises(CheckpointError, match=r"state of another family: .spectral\.0. is unknown"):
        read_model_folder(tmp_path / "a")
    del fields["state_sha256"]
    card.write_text(json.dumps(fields))
    found = read_model_folder(tmp_path / "a").progress.state
    assert all(torch.equal(found[name], value) for name, value in initial(CONFIG.build(DATA)).items())


def test_a_model_without_its_state_is_not_written(tmp_path: Path) -> None:
    weights = {"ema": CONFIG.build(DATA).nets["generator"].build().state_dict()}
    with pytest.raises(ValueError, match="does not hold the state of its family"):
        save_model_folder(tmp_path / "m", CONFIG, DATA, weights, name="m", progress=Progress.at(1))
    assert not (tmp_path / "m").exists()
