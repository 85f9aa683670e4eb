"""Columns, what a model's card says of them, and the conversion of images on the device."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from sfumato.core.batch import DataSpec, HostBatch, Tags, Texts, to_device
from sfumato.core.columns import Column
from sfumato.core.first_stage import StoredModelCard

CONTROL = Column("image", "uint8", (1, 4, 4))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("picture", "uint8"), "kind is one of image, label"),
        (("image", "float32", (1, 4, 4)), "a column of kind image is uint8; got 'float32'"),
        (("array", "float64", (3,)), "float32 or float16 or bfloat16 or int64"),
        (("image", "uint8", (4, 4)), r"a shape \[channels, height, width\]; got \[4, 4\]"),
        (("vector", "float32", (2, 2)), r"a shape \[length\]"),
        (("array", "int16", (0,)), "at least 1"),
        (("tags", "str", (), ("a",)), "names of a label's numbers"),
    ],
)
def test_what_does_not_go_together_is_refused(given: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Column(*given)  # type: ignore[arg-type]


def test_a_spec_names_all_its_columns() -> None:
    spec = DataSpec(3, 8, 8, ("a", "b"), {"control": CONTROL})
    assert list(spec.columns) == ["image", "label", "control"]
    assert spec.columns["image"] == Column("image", "uint8", (3, 8, 8))
    assert spec.columns["label"].classes == ("a", "b")
    assert list(DataSpec(1, 2, 2).columns) == ["image"]
    for name in ("image", "Label", "a b"):
        with pytest.raises(ValueError, match=r"column|name"):
            DataSpec(1, 2, 2, extra={name: CONTROL})


def test_cards_without_further_columns_are_what_they_were() -> None:
    plain = DataSpec(3, 8, 8, ("a", "b"))
    old = {"channels": 3, "height": 8, "width": 8, "classes": ["a", "b"]}
    assert json.loads(json.dumps(plain.as_card())) == old
    assert list(plain.as_card()) == list(old)
    assert DataSpec.from_card(old) == plain
    card = StoredModelCard(family="vae", config={}, data=plain)
    assert card.model_dump(mode="json")["data"] == old
    assert StoredModelCard.model_validate(card.model_dump(mode="json")).data == plain


def test_cards_with_further_columns_come_back() -> None:
    extra = {"control": CONTROL, "text": Column("text", "str"), "z": Column("array", "bfloat16", (2, 3))}
    spec = DataSpec(3, 8, 8, (), extra)
    assert DataSpec.from_card(json.loads(json.dumps(spec.as_card()))) == spec
    card = StoredModelCard(family="vae", config={}, data=spec)
    assert StoredModelCard.model_validate_json(card.model_dump_json()).data == spec
    assert TypeAdapter(DataSpec).validate_python(asdict(spec)) == spec
    assert hash(spec) == hash(DataSpec(3, 8, 8))  # usable as a key


def test_images_become_the_floats_that_they_were_on_the_host() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    batch = HostBatch(
        {
            "image": torch.from_numpy(levels),
            "mask": torch.from_numpy(levels),
            "codes": torch.from_numpy(levels.copy()),
            "half": torch.ones(1, dtype=torch.bfloat16),
        },
        images=("image", "mask"),
    )
    there = to_device(batch, torch.device("cpu"))
    before = torch.from_numpy(levels).float().div_(127.5).sub_(1.0)
    assert torch.equal(there["image"].view(torch.int32), before.view(torch.int32))
    assert torch.equal(there["mask"], before)
    assert there["codes"].dtype == torch.uint8
    assert there["half"].dtype == torch.bfloat16
    assert batch["image"].dtype == torch.uint8  # the host's batch stays


def test_texts_and_plain_batches_are_left_alone() -> None:
    texts, tags = Texts(["a"]), Tags([["b", "c"]])
    there = to_device(HostBatch({"text": texts, "tags": tags}, ()), torch.device("cpu"))  # type: ignore[dict-item]
    assert there["text"] is texts
    assert there["tags"] is tags
    image = torch.ones(1, 1, 2, 2)
    assert torch.equal(to_device({"image": image}, torch.device("cpu"))["image"], image)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_images_have_the_same_bits_on_a_gpu() -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    texts = Texts(["a"])
    batch = HostBatch({"image": levels, "text": texts})  # type: ignore[dict-item]
    here = to_device(batch, torch.device("cpu"))["image"]
    there = to_device(batch, torch.device("cuda"))
    assert there["image"].is_cuda
    assert there["text"] is texts
    assert torch.equal(there["image"].cpu().view(torch.int32), here.view(torch.int32))
