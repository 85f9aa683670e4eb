"""What users give as conditions: values in Python, files, prompts, rows of a packed data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.core.batch import DataSpec, Tags
from sfumato.core.conditions import LABEL, Condition, conditions_of
from sfumato.data.packing.pack import pack
from sfumato.data.reading.condition_rows import rows_of_data
from sfumato.data.reading.local_reader import read_all
from sfumato.errors import ConfigError, DataError
from sfumato.sampling.condition_columns import column_rows
from sfumato.sampling.condition_files import ImageFiles, read_prompts
from sfumato.sampling.conditions import Asked, Takes

DATA = DataSpec(3, 6, 5, ("cat", "dog"))
TEXT = Condition("caption", "text", "text", negative=True)
IMAGE = Condition("picture", "image", "image", (3, 6, 5))
POSE = Condition("pose", "pose", "vector", (2,))
CAMERA = Condition("camera", "camera", "camera", (2, 2))
WORDS = Condition("words", "words", "tags")
TAKES = Takes((LABEL, TEXT, IMAGE, POSE, CAMERA, WORDS), DATA, "mine")


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def given(source: Any, *rows: int) -> Any:
    return conditions_of(source, rows, TAKES.conditions, DATA)


def test_values_in_python() -> None:
    source = TAKES.source(
        labels=[1, 0, 1],
        prompts=["a", "b"],
        negative="no",
        conditions={"pose": [[1, 2], [3, 4]], "words": ["red, big", "blue"], "camera": np.eye(2)},
    )
    found = given(source, 0, 1, 2)
    assert found["label"].tolist() == [1, 0, 1]
    assert (found["caption"], found["negative_caption"]) == (["a", "b", "a"], ["no"] * 3)
    assert found["pose"].tolist() == [[1, 2], [3, 4], [1, 2]] and found["pose"].dtype == torch.float32
    assert found["words"] == Tags([["red", "big"], ["blue"], ["red", "big"]])
    assert torch.equal(found["camera"], torch.eye(2).expand(3, 2, 2))


def test_images_from_arrays_tensors_files_and_folders_are_the_same(tmp_path: Path) -> None:
    batch = np.stack([pixels(0), pixels(1)])
    for number in (1, 0):
        Image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    wanted = torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 127.5 - 1
    files = [tmp_path / "0.png", tmp_path / "1.png"]
    for value in (batch, wanted, files, [file.read_bytes() for file in files], str(tmp_path)):
        found = given(TAKES.source(conditions={"picture": value}), 0, 1, 2)["picture"]
        assert torch.equal(found, wanted[[0, 1, 0]])


def test_a_file_of_prompts(tmp_path: Path) -> None:
    plain = tmp_path / "prompts.txt"
    plain.write_text("a red boat\n\n  a blue one \n", encoding="utf-8")
    assert read_prompts(plain) == {"prompt": ["a red boat", "a blue one"]}
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "a", "label": "dog"}\n{"prompt": "b", "negative": "c", "label": 0}\n')
    found = given(Asked(prompt_file=lines).source(TAKES), 0, 1, 2)
    assert found["caption"] == ["a", "b", "a"]
    assert found["negative_caption"] == ["", "c", ""]
    assert found["label"].tolist() == [1, 0, 1]
    assert Asked(prompt_file=lines).images() == 2


def test_no_prompt_of_a_file_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red boat\na blue one\n")
    asked = Asked(prompt_file=file)
    assert (asked.images(), asked.images(2), asked.images(5)) == (2, 2, 5)
    with pytest.raises(ConfigError, match=r"--num: got 1, but .* has 2 prompts; give at least 2"):
        asked.images(1)
    assert (Asked().images(), Asked().images(3)) == (None, 3)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no prompt"),
        ('{"prompt": "a"\n', "line 1 is not JSON"),
        ('{"prompt": "a"}\n[1]\n', "line 2: wanted an object such as"),
        ('{"negative": "a"}\n', "line 1: wanted an object such as"),
        ('{"prompt": 3}\n', "line 1, field 'prompt': wanted"),
        ('{"prompt": "a", "size": 3}\n', "line 1, field 'size': wanted"),
        ('{"prompt": "a", "label": 1}\n{"prompt": "b"}\n', "line 2 has no label, but others have one"),
    ],
)
def test_a_bad_file_of_prompts_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        read_prompts(file)
    assert "\n" not in str(caught.value)


def test_prompts_of_other_editors_and_files(tmp_path: Path) -> None:
    """A mark at the beginning, as some editors write it, is no part of the prompt; tables are refused."""
    (tmp_path / "marked.txt").write_bytes("a red boat\r\n".encode("utf-8-sig"))
    assert read_prompts(tmp_path / "marked.txt") == {"prompt": ["a red boat"]}
    (tmp_path / "table.csv").write_text("prompt,negative\na,b\n")
    with pytest.raises(ConfigError, match=r"\.csv is not read; write a prompt on each line of a \.txt file"):
        read_prompts(tmp_path / "table.csv")
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        read_prompts(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"labels": ["bird"]}, r"--label: bird is not a class of this model; it has 0 to 1 \(cat, dog\)"),
        ({"labels": ["2"]}, "--label: 2 is not a class"),
        ({"values": [("picture", "nowhere.png")]}, "picture: nowhere.png: no such file or folder"),
        ({"values": [("pose", "pose.txt")]}, "pose: a vector needs a .npy file, got pose.txt"),
        ({"values": [("pose", "a.npy"), ("pose", "b.npy")]}, "pose: got 2 files"),
        ({"values": [("pos", "a.npy")]}, "pos: this model takes no such condition; did you mean 'pose'"),
    ],
)
def test_options_that_do_not_fit(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Asked(**asked).source(TAKES)


def test_options_for_what_a_model_does_not_take() -> None:
    plain = Takes((LABEL,), DATA, "mine")
    for asked, says in (
        (Asked(prompts=["a"]), "--prompt: this mine model takes none; leave it out"),
        (Asked(negative=["a"]), "--negative: this mine model takes none"),
    ):
        with pytest.raises(ConfigError, match=says):
            asked.source(plain)
    several = Takes((TEXT, Condition("other", "text", "text")), DATA, "mine")
    with pytest.raises(ConfigError, match="several of the kind text: name one of caption, other"):
        Asked(prompts=["a"]).source(several)
    with pytest.raises(ConfigError, match="takes no negative prompts"):
        Asked(negative=["a"]).source(Takes((Condition("other", "text", "text"),), DATA, "mine"))


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    Image.new("RGB", (5, 6)).save(tmp_path / "0.png")
    Image.new("RGB", (6, 5)).save(tmp_path / "1.png")
    with pytest.raises(
        ConfigError, match=r"1.png is RGB 5x6 and .*0.png is RGB 6x5; give images of one size"
    ):
        ImageFiles.at("picture", [str(tmp_path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty holds no image"):
        ImageFiles.at("picture", [str(tmp_path / "empty")])


def test_rows_of_a_data_set(tmp_path: Path) -> None:
    source = tmp_path / "images"
    for number in range(5):
        place = source / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(number)).save(place / f"{number}.png")
        if number != 4:
            (place / f"{number}.txt").write_text(f"text {number}")
    pack(str(source), tmp_path / "data", shard_size=2)
    rows = rows_of_data(str(tmp_path / "data"), TAKES.conditions)
    assert rows.keys() == {"label", "caption", "picture"}, "what it has columns for"
    images = np.concatenate([part["image"] for part in read_all(tmp_path / "data")])  # pack shuffles
    order = [next(n for n in range(5) if np.array_equal(image, pixels(n))) for image in images]
    found = given({name: value for name, value in rows.items() if name != "caption"}, 3, 0, 7, 3)
    wanted = [order[row] for row in (3, 0, 2, 3)]
    assert found["label"].tolist() == [number % 2 for number in wanted]
    images = np.stack([pixels(number) for number in wanted])
    assert torch.equal(found["picture"], torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)
    bare = order.index(4)
    has = [row for row in range(5) if row != bare]
    assert given(rows, *has)["caption"] == [f"text {order[row]}" for row in has]
    with pytest.raises(DataError, match=f"image {bare} has no text"):
        given(rows, bare)
    with pytest.raises(DataError, match=r"has the columns .* conditions need pose"):
        rows_of_data(str(tmp_path / "data"), (POSE,))


def test_columns_of_a_table() -> None:
    assert column_rows("caption", TEXT, ["a", None, float("nan")], TAKES).read([0, 1, 2]) == ["a", "", ""]
    assert column_rows("label", LABEL, [1, 0.0], TAKES).read([0, 1]).tolist() == [1, 0]
    nested = np.array([np.array([1.0, 2.0]), np.array([3.0, 4.0])], dtype=object)
    assert column_rows("camera", CAMERA, [nested], TAKES).read([0]).tolist() == [[[1, 2], [3, 4]]]
    assert column_rows("pose", POSE, [[1, 2], [3, 4]], TAKES).read([1]).tolist() == [[3, 4]]
    assert column_rows("words", WORDS, ["a, b"], TAKES).read([0]) == [["a", "b"]]
    with pytest.raises(ConfigError, match="pose: row 1 has none, but others have"):
        column_rows("pose", POSE, [[1, 2], None], TAKES)
