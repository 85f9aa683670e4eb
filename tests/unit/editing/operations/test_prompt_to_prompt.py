"""Prompt-to-Prompt against a naive form of its authors' code, in one batch and by explicit maps."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_edits import model_of
from torch import Tensor

from sfumato.core.attention import Attended, Control
from sfumato.core.batch import DataSpec, Texts
from sfumato.core.columns import Column
from sfumato.core.conditions import Listed
from sfumato.core.family import SampleRequest
from sfumato.core.rng import SampleRng, seeded
from sfumato.editing.operations import OPERATIONS
from sfumato.errors import ConfigError
from sfumato.families.diffusion.attention.attention_control import attentions
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.family import DiffusionFamily
from sfumato.sampling.generator import Generator
from sfumato.text.alignment import aligned, places_of

DATA = DataSpec(1, 8, 8, (), {"text": Column("text", "str")})
STEPS = 4


@cache
def model(network: str = "unet_text") -> Generator:
    variants: Any = DiffusionConfig.variants()
    found = variants[network].model_dump()
    own = model_of(
        DiffusionConfig.model_validate(
            found | {"sampling": {"steps": STEPS, "guidance": 2.0, "sampler": "euler"}}
        ),
        DATA,
    )
    with seeded(0, "attention"):
        for _, module in attentions(own.nets["ema"]):
            for layer in (module.to_q, module.to_k, module.to_v, module.to_out[0]):
                torch.nn.init.normal_(layer.weight, std=0.6)
    return own


def request(*texts: str) -> SampleRequest:
    own = model()
    return SampleRequest(num=len(texts), options=own.options({}), conditions={"text": Texts(texts)})


def control(**fields: Any) -> Control:
    return Control(**{"cross": 0.5, "own": 0.25, "places": 64, "swap": True, **fields})


@torch.no_grad()
def attended(source: str, target: str, asked: Control, rows: int = 1) -> Attended:
    own: Any = model().family
    requests = [request(*[text] * rows) for text in (source, target)]
    return own.attended(model().nets, *requests, model().progress, SampleRng(3, range(rows)), asked)


@torch.no_grad()
def plain(text: str, rows: int = 1) -> Tensor:
    own = model()
    return own.family.sample(own.nets, request(*[text] * rows), own.progress, SampleRng(3, range(rows)))


def ids(text: str) -> list[int]:
    family: Any = model().family
    (tokens,) = family._parts.text.tokens(model().nets, [text])
    return list(tokens.ids[0].tolist())


class Naive:
    """The authors' way: rows [null, null, source, target] in one batch, maps by diffusers' own scores."""

    def __init__(self, cross: bool, place: str, state: dict[str, Any]) -> None:
        self.cross, self.place, self.state = cross, place, state

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, **_: Any
    ) -> Tensor:
        over = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(over), attn.to_v(over)
        query, key, value = (attn.head_to_batch_dim(each) for each in (query, key, value))
        maps = attn.get_attention_scores(query, key).unflatten(0, (4, attn.heads))
        calls = self.state.setdefault(self.place, 0)
        self.state[self.place] += 1
        if self.cross and calls < self.state["cross"]:
            for token, (origin, weight) in enumerate(self.state["origins"]):
                mine = maps[3, :, :, token].clone()
                moved = mine if origin is None else sum(share * maps[2, :, :, at] for at, share in origin)
                maps[3, :, :, token] = weight * moved
        elif not self.cross and calls < self.state["own"]:
            maps[3] = maps[2]
        found = attn.batch_to_head_dim(maps.flatten(0, 1) @ value)
        return attn.to_out[1](attn.to_out[0](found))


@torch.no_grad()
def naive(source: str, target: str, origins: list[Any], cross: int, own: int) -> Tensor:
    """The target's image; `origins` says for each of its tokens whose attention it gets."""
    family, nets = model().family, model().nets
    assert isinstance(family, DiffusionFamily)
    state: dict[str, Any] = {"cross": cross, "own": own, "origins": origins}
    before = [(module, module.processor) for _, module in attentions(nets["ema"])]
    try:
        for name, module in attentions(nets["ema"]):
            module.processor = Naive(name.endswith("attn2"), name, state)
        path = family.path(nets, request(source, target), model().progress, SampleRng(3, range(2)))
        noise = SampleRng(3, range(1)).normal(*path.shape)
        return path.decode(path.sample(torch.cat([noise, noise]), 0))[1:]
    finally:
        for module, processor in before:
            module.processor = processor


def test_word_swap_is_the_authors() -> None:
    source, target = ids("a b"), ids("a c")
    assert [one == other for one, other in zip(source, target, strict=True)].count(False) == 1
    origins = [([(at, 1.0)], 1.0) for at in range(len(source))]
    found = attended("a b", "a c", control())
    torch.testing.assert_close(found.edited, naive("a b", "a c", origins, 2, 1), rtol=0, atol=1e-4)
    assert float((found.edited - plain("a c")).abs().max()) > 1e-3, "it changes something"


def test_refinement_and_reweighting_are_the_authors() -> None:
    space, c = ids("c")[1:3]
    before, after = ids("a b"), ids("a c b")
    assert after[:4] == before[:4] and after[3:6] == [space, c, space] and after[6:8] == before[4:6]
    origins = [([(at, 1.0)], 1.0) for at in (0, 1, 2, 3)] + [(None, 1.0)] * 2
    origins += [([(at, 1.0)], 1.0) for at in (4, 5)]
    found = attended("a b", "a c b", control())
    torch.testing.assert_close(found.edited, naive("a b", "a c b", origins, 2, 1), rtol=0, atol=1e-4)
    weighted = [(origin, 3.0 if at in (3, 4) else 1.0) for at, (origin, _) in enumerate(origins)]
    heavier = attended("a b", "a c b", control(weights={"c": 3.0}))
    torch.testing.assert_close(heavier.edited, naive("a b", "a c b", weighted, 2, 1), rtol=0, atol=1e-4)
    assert float((heavier.edited - found.edited).abs().max()) > 1e-4


def test_no_control_is_plain_sampling_and_all_of_it_with_one_text_the_source() -> None:
    free = attended("a b", "a c", control(cross=0, own=0), rows=2)
    assert torch.equal(free.source, plain("a b", 2))
    assert torch.equal(free.edited, plain("a c", 2))
    bound = attended("a b", "a b", control(cross=1, own=1), rows=2)
    assert torch.equal(bound.source, plain("a b", 2)), "the source never knows"
    torch.testing.assert_close(bound.edited, bound.source, rtol=0, atol=1e-5)
    assert all(
        type(module.processor).__name__ != "Controlled" for _, module in attentions(model().nets["ema"])
    )


def test_maps_are_probabilities_of_each_word() -> None:
    found = attended("a b", "c b", control(cross=0, own=0), rows=2)
    assert found.words == [["c", "b"], ["c", "b"]]
    assert found.maps[0].shape == (2, 8, 8) or found.maps[0].shape == (2, 4, 4)
    assert float(found.maps[0].min()) >= 0
    assert float(found.maps[0].sum(dim=0).max()) <= 1


def test_tokens_in_the_place_of_others_share_their_attention() -> None:
    share, new = aligned([0, 1, 2, 9], [0, 5, 6, 2, 9], swap=True)
    expected = torch.zeros(4, 5)
    expected[0, 0] = expected[2, 3] = expected[3, 4] = 1
    expected[1, 1:3] = 0.5
    assert torch.equal(share, expected)
    assert not new.any()
    assert aligned([0, 1, 9], [0, 5, 9], swap=False)[1].tolist() == [False, True, False]
    assert places_of([1, 2], [0, 1, 2, 1, 2]) == [[1, 2], [3, 4]]


def test_a_row_has_both_samples_and_the_maps() -> None:
    own = model()
    operation = OPERATIONS.find("prompt_to_prompt").model_validate({"source": "a b", "num": 2})
    assert operation.problems(own, own.options({})) == []
    source = own.takes.source(conditions={"text": Listed("text", Texts(["a c", "c"]))})
    rows = list(operation.drawn(own, source, own.options({}), 3))
    assert [row.shape for row in rows] == [(4, 8, 8, 1)] * 2, "both images and two maps"
    assert int(rows[1][3].max()) == 0, "the second text has one word"
    shows = [operation.said(source, 1, column)["shows"] for column in range(4)]
    assert shows == ["the source", "the edit", "attention to c", "nothing"]
    assert operation.said(source, 0, 1)["conditions"] == {"text": "a c"}
    drawn = own.sample(2, seed=3, conditions={"text": Listed("text", Texts(["a b"]))})
    assert np.array_equal(np.stack([row[0] for row in rows]), drawn)


def test_what_has_no_words_is_refused() -> None:
    with pytest.raises(ConfigError, match="'z' is not in the text 'a c'"):
        attended("a b", "a c", control(weights={"z": 2.0}))
    operation = OPERATIONS.find("prompt_to_prompt").model_validate({"source": "a"})
    (line,) = operation.problems(model("mmdit"), None)
    assert "network mmdit has no cross-attention to texts" in line
    with pytest.raises(ConfigError, match="--prompt: prompt_to_prompt needs a new text"):
        next(operation.drawn(model(), {}, model().options({}), 0))
