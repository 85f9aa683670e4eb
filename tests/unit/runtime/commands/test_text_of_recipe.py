"""A recipe's text encoder computed beforehand: the real loop finds the same losses; other states are
refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from text_folders import save_text_model

from sfumato import recipe as recipes
from sfumato.data.columns import spec_of
from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest, verify
from sfumato.data.packing.pack import pack
from sfumato.data.packing.placing import place_set
from sfumato.data.packing.precompute import encode_shard, finish
from sfumato.data.packing.sources.listing import ListingSource
from sfumato.data.reading import local_reader
from sfumato.data.reading.captions import CaptionSettings
from sfumato.data.reading.column_values import texts_of
from sfumato.data.verification import check
from sfumato.errors import ConfigError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.recipe import Recipe
from sfumato.runtime.commands.precompute_jobs import jobs_of
from sfumato.runtime.runs import from_data, pretrained
from sfumato.training.loop import Trainer, install

RECIPE = """
name: t
data: {{path: {data}, text: true, streams: 2, shuffle_window: 8}}
model:
  family: diffusion
  text: {{dropout: 0.3, {more}encoders: [{encoders}]}}
  network: {{kind: unet_text, channels: [8, 16], head_dim: 8, norm_groups: 4, layers_per_block: 1}}
train: {{images: 48, batch: 8, log_every: 8, preview_samples: 0}}
"""
T5 = "{{kind: folder, tokens: 7, layer: -2, weights: {{folder: {folder}/t5}}}}"


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures with none to three captions each, of which the last is the likeliest."""
    folder = tmp_path_factory.mktemp("several")
    lines = []
    for number in range(9):
        Image.new("L", (8, 8), 20 * number).save(folder / f"{number}.png")
        texts = ["a b c c b"[: 2 * n + 1] for n in range(number % 4)]
        lines.append({"image": f"{number}.png", "texts": texts, "how": [n + 1 for n in range(len(texts))]})
    (folder / "all.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    column = {"kind": "text", "field": "texts", "weights": "how"}
    pack(
        ListingSource(path=str(folder / "all.jsonl"), columns={"text": column}), folder / "data", shard_size=5
    )
    save_text_model(folder / "t5", "t5")
    save_text_model(folder / "clip", "clip")
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures, every fourth without a caption."""
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "in").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 20 * number).save(folder / "in" / f"{number:02d}.png")
        if number % 4:
            (folder / "in" / f"{number:02d}.txt").write_text("a b c c b"[: 2 * (number % 4) + 1])
    pack(str(folder / "in"), folder / "data", shard_size=5)
    save_text_model(folder / "t5", "t5")
    return folder


def written(folder: Path, data: Path, place: Path, encoders: str = T5, more: str = "") -> str:
    file = place / f"{data.name}.yaml"
    file.write_text(RECIPE.format(data=data, encoders=encoders.format(folder=folder), more=more))
    return str(file)


def begun(file: str) -> tuple[Recipe, Manifest, list[str]]:
    recipe = pretrained.resolved(recipes.load(file), Path("/"))
    manifest, notes = Manifest.load(recipe.data.path), []
    return from_data.learnt(recipe, manifest, notes.append), manifest, notes


def computed(file: str, data: Path, dest: Path, **options: Any) -> Path:
    """A copy of the data with the states, as actors compute them."""
    place, before = dest / "data", Manifest.load(data)
    place_set(str(data), before, str(place))
    for job in jobs_of(file, str(data), str(place), "text", dest, **options):
        encoder = job.encoder("cpu")
        files = [
            encode_shard(job.folder, before, n, encoder, job.addition) for n in range(len(before.shards))
        ]
        finish(before, files, job.addition)
    verify(str(place), "checksum")
    assert not check(str(place))[1]
    return place


def losses(file: str) -> list[float]:
    recipe, manifest, _ = begun(file)
    recipe.check(spec_of(recipe.data, manifest), manifest.samples)
    family, strategy = recipe.model.build(spec_of(recipe.data, manifest)), Single(Placement())
    reading = {"seed": 3, "batch": recipe.train.batch, "micro_batch": None}
    install(family, strategy, seed=3, first=lambda: None)
    found: list[float] = []
    trainer = Trainer(
        family,
        strategy,
        recipe.train,
        seed=3,
        streams=recipe.data.streams,
        report=lambda progress, metrics: found.append(metrics["train/denoise/loss"]),
    )
    trainer.run(local_reader.read(recipe.data, manifest, **reading))
    return found


def test_training_finds_the_same_losses(captioned: Path, tmp_path: Path) -> None:
    live = losses(written(captioned, captioned / "data", tmp_path))
    place = computed(written(captioned, captioned / "data", tmp_path), captioned / "data", tmp_path)
    columns = Manifest.load(place).columns
    assert {"text_encoder_states", "text_encoder_mask", "text_encoder_pooled"} == columns.keys()
    (tmp_path / "with").mkdir()
    stored = losses(written(captioned, place, tmp_path / "with"))
    assert len(live) == 6
    torch.testing.assert_close(torch.tensor(stored), torch.tensor(live), rtol=1e-5, atol=1e-6)


CLIP = "{{kind: folder, tokens: 7, uses: pooled, weights: {{folder: {folder}/clip}}}}"


def test_several_captions_are_drawn_as_without_and_need_no_padding(several: Path, tmp_path: Path) -> None:
    """Of two encoders, one without padding; a prefix stands before every caption but the empty one."""
    encoders, more = f"{T5.replace('layer: -2', 'layer: -2, padding: zero')}, {CLIP}", "prefix: 'b ', "
    live = losses(written(several, several / "data", tmp_path, encoders, more))
    file = written(several, several / "data", tmp_path, encoders, more)
    place = computed(file, several / "data", tmp_path)
    columns = Manifest.load(place).columns
    states = columns["text_encoder_states"]
    assert states.stored == "several"
    assert states.texts == "text"
    texts = list(texts_of(str(place), Manifest.load(place), "text"))
    encoder = begun(file)[0].model.text.encoders[0]  # type: ignore[attr-defined]
    tokens = sum(min(n, 7) for n in encoder.lengths([text and f"b {text}" for text in texts]))
    floats = sum(part.bytes for part in states.files.values()) - 8 * (9 + len(texts) + 2 * 4)
    assert floats == tokens * 4 * states.shape[1], "as many as the captions have tokens"
    (tmp_path / "with").mkdir()
    stored = losses(written(several, place, tmp_path / "with", encoders, more))
    torch.testing.assert_close(torch.tensor(stored), torch.tensor(live), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="is of another text encoder"):
        begun(written(several, place, tmp_path / "with", encoders, "prefix: 'c ', "))


def test_tags_of_encoded_captions_are_not_shuffled(several: Path, tmp_path: Path) -> None:
    place = computed(written(several, several / "data", tmp_path), several / "data", tmp_path)
    settings = DataSettings(path=str(place), captions=CaptionSettings(shuffle_tags=True))
    with pytest.raises(ConfigError, match="text_encoder_states was computed from captions"):
        spec_of(settings, Manifest.load(place))


def test_states_of_another_layer_are_refused(captioned: Path, tmp_path: Path) -> None:
    place = computed(written(captioned, captioned / "data", tmp_path), captioned / "data", tmp_path)
    (tmp_path / "with").mkdir()
    other = written(captioned, place, tmp_path / "with", T5.replace("layer: -2", "layer: -1"))
    with pytest.raises(ConfigError, match="is of another text encoder"):
        begun(other)


def test_a_run_begins_with_a_vocabulary_and_says_what_is_cut(captioned: Path, tmp_path: Path) -> None:
    joint = "{{kind: joint, tokens: 4, width: 8, depth: 1, heads: 2, vocabulary: 262}}"
    file = written(captioned, captioned / "data", tmp_path, joint)
    recipe, _, notes = begun(file)
    assert recipe.model.text.encoders[0].digest  # type: ignore[attr-defined]
    assert recipe.digest() == begun(file)[0].digest()
    assert recipes.parse(recipe.model_dump(mode="json")) == recipe, "it is recorded whole"
    assert notes[0].startswith("3 of 12 captions are empty")
    assert "longer than the 4 tokens" in notes[1]


@pytest.mark.parametrize(
    ("encoders", "options", "message"),
    [
        (f"{T5}, {T5}", {"name": "text_encoder_3"}, "no text encoder 'text_encoder_3'"),
        ("{{kind: joint}}", {}, "no frozen text encoder"),
        (T5, {"tokens": 3}, "--tokens: the recipe says how many"),
    ],
)
def test_what_cannot_be_computed(
    encoders: str, options: dict[str, Any], message: str, captioned: Path, tmp_path: Path
) -> None:
    file = written(captioned, captioned / "data", tmp_path, encoders)
    with pytest.raises(ConfigError, match=message):
        jobs_of(file, str(captioned / "data"), str(tmp_path / "out"), "text", tmp_path, **options)
