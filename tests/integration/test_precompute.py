"""Encoding a data set beforehand: what is written, that it may be interrupted, that training is the same."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato import families, recipe
from sfumato.core.batch import to_device
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.data.columns import spec_of
from sfumato.data.config import DataSettings
from sfumato.data.format.index import load
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.pack import pack
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import Addition, encode_shard, finish
from sfumato.data.packing.sources.digits import DigitsSource
from sfumato.data.reading import local_reader
from sfumato.data.storage.write import entries
from sfumato.errors import ConfigError, DataError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.recipe import Recipe
from sfumato.runtime.commands import precompute, precompute_jobs
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.first_stage import check_data
from sfumato.runtime.runs.pretrained import resolved
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Trainer, install


class Server(Protocol):
    endpoint: str
    bucket: str
    environment: dict[str, str]


pytestmark = pytest.mark.usefixtures("ray_local")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in four shards, the last of them short."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    pack(DigitsSource(), folder, shard_size=500)
    return folder


@pytest.fixture(scope="module")
def stage(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_stage(tmp_path_factory.mktemp("models") / "vq", digits)


def save_stage(folder: Path, digits: Path, member: str = "vq", seed: int = 0) -> Path:
    config, data = families.config_class("vae").variants()[member], Manifest.load(digits).spec
    with seeded(seed, "stage"):
        network = config.build(data).nets["network"].build()
    save_model_folder(
        folder, config, data, {"ema": network.state_dict()}, name="stage", progress=Progress.at(1)
    )
    return folder


def run(stage: Path | str, data: Path | str, dest: Path | str, **options: object) -> dict[str, object]:
    settings = {"kind": "auto", "actors": 2, "cpus": 0.5, "gpus": 0.0, **options}
    with Display() as display:
        return precompute.precompute(
            str(stage), str(data), str(dest), root=Path.cwd(), display=display, **settings
        )


@pytest.fixture(scope="module")
def coded(stage: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("coded") / "digits-codes"
    run(stage, digits, dest)
    return dest


def members(folder: Path, shard: str) -> dict[str, bytes]:
    with tarfile.open(folder / shard) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_set_gains_columns_and_keeps_everything_else(stage: Path, digits: Path, coded: Path) -> None:
    before, after = Manifest.load(digits), verify(coded, "checksum")
    assert (after.samples, after.classes, after.image) == (before.samples, before.classes, before.image)
    assert after.digest == before.digest
    generator = Generator.load(stage)
    assert after.encoders["codes"].digest == generator.digest
    assert after.encoders["codes"].images == before.digest
    info = after.columns["codes"]
    assert (info.dtype, info.shape, info.encoder, info.samples) == ("int64", (4, 4), "codes", before.samples)
    for shard in before.shards:
        assert (digits / shard.name).samefile(coded / shard.name)  # a link, not a copy
    # One sample by hand, with numpy's own reader.
    shard, file = before.shards[-1], coded / info.files[before.shards[-1].name].name
    found = np.fromfile(file, np.int64).reshape(shard.samples, 4, 4)
    index = load(coded, after)[-1]
    content = members(digits, shard.name)[f"{index.keys[7]}.png"]
    pixels = np.asarray(Image.open(io.BytesIO(content)), np.float32)
    with torch.no_grad():
        codes = generator.nets["ema"].codes(torch.from_numpy(pixels / 127.5 - 1)[None, None])
    assert (found[7] == codes[0].numpy()).all()


def recipe_on(stage: Path, data: Path) -> Recipe:
    return resolved(
        recipe.parse(
            {
                "name": "codes",
                "data": {"path": str(data), "streams": 4, "shuffle_window": 100},
                "model": {
                    "family": "autoregressive",
                    "network": {"kind": "transformer", "width": 8, "layers": 1, "heads": 2},
                    "first_stage": {"run": str(stage)},
                },
                "train": {
                    "images": 192,
                    "batch": 32,
                    "micro_batch": 16,
                    "log_every": 32,
                    "preview_samples": 0,
                },
                "parallel": {"strategy": "single", "workers": 1},
            }
        ),
        data.parent,
    )


def losses(job: Recipe) -> list[float]:
    manifest = Manifest.load(job.data.path)
    check_data(job, manifest)
    family, strategy = job.model.build(spec_of(job.data, manifest)), Single(Placement())
    install(family, strategy, seed=0)
    found: list[float] = []
    settings = TrainSettings.model_validate(job.train.model_dump())
    trainer = Trainer(
        family,
        strategy,
        settings,
        seed=0,
        streams=job.data.streams,
        report=lambda _, metrics: found.append(metrics["train/likelihood/loss"]),
    )
    shares = local_reader.read(
        DataSettings.model_validate(job.data.model_dump()),
        manifest,
        seed=0,
        batch=settings.batch,
        micro_batch=settings.micro_batch,
        rank=0,
        world_size=1,
        images=0,
    )
    trainer.run(shares)
    return found


def test_training_from_codes_is_training_with_the_encoder_in_the_loop(
    stage: Path, digits: Path, coded: Path
) -> None:
    from_images, from_codes = losses(recipe_on(stage, digits)), losses(recipe_on(stage, coded))
    assert len(from_images) == 6
    assert from_codes == pytest.approx(from_images, rel=1e-6)


def test_latents_are_read_as_they_were_computed(
    digits: Path, tmp_path: Path, sfumato_here: Callable[..., tuple[int, str, str]]
) -> None:
    """Made by the command, which reports on standard output and nothing else."""
    folder, dest = save_stage(tmp_path / "kl", digits, "kl"), tmp_path / "latents"
    status, out, err = sfumato_here("precompute", str(folder), str(digits), str(dest), "--json")
    assert status == 0 and out.count("\n") == 1 and json.loads(out)["folder"] == str(dest), (out, err)
    manifest = Manifest.load(tmp_path / "latents")
    data = DataSettings(path=str(tmp_path / "latents"), streams=4, shuffle_window=100)
    shares = local_reader.read(
        data, manifest, seed=1, batch=32, micro_batch=None, rank=0, world_size=1, images=64
    )
    batch = to_device(next(shares)[0].batch, torch.device("cpu"))
    with torch.no_grad():
        latent = Generator.load(folder).nets["ema"].encode(batch["image"])
    torch.testing.assert_close(batch["latent_mean"], latent.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batch["latent_std"], latent.std, rtol=1e-5, atol=1e-6)


def test_finished_shards_are_kept(stage: Path, digits: Path, coded: Path, tmp_path: Path) -> None:
    """The third shard is damaged at first: the first two are not encoded again."""
    broken = tmp_path / "digits"
    shutil.copytree(digits, broken)
    shard = Manifest.load(broken).shards[2]
    good = (broken / shard.name).read_bytes()
    index = load(broken, Manifest.load(broken))[2]
    bad = bytearray(good)
    bad[int(index.offsets[3]) : int(index.offsets[3]) + 8] = bytes(8)
    (broken / shard.name).write_bytes(bytes(bad))
    dest = tmp_path / "codes"
    with pytest.raises(DataError, match="checksum differs"):
        run(stage, broken, dest)
    job, manifest = by_hand(stage, broken, dest), Manifest.load(broken)
    encoder = job.encoder("cpu")
    for number in (0, 1):
        encode_shard(str(broken), manifest, number, encoder, job.addition)
    with pytest.raises(DataError, match=str(index.keys[3])):
        encode_shard(str(broken), manifest, 2, encoder, job.addition)
    assert not Manifest.exists(dest)
    times = {path.name: path.stat().st_mtime_ns for path in dest.glob("*.bin")}
    assert len(times) == 2
    (broken / shard.name).write_bytes(good)
    run(stage, broken, dest)
    assert not list(dest.glob("_precomputing*"))
    assert not list(dest.glob(".*.part"))
    assert {name: (dest / name).stat().st_mtime_ns for name in times} == times
    assert Manifest.load(dest).columns == Manifest.load(coded).columns


def by_hand(stage: Path, data: Path | str, dest: Path | str) -> precompute_jobs.Job:
    """What `precompute` would do, of data that `verify` need not find good."""
    config = precompute_jobs._stage(str(stage), Path.cwd())
    manifest = Manifest.load(data)
    place_set(str(data), manifest, str(dest))
    info = precompute_jobs._stage_info(config, manifest, str(stage))
    columns = precompute_jobs._stage_columns(config, "auto", "float32", str(stage))
    return precompute_jobs.Job(config, str(data), Addition(str(dest), "codes", info, columns))


def test_data_of_another_encoder_is_refused(stage: Path, digits: Path, coded: Path, tmp_path: Path) -> None:
    other = save_stage(tmp_path / "other", digits, seed=1)
    with pytest.raises(ConfigError, match=r"was encoded by .* run `sfumato precompute` with it"):
        losses(recipe_on(other, coded))


def test_what_cannot_be_is_one_line(stage: Path, digits: Path, coded: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack(DigitsSource(), other, shard_size=700)
    with pytest.raises(DataError, match="holds another data set"):
        run(stage, other, coded)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match=r"is not empty \(notes.txt\)"):
        run(stage, digits, tmp_path / "full")
    kl = save_stage(tmp_path / "kl", digits, "kl")
    with pytest.raises(ConfigError, match="has no codes; use --arrays latents"):
        run(kl, digits, tmp_path / "x", kind="codes")
    with pytest.raises(ConfigError, match="'nobody'"):
        run("nobody", digits, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_shards_are_encoded_from_and_into_object_storage(
    stage: Path, digits: Path, coded: Path, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**s3_server.environment, "AWS_ENDPOINT_URL": s3_server.endpoint}.items():
        monkeypatch.setenv(name, value)
    source, dest = (f"s3://{s3_server.bucket}/precompute/{name}" for name in ("in", "out"))
    pack(DigitsSource(), source, shard_size=500)
    job, manifest = by_hand(stage, source, dest), Manifest.load(source)
    encoder = job.encoder("cpu")
    for number in range(3):
        encode_shard(source, manifest, number, encoder, job.addition)
    # The work was interrupted: no data set yet, and the same work goes on.
    assert not Manifest.exists(dest)
    before = {file.path: file.mtime_ns for file in entries(dest) if file.path.endswith((".tar", ".bin"))}
    # The cluster's actors were started without the storage's variables; here the rest is done by hand.
    files = [encode_shard(source, manifest, n, encoder, job.addition) for n in range(4)]
    finish(manifest, files, job.addition)
    after = {file.path: file.mtime_ns for file in entries(dest) if file.path.endswith((".tar", ".bin"))}
    assert before.items() < after.items()
    assert not [file.path for file in entries(dest) if "_precomputing" in file.path]
    assert verify(dest, "checksum").columns == Manifest.load(coded).columns
    data = DataSettings(path=dest, streams=4, shuffle_window=100)
    there = next(local_reader.read(data, Manifest.load(dest), seed=1, batch=32, images=64))[0].batch
    data = data.model_copy(update={"path": str(coded)})
    here = next(local_reader.read(data, Manifest.load(coded), seed=1, batch=32, images=64))[0].batch
    assert all(torch.equal(there[name], here[name]) for name in ("image", "codes"))
