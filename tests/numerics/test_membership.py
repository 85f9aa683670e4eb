"""Membership inference: LiRA against the paper's loops, and an attack on a run that was really trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from tiny_evaluation import untrained
from tiny_recipe import tiny_recipe

from sfumato import recipe as recipes
from sfumato.data.format.index import load
from sfumato.data.format.manifest import Manifest
from sfumato.data.packing.subset import subset
from sfumato.errors import DataError
from sfumato.evaluation.audits.membership import likelihood_ratio
from sfumato.evaluation.intervals.roc import area
from sfumato.evaluation.subjects.images import open_images
from sfumato.families.flow import Config
from sfumato.runtime.runs.run_folder import RunFolder

Command = Callable[..., tuple[int, str, str]]


def test_the_ratio_is_that_of_two_normals_with_pooled_variances() -> None:
    rng = np.random.default_rng(0)
    inside = rng.random((6, 40)) < 0.5
    inside[:, 0], inside[:, 1] = True, False
    shadows = rng.normal(size=(6, 40)) + inside
    score = rng.normal(size=40)
    found, usable = likelihood_ratio(score, shadows, inside)
    squares = {True: [0.0, 0], False: [0.0, 0]}
    for n in range(40):
        for side in (True, False):
            mine = shadows[inside[:, n] == side, n]
            if len(mine):
                squares[side][0] += ((mine - mine.mean()) ** 2).sum()
                squares[side][1] += len(mine) - 1
    deviation = {side: np.sqrt(total / freedom) for side, (total, freedom) in squares.items()}
    for n in range(40):
        both = [shadows[inside[:, n] == side, n] for side in (True, False)]
        assert usable[n] == all(map(len, both))
        if usable[n]:
            logs = [
                norm.logpdf(score[n], mine.mean(), deviation[side])
                for mine, side in zip(both, (True, False), strict=True)
            ]
            assert found[n] == pytest.approx(logs[0] - logs[1])
    assert not usable[0] and not usable[1]
    with pytest.raises(ValueError, match="two shadow models"):
        likelihood_ratio(score, shadows[:1], inside[:1])


def test_the_ratio_sees_what_the_threshold_does_not() -> None:
    """Images differ in how likely they are by far more than by having been trained on."""
    rng = np.random.default_rng(1)
    easy = rng.normal(0, 10, 600)
    inside = rng.random((9, 600)) < 0.5
    scores = easy + 1.0 * inside + rng.normal(0, 0.5, (9, 600))
    ratio, usable = likelihood_ratio(scores[0], scores[1:], inside[1:])
    member = inside[0]
    threshold = area(scores[0][member], scores[0][~member])
    attack = area(ratio[usable & member], ratio[usable & ~member])
    assert threshold.value < 0.6 and attack.value > 0.85


def _places(folder: Path, manifest: Manifest) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Where each sample's image is in its tar, and its label."""
    for part in load(folder, manifest):
        yield from zip(
            part.keys.to_pylist(),
            zip(part.offsets.tolist(), part.sizes.tolist(), part.labels.tolist(), strict=True),
            strict=True,
        )


def test_a_subset_is_a_part_of_the_same_samples(digits_data: Path, tmp_path: Path) -> None:
    whole = Manifest.load(digits_data)
    made = [subset(str(digits_data), tmp_path / str(seed), share=0.5, seed=seed) for seed in (0, 1)]
    keys = [
        {key for part in load(tmp_path / str(seed), made[seed]) for key in part.keys.to_pylist()}
        for seed in (0, 1)
    ]
    assert all(800 < len(part) < 1_000 and len(part) == made[n].samples for n, part in enumerate(keys))
    assert 350 < len(keys[0] & keys[1]) < 550
    assert len({whole.digest, made[0].digest, made[1].digest}) == 3
    content = {**made[0].model_dump(), "left_out": made[1].left_out}
    same_size = Manifest.model_validate(content)
    assert same_size.digest != made[0].digest, "as many others are another set"
    places = dict(_places(digits_data, whole))
    assert all(places[key] == place for key, place in _places(tmp_path / "0", made[0]))
    assert sum(len(block) for block, _ in open_images(str(tmp_path / "0")).blocks()) == made[0].samples
    with pytest.raises(DataError, match="exists"):
        subset(str(digits_data), tmp_path / "0", share=0.5, seed=0)


def test_the_command_attacks_a_run(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sfumato_here: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = subset(str(digits_data), tmp_path / "part", share=0.05, seed=0)
    recipe = recipes.parse(tiny_recipe(tmp_path / "part", train={"images": 1_280}))
    run = RunFolder(tmp_path / "runs" / "tiny")
    run.create(recipe, manifest.digest)
    untrained(run.model, Config.tiny(), manifest.spec)
    noise = np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)
    np.savez("noise.npz", images=noise, labels=np.arange(30) % 10)
    call = ("membership", str(run.path), "part")
    status, out, error = sfumato_here(*call, "noise.npz", "--out", "out", "--json")
    assert status == 0, error
    report = json.loads(out)
    assert report["members"] == manifest.samples and report["images"] == manifest.samples + 30
    found = report["attacks"]["loss threshold"]
    assert 0 <= found["area"]["low"] <= found["area"]["auroc"] <= found["area"]["high"] <= 1
    assert not found["rates"][0]["enough"]
    assert (tmp_path / "out" / "roc.png").is_file() and (tmp_path / "out" / "membership.json").is_file()
    status, _, error = sfumato_here(*call)
    assert status == 2 and "all of these images were trained on" in error
