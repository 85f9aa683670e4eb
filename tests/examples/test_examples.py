"""What each example is there for, beside what all have to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import train_rank
from adapter import PATTERNS
from captions import CaptionsConfig
from distilled import DistilledConfig
from example_cases import TRAIN, Prepared
from example_sets import camera_at, edges, view_of
from growth import GrowthConfig
from safetensors.torch import load_file
from torch import Tensor

import sfumato
from sfumato.core.batch import DataSpec, Piece, Texts
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.core.stored import matches
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading import local_reader
from sfumato.errors import CheckpointError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.pixels import to_uint8
from sfumato.training import checkpoint as checkpoints
from sfumato.training.loop import install
from sfumato.training.store import LocalStore

Alone = Callable[[str], Path]
Reference = Callable[[str], dict[str, Tensor]]


def batches(prepared: Prepared, count: int, **settings: object) -> list[dict[str, Tensor]]:
    """The first global batches that training on the digits sees, images uint8."""
    path = str(prepared.sets["digits"])
    data = DataSettings.model_validate({"path": path, "streams": 8, "shuffle_window": 100, **settings})
    shares = local_reader.read(data, Manifest.load(path), seed=3, batch=64)
    return [dict(share[0].batch) for _, share in zip(range(count), shares, strict=False)]


def test_a_flip_moves_an_image_and_its_control_alike(prepared: Prepared) -> None:
    plain = batches(prepared, 3, columns=["control"])
    flipped = batches(prepared, 3, columns=["control"], transforms=[{"kind": "flip"}])
    turned = 0
    for before, after in zip(plain, flipped, strict=True):
        for row in range(64):
            image = after["image"][row, 0].numpy()
            assert np.array_equal(after["control"][row, 0].numpy(), edges(image))
            turned += not torch.equal(after["image"][row], before["image"][row])
    assert 64 < turned < 128, "about half of them"


def test_captions_are_drawn_by_their_weights_and_some_are_dropped(prepared: Prepared) -> None:
    texts = [text for batch in batches(prepared, 6, columns=["text"]) for text in batch["text"]]
    long = sum(text.startswith("the digit ") for text in texts)
    assert 0.15 < long / len(texts) < 0.35, "a quarter of the weight"
    data = DataSpec(1, 8, 8)
    pieces = [Piece(stream, 0, 8) for stream in range(8)]
    rng = StreamRng(pieces, rows_per_stream=8, seed=0, images=0, phase="paint")
    batch = {"image": torch.zeros(64, 1, 8, 8), "text": Texts(["one"] * 64)}
    ready = CaptionsConfig(dropout=0.25).build(data).prepare({}, batch, Progress.at(0), rng)
    assert 4 <= (ready["bytes"].sum(dim=1) == 0).sum() <= 28


def test_a_negative_text_is_moved_away_from(alone: Alone) -> None:
    model = sfumato.load(alone("captions") / "model", trust=True)
    strong = {"options": {"guidance": 3.0}, "seed": 1}
    plain = model.sample(2, prompts=["one", "two"], seed=1)
    assert np.array_equal(model.sample(2, prompts=["one", "two"], negative=["two", "one"], seed=1), plain)
    guided = model.sample(2, prompts=["one", "two"], **strong)
    assert np.array_equal(model.sample(2, prompts=["one", "two"], negative="", **strong), guided)
    away = model.sample(2, prompts=["one", "two"], negative=["two", "one"], **strong)
    assert not np.array_equal(away, guided)
    same = model.sample(2, prompts=["one", "two"], negative=["one", "two"], **strong)
    assert np.array_equal(same, plain), "nothing to move away from"


def test_an_adapter_alone_is_trained_checkpointed_and_exported(
    prepared: Prepared, alone: Alone, tmp_path: Path
) -> None:
    stored = str(tmp_path / "checkpoints")
    train_rank.train(
        prepared.case("adapter", checkpoints=stored, stop_at=64, out=str(tmp_path / "out.safetensors"))
    )
    store = LocalStore(Path(stored))
    names = [
        name
        for name in checkpoints.load(store, checkpoints.complete(store)[0], tmp_path)
        if name.startswith(("nets/", "optim/"))
    ]
    assert names and all(".lora_" in name for name in names)
    assert {name.split("/")[1] for name in names} == {"network", "ema"}
    exported = load_file(alone("adapter") / "model" / "ema.safetensors")
    assert all(matches(name, PATTERNS) for name in exported)
    moved = [value.abs().max() > 1e-4 for name, value in exported.items() if name.endswith("lora_up")]
    assert moved and any(moved)


def test_a_running_mean_is_that_of_the_images_seen(prepared: Prepared, reference: Reference) -> None:
    """By hand over the global batches in their order."""
    mean = torch.zeros(64, dtype=torch.float64)
    for batch in batches(prepared, 10):
        image = batch["image"].float() / 127.5 - 1
        mean = 0.75 * mean + 0.25 * image.flatten(1).double().mean(0)
    found = reference("running_mean")
    torch.testing.assert_close(found["state/mean"], mean, rtol=1e-12, atol=1e-12)
    assert found["state/steps"] == 10


def test_phases_begin_late_and_end_early(prepared: Prepared, reference: Reference, tmp_path: Path) -> None:
    """A step reads 128 images: two batches for `refine`."""

    def trained(**model: int) -> dict[str, Tensor]:
        case = prepared.case("late_phase", out=str(tmp_path / "out.safetensors"))
        train_rank.train({**case, "model": {**case["model"], **model}})
        return load_file(tmp_path / "out.safetensors")

    never, whole = trained(refine_from=641, draft_until=641), reference("late_phase")
    built = never["refine/weight"]
    assert not torch.equal(whole["refine/weight"], built), "it has begun"
    assert not torch.equal(whole["draft/weight"], never["draft/weight"]), "it has ended"
    assert torch.equal(trained(refine_from=600, draft_until=641)["refine/weight"], built), "no step begins"
    assert torch.equal(trained(refine_from=448)["draft/weight"], whole["draft/weight"]), "of its own alone"


def test_a_grown_network_samples_as_far_as_it_had_grown(alone: Alone, tmp_path: Path) -> None:
    data, config = DataSpec(1, 8, 8), GrowthConfig()
    network = config.build(data).nets["network"].build()
    weights = load_file(alone("growth") / "model" / "ema.safetensors")
    network.load_state_dict(weights)
    for images, alpha in ((0, 0.0), (128, 0.0), (320, 0.5), (640, 1.0)):
        folder = tmp_path / str(images)
        save_model_folder(folder, config, data, {"ema": weights}, name="m", progress=Progress.at(images))
        model = sfumato.load(folder, trust=True)
        noise = SampleRng(3, range(model.block)).normal(1, 8, 8)
        expected = network(noise, alpha).clamp(-1, 1).detach()
        drawn = model.sample(4, seed=3)
        assert (drawn == to_uint8(expected)[:4]).all()
        halves = drawn.reshape(4, 4, 2, 4, 2)
        assert (halves == halves[:, :, :1, :, :1]).all() == (alpha == 0), "in blocks of two by two"


def test_rays_render_what_a_camera_sees_that_was_in_no_view(prepared: Prepared, tmp_path: Path) -> None:
    case = prepared.case("rays", out=str(tmp_path / "out.safetensors"), model_folder=str(tmp_path / "model"))
    train_rank.train({**case, "train": {**TRAIN, "images": 6_400, "micro_batch": 64, "clip_grad_norm": None}})
    model = sfumato.load(tmp_path / "model", trust=True)
    cameras = [camera_at(around, 0.2) for around in (0.1, 1.7, 3.3, 4.9)]
    views = np.stack([view_of(camera) for camera in cameras]).astype(float)
    seen = model.sample(4, conditions={"camera": np.stack(cameras).astype(np.float32)}).astype(float)
    error = [[np.abs(one - view).mean() for view in views] for one in seen]
    assert np.argmin(error, axis=1).tolist() == [0, 1, 2, 3], error


def test_a_teacher_is_frozen_in_bfloat16(prepared: Prepared) -> None:
    strategy = Single(Placement())
    config = DistilledConfig.model_validate(prepared.case("distilled")["model"])
    install(config.build(DataSpec(1, 8, 8)), strategy, seed=0)
    teacher = strategy.view("student")["teacher"]
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_a_student_samples_without_its_teacher(
    prepared: Prepared, alone: Alone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = alone("distilled") / "model"
    assert {path.name for path in model.glob("*.safetensors")} == {"ema.safetensors"}
    wanted = sfumato.load(model, trust=True).sample(2)
    place = Path(prepared.pretrained["distilled"]["teacher"]["run"])
    shutil.move(place, tmp_path / "gone")
    try:
        assert np.array_equal(sfumato.load(model, trust=True).sample(2), wanted)
        with pytest.raises(CheckpointError, match=str(place)):
            train_rank.train(prepared.case("distilled", out=str(tmp_path / "out.safetensors")))
    finally:
        shutil.move(tmp_path / "gone", place)
