"""Samples for rare classes: judged as brute force judges, marked, packed, and the same for any actors."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.pack import pack
from sfumato.errors import ConfigError
from sfumato.evaluation.audits.accepted import Limits, OfClass, judged, nearest
from sfumato.evaluation.features.extractor import Extracted
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.stored import Provenance, write_provenance
from sfumato.runtime.commands import augment as commands
from sfumato.runtime.commands.edit import Actors
from sfumato.runtime.runs.display import Display


def test_images_are_judged_by_class_and_by_distances() -> None:
    rng = np.random.default_rng(0)
    real = rng.normal(size=(30, 4)).astype(np.float32)
    limits = Limits(agreement=0.6, nearest=0.1, farthest=0.9)
    of_class = OfClass.of(real, limits)
    pair_MM = np.linalg.norm(real[:, None] - real[None], axis=2) + np.diag(np.full(30, np.inf))
    assert of_class.low == pytest.approx(np.quantile(pair_MM.min(axis=1), 0.1), rel=1e-4)
    rows = np.concatenate([real[:2], real[2:4] + 0.7, real[4:6] + 50, real[6:7] + 0.7]).astype(np.float32)
    logits = np.array([[0, 3]] * 6 + [[3, 0]], np.float32)
    agreement, distance, chosen = judged(Extracted(rows, logits), 1, of_class, limits)
    brute = np.linalg.norm(rows[:, None] - real[None], axis=2).min(axis=1)
    np.testing.assert_allclose(distance, brute, atol=1e-5)
    fits = (brute >= of_class.low) & (brute <= of_class.high)
    assert chosen.tolist() == [n for n in range(6) if fits[n]]
    assert 0 not in chosen, "a copy"
    assert 4 not in chosen, "too far"
    assert 6 not in chosen, "another class"
    assert float(agreement[0]) == pytest.approx(float(torch.softmax(torch.tensor([0.0, 3.0]), 0)[1]))
    assert nearest(real, real, itself=True).shape == (30,)


@pytest.fixture
def rare(tmp_path: Path) -> str:
    """Thirty images of one class, twelve of the other."""
    rng = np.random.default_rng(0)
    labels = np.array([0] * 30 + [1] * 12)
    images = (rng.integers(0, 80, (42, 8, 8)) + 150 * labels[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "rare.npz", images=images, labels=labels)
    pack(str(tmp_path / "rare.npz"), tmp_path / "data")
    return str(tmp_path / "data")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from sfumato.core.family import EmaOf
    from sfumato.core.progress import Progress
    from sfumato.sampling.model_folder import save_model_folder

    data = DataSpec(1, 8, 8, ("0", "1"))
    config, states = DiffusionConfig.tiny(), {}
    family = config.build(data)
    for name in family.samplers:
        spec = family.nets[name]
        source: Any = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
        with seeded(0, name):
            network = source.build()
            for weight in network.parameters():
                if weight.dim() > 1:
                    nn.init.normal_(weight, std=0.1)
        states[name] = network.state_dict()
    folder = tmp_path / "model"
    save_model_folder(folder, config, data, states, name="tiny", progress=Progress.at(0))
    return folder


def augmented(data: str, dest: Path, model: Path, root: Path, **more: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "to": None,
        "tries": 40,
        "limits": Limits(0.5, 0.0, 1.0),
        "seed": 1,
        "seen": 64,
        "actors": Actors(0),
        "device": "cpu",
        "base": None,
        "trust": False,
        "root": root,
        "display": Display(),
    }
    return commands.augment(data, dest, by=str(model), **{**usual, **more})


def every_tenth(found: Extracted, label: int, real: OfClass, limits: Limits) -> Any:
    """Stands for `judged`, and accepts the samples of a model that learnt nothing."""
    rows = np.arange(len(found.embedding_ND))
    return np.full(len(rows), 0.9), np.ones(len(rows)), rows[::10]


def test_the_rare_class_gets_what_it_lacks(
    rare: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sfumato_here: Callable[..., tuple[int, str, str]],
) -> None:
    """Standard output holds the report alone."""
    monkeypatch.setattr(commands, "judged", every_tenth)
    report = augmented(rare, tmp_path / "more", model, tmp_path)
    assert report["classes"] == {"1": {"missing": 18, "kept": 18}}
    manifest = Manifest.load(tmp_path / "more")
    assert (manifest.samples, manifest.classes) == (18, ("0", "1"))
    with tarfile.open(tmp_path / "more" / manifest.shards[0].name) as shard:
        files = [member for member in shard.getmembers() if member.name.endswith(".json")]
        told = [json.load(shard.extractfile(file)) for file in files]  # type: ignore[arg-type]
    assert len(told) == 18
    assert all(each["generated"] is True and each["by"] == "tiny" for each in told)
    asked = (
        f"{rare} {tmp_path / 'again'} --by {model} --class-balance --tries 40 --seed 1 --seen 64 --device cpu"
    )
    status, out, err = sfumato_here("augment", *asked.split(), "--json")
    assert status == 0 and out.count("\n") == 1 and json.loads(out)["kept"] == 18, err
    assert Manifest.load(tmp_path / "again").digest == manifest.digest


def test_marks_are_in_the_packed_files_or_nothing_is_drawn(
    rare: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "judged", every_tenth)
    signed = {"c2pa": {"certificate": "nowhere.pem", "key": "nowhere.key"}, "require": ["c2pa"]}
    for block, said in ((signed, "nowhere"), ({"metadata": True}, None)):
        settings = ProvenanceSettings.model_validate(block)
        write_provenance(model, Provenance(settings))
        if said is not None:
            with pytest.raises(ConfigError, match=said):
                augmented(rare, tmp_path / "more", model, tmp_path)
            assert not list(tmp_path.glob("*more*"))
    augmented(rare, tmp_path / "more", model, tmp_path)
    (shard,) = Manifest.load(tmp_path / "more").shards
    with tarfile.open(tmp_path / "more" / shard.name) as tar:
        files = [tar.extractfile(member) for member in tar.getmembers() if member.name.endswith(".png")]
        pictures = [file.read() for file in files if file is not None]
    assert pictures and all(b"trainedAlgorithmicMedia" in picture for picture in pictures)


def test_what_cannot_be_filled_up_is_said(rare: str, model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none of .* samples was accepted"):
        augmented(rare, tmp_path / "more", model, tmp_path, limits=Limits(1.0, 0.0, 0.0001), tries=1)
    with pytest.raises(ConfigError, match="nothing is missing"):
        augmented(rare, tmp_path / "more", model, tmp_path, to=12)
    (tmp_path / "there").mkdir()
    with pytest.raises(ConfigError, match="exists; choose another place"):
        augmented(rare, tmp_path / "there", model, tmp_path)
    assert not (tmp_path / "more").exists()
