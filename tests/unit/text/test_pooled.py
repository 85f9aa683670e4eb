"""Families of pooled texts: what they refuse, in one line each."""

from __future__ import annotations

from typing import Any

import pytest

from sfumato.core.batch import DataSpec
from sfumato.core.columns import Column
from sfumato.families import config_class

DATA = DataSpec(1, 8, 8, ("a", "b"), {"text": Column("text", "str")})
WITHOUT = DataSpec(1, 8, 8, ("a", "b"))
TEXT = {"encoders": [{"kind": "joint", "tokens": 8, "width": 8, "heads": 2, "depth": 1}]}
STATES = {"encoders": [{**TEXT["encoders"][0], "uses": "states"}]}


def problems(family: str, variant: str, data: DataSpec = DATA, **changes: Any) -> list[str]:
    kind = config_class(family)
    content = {**kind.variants()[variant].model_dump(mode="json"), **changes}
    return kind.model_validate(content).problems(data)


MEMBERS = [
    ("flow", "text"),
    ("vae", "gaussian_text"),
    ("gan", "text"),
    ("autoregressive", "text_transformer"),
]


@pytest.mark.parametrize(("family", "variant"), [*MEMBERS, ("diffusion", "unet_text")])
def test_captions_are_needed(family: str, variant: str) -> None:
    assert problems(family, variant) == []
    assert "batches have no captions in 'text'" in problems(family, variant, WITHOUT)[0]
    assert "model.text is given; leave one out" in problems(family, variant, condition="none")[-1]


@pytest.mark.parametrize(("family", "variant"), MEMBERS[:3])
def test_a_pooled_state_is_needed(family: str, variant: str) -> None:
    assert problems(family, variant, text=STATES) == [
        "model.text: the model sees pooled texts; let an encoder have uses=both or pooled"
    ]


@pytest.mark.parametrize(
    ("family", "variant", "changes", "message"),
    [
        ("vae", "tiny", {"text": TEXT}, "gaussian takes no texts; use gaussian_text"),
        ("vae", "gaussian_text", {"text": None}, "gaussian_text is a model of texts; give model.text"),
        ("gan", "tiny", {"text": TEXT}, "batch measures its statistics for classes, not for texts"),
        ("autoregressive", "transformer", {"text": TEXT}, "takes no texts; use text_transformer"),
        ("autoregressive", "text_transformer", {"text": None}, "a model of texts; give model.text"),
        ("diffusion", "dit", {"text": TEXT}, "dit takes no texts; use flux or mmdit or pixart or unet_text"),
        ("diffusion", "pixart", {"text": None}, "pixart is a network of texts; give model.text"),
    ],
)
def test_networks_that_do_not_fit(family: str, variant: str, changes: dict[str, Any], message: str) -> None:
    (problem,) = problems(family, variant, **changes)
    assert message in problem and "\n" not in problem


def test_guidance_needs_dropped_captions() -> None:
    never = {**TEXT, "dropout": 0.0}
    for family, variant in (("diffusion", "unet_text"), ("autoregressive", "text_transformer")):
        (problem,) = problems(family, variant, text=never)
        assert "needs a model trained with model.text.dropout above 0" in problem
