"""Generators that attend to the tokens of texts: the formula, where it acts, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sfumato.core.batch import DataSpec
from sfumato.core.columns import Column
from sfumato.core.rng import seeded
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.layers.text_attention import TextAttention
from sfumato.families.gan.text_family import TextGenerator
from sfumato.text.states import States

DATA = DataSpec(1, 8, 8, (), {"text": Column("text", "str")})


def config(**changes: Any) -> GanConfig:
    content = GanConfig.variants()["text"].model_dump(mode="json")
    return GanConfig.model_validate({**content, **changes})


def test_it_is_attention_over_the_words_alone() -> None:
    """Against softmax written out, head by head, without the padding."""
    with seeded(0, "attention"):
        layer = TextAttention(8, 5, heads=2)
        torch.nn.init.normal_(layer.out.weight)
        x, states = torch.randn(2, 8, 3, 3), torch.randn(2, 4, 5)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    found = layer(x, States(states, mask, torch.zeros(2, 0)))
    for row, count in enumerate((4, 2)):
        q = layer.query(layer.norm(x))[row].flatten(1).T
        k, v = layer.key_value(states[row, :count]).chunk(2, dim=1)
        parts = [((q[:, h : h + 4] @ k[:, h : h + 4].T) / 2).softmax(dim=1) @ v[:, h : h + 4] for h in (0, 4)]
        expected = x[row] + layer.out(torch.cat(parts, dim=1).T.reshape(1, 8, 3, 3))[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("network", [{"kind": "resnet", "channels": [8], "generator_norm": "group"}, "r3gan"])
def test_words_reach_the_image_by_attention_alone(network: Any) -> None:
    """With the pooled text cut off, a fresh generator ignores the text; one that has learnt does not."""
    if network == "r3gan":
        network = {"kind": "r3gan", "channels": [8, 8], "blocks": 1, "group_channels": 4, "class_channels": 4}
    family = config(network=network, text_attention=[1] if network["kind"] == "r3gan" else [0]).build(DATA)
    with seeded(0, "generator"):
        generator = family.nets["generator"].build().eval()  # type: ignore[union-attr]
        z = torch.randn(2, 4)
    assert isinstance(generator, TextGenerator)
    inputs = family._text.condition.inputs({}, ["the", "other words"], torch.device("cpu"))  # type: ignore[attr-defined]
    for module in generator.network.modules():
        if type(module).__name__ == "VectorMap":
            torch.nn.init.zeros_(module.weight)  # type: ignore[arg-type]
    others = {name: value.flip(0) for name, value in inputs.items()}
    with torch.no_grad():
        assert torch.equal(generator(z, inputs), generator(z, others))
        for layer in generator.network.attention.values():  # type: ignore[union-attr, operator]
            torch.nn.init.normal_(layer.out.weight)
        assert not torch.allclose(generator(z, inputs), generator(z, others))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_attention": [4]}, "there is no stage 4; the generator has 0 to 0"),
        ({"text": None}, "there are no texts; give model.text"),
        (
            {"network": {"kind": "dcgan", "channels": [8], "generator_norm": "group"}},
            "dcgan attends to no tokens; use r3gan or resnet",
        ),
    ],
)
def test_what_cannot_attend_is_one_line(changes: dict[str, Any], message: str) -> None:
    (problem,) = [line for line in config(**changes).problems(DATA) if "text_attention" in line]
    assert message in problem


def test_attention_needs_tokens() -> None:
    text = config().model_dump(mode="json")["text"]
    text["encoders"][0]["uses"] = "pooled"
    (problem,) = config(text=text).problems(DATA)
    assert "attends to tokens; let an encoder have uses=both" in problem
