"""Frozen encoders from folders: the states are those of transformers' own calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from text_folders import KINDS, save_text_model, save_tokenizer, text_model
from torch import Tensor

from sfumato.core.pretrained import Pretrained
from sfumato.errors import ConfigError
from sfumato.runtime.runs.pretrained import look_up
from sfumato.sampling.pretrained_files import cast_parameters, load_stored
from sfumato.text.encoders.folder import FolderConfig, FolderEncoder
from sfumato.text.states import States

TEXTS = ["the the a", "a text that is too long", ""]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return tmp_path


def looked_up(folder: Path, **fields: Any) -> FolderConfig:
    weights = look_up(Pretrained(folder=str(folder)), folder.parent, "weights")
    return FolderConfig(weights=weights, tokens=7, **fields).learnt(lambda: ())


def opened(config: FolderConfig) -> FolderEncoder:
    frozen = config.frozen()
    network = frozen.build()
    assert isinstance(network, FolderEncoder) and frozen.weights is not None
    load_stored(network, frozen.weights)
    cast_parameters(network, frozen.dtype)
    return network.eval()


@torch.no_grad()
def states_of(config: FolderConfig) -> tuple[States, Tensor, Tensor]:
    network = opened(config)
    ids, mask = config.tokenize(TEXTS, network)
    return network(ids, mask), ids, mask


@torch.no_grad()
def by_hand(kind: str, ids: Tensor, mask: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
    """States of the layer, and the model's own pooled state, by transformers."""
    model = text_model(kind)
    if kind == "clip_whole":
        outputs = model.text_model(input_ids=ids, output_hidden_states=True)
        pooled = model.text_projection(outputs.pooler_output)
    else:
        body = (
            model.encoder if kind == "t5_whole" else model.base_model if kind in ("gpt2", "qwen2") else model
        )
        seen = {} if kind.startswith("clip") else {"attention_mask": mask.long()}
        outputs = body(input_ids=ids, output_hidden_states=True, **seen)
        pooled = getattr(outputs, "text_embeds", None)
        pooled = getattr(outputs, "pooler_output", None) if pooled is None else pooled
    return outputs.last_hidden_state if layer == -1 else outputs.hidden_states[layer], pooled


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_transformers(kind: str, layer: int, folders: Path) -> None:
    config = looked_up(save_text_model(folders / kind, kind), layer=layer)
    assert config.problems() == []
    found, ids, mask = states_of(config)
    expected, pooled = by_hand(kind, ids, mask, layer)
    torch.testing.assert_close(found.states, expected)
    assert found.states.shape[1:] == (config.shape().tokens, config.shape().width)
    assert found.pooled.shape[1] == config.shape().pooled
    if pooled is None:
        last, _ = by_hand(kind, ids, mask, -1)
        pooled = torch.stack([row[kept].mean(dim=0) for row, kept in zip(last, mask, strict=True)])
    torch.testing.assert_close(found.pooled, pooled)


def test_the_tokenizer_is_that_of_the_folder_and_travels_with_the_weights(folders: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_text_model(folders / "bert", "bert")
    config = looked_up(folder)
    network = opened(config)
    theirs = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=7, return_tensors="pt"
    )
    ids, mask = config.tokenize(TEXTS, network)
    assert torch.equal(ids, theirs["input_ids"]) and torch.equal(mask.long(), theirs["attention_mask"])
    gone = config.model_copy(update={"tokenizer": str(folders / "gone")})
    elsewhere = gone.build()
    elsewhere.load_state_dict(network.state_dict())
    assert torch.equal(gone.tokenize(TEXTS, elsewhere)[0], ids)
    assert config.lengths(TEXTS) == [
        len(ids) for ids in AutoTokenizer.from_pretrained(folder)(TEXTS)["input_ids"]
    ]


def test_another_tokenizer_in_its_place_is_noticed(folders: Path) -> None:
    config = looked_up(save_text_model(folders / "bert", "bert"))
    network = opened(config)
    ids, _ = config.tokenize(TEXTS, network)
    save_tokenizer(folders / "bert", "h e")
    with pytest.raises(ConfigError, match="its tokenizer is another one than recorded"):
        config.learnt(lambda: ())
    elsewhere = config.build()  # as in a model folder, whose own tokenizer counts
    elsewhere.load_state_dict(network.state_dict())
    assert torch.equal(config.tokenize(TEXTS, elsewhere)[0], ids)


def test_smaller_types_give_float32(folders: Path) -> None:
    folder = save_text_model(folders / "t5", "t5")
    (exact, _, _), (close, _, _) = (
        states_of(looked_up(folder)),
        states_of(looked_up(folder, dtype="bfloat16")),
    )
    assert close.states.dtype == torch.float32
    assert 0 < float((close.states - exact.states).abs().max()) < 0.1


def test_padding_may_be_shown(folders: Path) -> None:
    folder = save_text_model(folders / "t5", "t5")
    hidden, shown = (states_of(looked_up(folder, mask=mask))[0] for mask in (True, False))
    assert torch.allclose(hidden.states[1], shown.states[1], atol=1e-6), "this text has none"
    assert not torch.allclose(hidden.states[2], shown.states[2], atol=1e-4)


def test_other_folders_are_refused(folders: Path) -> None:
    from library_folders import save_unet

    clip = save_text_model(folders / "clip", "clip")
    unet = FolderConfig(weights=look_up(Pretrained(folder=str(save_unet(folders / "unet"))), folders, "w"))
    assert "is of diffusers, not of transformers" in unet.problems()[0]
    assert (
        "tokens: got 12, the encoder has places for 9"
        in looked_up(clip).model_copy(update={"tokens": 12}).problems()
    )
    assert "layer: got -3, the encoder has 2 layers" in looked_up(clip, layer=-3).problems()
    assert "has not been looked up" in FolderConfig(weights=Pretrained(folder="x")).problems()[0]
    (clip / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    with pytest.raises(ConfigError, match="no tokenizer can be loaded"):
        looked_up(clip)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (clip / name).unlink()
    with pytest.raises(ConfigError, match="has no tokenizer"):
        looked_up(clip)
