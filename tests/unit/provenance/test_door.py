"""The door: what leaves is marked, nothing leaves otherwise, and marks change nothing else."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from repository import ROOT

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import seeded
from sfumato.errors import CheckpointError, ConfigError
from sfumato.evaluation.pictures import PREVIEW, write_preview
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.provenance.config import ProvenanceSettings
from sfumato.provenance.door import Door
from sfumato.provenance.facts import Facts, Maker
from sfumato.provenance.formats import SUFFIXES, Format, encoded
from sfumato.provenance.metadata import TRAINED, read_xmp
from sfumato.provenance.stored import FILE, Provenance
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.sampling.output import write_samples

PACKAGE = ROOT / "platform" / "sfumato"
DATA = DataSpec(3, 8, 8, ("zero", "one"))
METADATA = Provenance(ProvenanceSettings(metadata=True), "recipe")

ELSEWHERE = {
    "provenance/formats.py": "the door's own",
    "data/format/images.py": "images of data sets",
    "data/packing/resizing.py": "images of data sets",
    "runtime/commands/data_sets.py": "the contact sheet of a data set",
    "tuning/plots.py": "curves",
    "evaluation/compare/figures.py": "curves",
    "runtime/commands/membership.py": "curves",
    "tracking/delivery.py": "hands MLflow stored files, which `as_it_is` copies",
}
"""Modules that write pictures by other means, none of them generated."""
STATE = {
    "data/packing/captioning.py",
    "data/packing/index_existing.py",
    "data/packing/precompute.py",
    "data/packing/remote_staging.py",
    "data/packing/shard_writer.py",
    "data/packing/staging.py",
    "data/packing/subset.py",
    "evaluation/blocks/making.py",
    "evaluation/references/features.py",
    "evaluation/store.py",
    "runtime/commands/detector.py",
    "runtime/sweep/sweep.py",
    "runtime/training/checkpoints.py",
    "runtime/training/ema_snapshots.py",
    "training/dcp.py",
}
"""Modules whose `save` writes manifests, indexes, blocks of features, weights or plans."""
WRITERS = {
    "save",
    "savefig",
    "imsave",
    "imwrite",
    "write_png",
    "write_jpeg",
    "save_image",
    "log_image",
    "toimage",
}


def test_no_other_module_writes_pictures() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if not any(f"{name}(" in text for name in WRITERS):
            continue
        for node in ast.walk(ast.parse(text)):
            named = node.func if isinstance(node, ast.Call) else None
            name = getattr(named, "attr", getattr(named, "id", ""))
            if name in WRITERS:
                found.add(path.relative_to(PACKAGE).as_posix())
    known = ELSEWHERE.keys() | STATE
    assert found - known == set(), "pictures leave by provenance/door.py; say here why another module saves"
    assert known - found == set(), "these no longer save anything"


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_metadata_in_every_format(kind: Format, tmp_path: Path) -> None:
    door = Door(ProvenanceSettings(metadata=True, prompt=True), Maker("cats", "a1", "b2"))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8))
    path = tmp_path / f"x{SUFFIXES[kind]}"
    assert door.write(path, image, Facts({"text": "a cat"}, seed=3, index=7), kind) == {"metadata": True}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    (said,) = _properties(path)
    assert said["DigitalSourceType"] == TRAINED
    assert (said["AISystemUsed"], said["AISystemVersionUsed"]) == ("Sfumato cats", "a1")
    assert (said["RecipeDigest"], said["Seed"], said["Index"]) == ("b2", "3", "7")
    assert said["AIPromptInformation"] == "a cat"
    with Image.open(path) as marked:
        assert np.array_equal(np.asarray(marked), _pixels(encoded(image, kind), tmp_path))


def test_prompts_stay_out_unless_allowed(tmp_path: Path) -> None:
    Door(METADATA.settings).write(tmp_path / "x.png", _picture(), Facts({"text": "private"}))
    assert b"private" not in (tmp_path / "x.png").read_bytes()


@pytest.mark.parametrize(
    "prompt",
    [
        "</Iptc4xmpExt:AIPromptInformation><Iptc4xmpExt:DigitalSourceType>digitalCapture",
        ']]><!ENTITY x SYSTEM "file:///etc/passwd">&x;',
        '<?xpacket end="w"?>',
        'x" rdf:about="y',
        "a\0b\x1b[31m\ud800\uffff",
        "long " * 20_000,
        "猫 🐈 \u202egnp.exe",
    ],
)
@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_a_prompt_cannot_leave_its_element(prompt: str, kind: Format, tmp_path: Path) -> None:
    door = Door(ProvenanceSettings(metadata=True, prompt=True), Maker("<m>", "&", '"'))
    path = tmp_path / "x"
    door.write(path, _picture(), Facts({"text": prompt}), kind)
    (said,) = _properties(path)
    assert set(said) == {
        "CreatorTool",
        "DigitalSourceType",
        "AISystemUsed",
        "AISystemVersionUsed",
        "AIPromptInformation",
        "RecipeDigest",
    }
    assert said["DigitalSourceType"] == TRAINED
    kept = "".join(letter for letter in prompt if letter not in "\0\x1b\uffff")
    allowed = kept.replace("\ud800", "\ufffd")[:4096]
    assert said["AIPromptInformation"] == allowed
    assert said["AISystemUsed"] == "Sfumato <m>"
    assert read_xmp(path) == said


@pytest.mark.parametrize(
    "xmp",
    [
        b"",
        b"<",
        b"\xff\xfe",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>',
        b"<a/>",
    ],
)
def test_foreign_metadata_is_read_as_none(xmp: bytes, tmp_path: Path) -> None:
    _picture().save(tmp_path / "x.jpg", xmp=xmp)
    assert read_xmp(tmp_path / "x.jpg") == {}


def test_an_edit_says_so(tmp_path: Path) -> None:
    Door(METADATA.settings).write(tmp_path / "x.png", _picture(), Facts(sources=(tmp_path / "photo.jpg",)))
    (said,) = _properties(tmp_path / "x.png")
    assert said["DigitalSourceType"].endswith("/compositeWithTrainedAlgorithmicMedia")


def test_samples_leave_marked_and_their_lines_say_so(tmp_path: Path) -> None:
    plain, marked = _generator(), _generator(METADATA)
    options = {"steps": 2}
    bare = write_samples(tmp_path / "bare", plain, 3, options=options)
    out = write_samples(tmp_path / "out", marked, 3, options=options)
    again = write_samples(tmp_path / "again", marked, 3, options=options, batch_size=1)
    for path in out.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    for path in out.glob("*.png"):
        (said,) = _properties(path)
        assert said["RecipeDigest"] == "recipe"
        assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(bare / path.name)))
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line.pop("provenance") for line in lines] == [{"metadata": True}] * 3
    assert lines == [json.loads(line) for line in (bare / "samples.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", list(SUFFIXES))
def test_samples_in_other_formats(kind: Format, tmp_path: Path) -> None:
    out = write_samples(tmp_path / "out", _generator(METADATA), 2, options={"steps": 1}, kind=kind)
    suffix = SUFFIXES[kind]
    names = {f"000000{suffix}", f"000001{suffix}", "grid.png", "samples.jsonl"}
    assert {path.name for path in out.iterdir()} == names
    write_samples(out, _generator(), 2, options={"steps": 1}, overwrite=True)
    with Image.open(out / "000000.png") as image:
        assert image.size == (8, 8)


def test_saved_arrays_leave_by_the_door(tmp_path: Path) -> None:
    generator = _generator(METADATA)
    files = generator.save(generator.sample(2, options={"steps": 1}), tmp_path / "out", kind="webp")
    assert [file.name for file in files] == ["000000.webp", "000001.webp"]
    assert all(_properties(file)[0]["AISystemUsed"] == "Sfumato tiny" for file in files)
    with pytest.raises(ConfigError, match=r"000000\.webp exists; choose another folder"):
        generator.save(np.zeros((1, 8, 8, 3), np.uint8), tmp_path / "out", kind="webp")


def test_grids_of_evaluations_leave_by_the_door(tmp_path: Path) -> None:
    class Store:
        def images(self, tasks: object, num: int) -> Iterator[NDArray[np.uint8]]:
            yield np.full((num, 8, 8, 3), 200, np.uint8)

    door = Door(METADATA.settings, Maker("cats"))
    assert write_preview(Store(), [], 4, tmp_path, door) == PREVIEW  # type: ignore[arg-type]
    (said,) = _properties(tmp_path / PREVIEW)
    assert (said["DigitalSourceType"], said["AISystemUsed"]) == (TRAINED, "Sfumato cats")


def test_marks_travel_with_the_model_but_are_no_part_of_its_digest(tmp_path: Path) -> None:
    generator = _generator()
    weights = {name: net.state_dict() for name, net in generator.nets.items()}
    config, progress = generator.config, Progress.at(1)
    saved = [
        save_model_folder(tmp_path / name, config, DATA, weights, name="m", progress=progress, provenance=how)
        for name, how in (("bare", None), ("off", Provenance()), ("on", METADATA))
    ]
    assert len(set(saved)) == 1
    assert [(tmp_path / name / FILE).exists() for name in ("bare", "off", "on")] == [False, False, True]
    assert Generator.load(tmp_path / "on").provenance == METADATA
    assert not Generator.load(tmp_path / "off").provenance.on
    for content, wrong in (("{", "is damaged"), ('{"settings": {"stamp": 1}}', "cannot set: stamp")):
        (tmp_path / "on" / FILE).write_text(content)
        with pytest.raises(CheckpointError, match=wrong):
            Generator.load(tmp_path / "on")


def test_a_requirement_refuses_before_anything_is_drawn(tmp_path: Path) -> None:
    required = ProvenanceSettings(metadata=True, require=("metadata",))
    with pytest.raises(ConfigError, match="metadata is part of a file, which pixels are not"):
        Door(required).check(8, 8, files=False)
    Door(required).check(8, 8)
    with pytest.raises(ConfigError, match="metadata is required but off"):
        Door(ProvenanceSettings(require=("metadata",))).check(8, 8)
    with pytest.raises(ConfigError, match="JPEG has no transparency"):
        encoded(Image.new("RGBA", (4, 4)), "jpeg")


def test_the_block_changes_no_run_and_contradictions_are_found(tmp_path: Path) -> None:
    file = ROOT / "pipelines" / "digits" / "ddpm.yaml"
    plain = recipes.load(file)
    marked = recipes.load(file, ["provenance.metadata=true"])
    assert plain.digest() == marked.digest()
    assert marked.marking().on and not plain.marking().on
    wrong = recipes.load(file, ["provenance.require=[metadata]"])
    assert any("provenance.require: metadata is required but off" in line for line in wrong.problems())
    with pytest.raises(ConfigError, match=r"provenance\.metadta"):
        recipes.load(file, ["provenance.metadta=true"])


def _generator(provenance: Provenance | None = None) -> Generator:
    config = DiffusionConfig.tiny()
    with seeded(0):
        net = config.build(DATA).nets["network"].build()
    return Generator(
        config, DATA, {"ema": net}, name="tiny", progress=Progress.at(1), digest="abc", provenance=provenance
    )


def _picture() -> Image.Image:
    return Image.new("RGB", (8, 8), "red")


def _pixels(content: bytes, folder: Path) -> np.ndarray:
    (folder / "plain").write_bytes(content)
    with Image.open(folder / "plain") as image:
        return np.asarray(image)


def _properties(path: Path) -> list[dict[str, str]]:
    """What an XML parser finds in a file's XMP: the properties of each description, by local name."""
    with Image.open(path) as image:
        found = image.info["xmp"]
    described = ET.fromstring(found).findall(".//{*}Description")  # noqa: S314 - our own
    assert all(list(one.attrib.values()) == [""] for one in described)
    return [{each.tag.partition("}")[2]: each.text or "" for each in one} for one in described]
