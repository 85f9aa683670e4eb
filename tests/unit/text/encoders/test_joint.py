"""The encoder that is trained with the model."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from sfumato.core.identity import changed
from sfumato.errors import ConfigError
from sfumato.text.encoders.joint import JointConfig

CAPTIONS = ["the red cube", "the blue cube", "a red ball"]


def test_padding_changes_neither_states_nor_pooled() -> None:
    config = JointConfig.tiny()
    network = config.build().eval()
    ids, mask = config.tokenize(["the", "a"], None)
    more, _ = config.tokenize(["the", "a"], None)
    more[:, 5:] = 0  # other tokens after the end
    with torch.no_grad():
        one, two = network(ids, mask), network(more, mask)
    torch.testing.assert_close(one.states[:, :5], two.states[:, :5])
    torch.testing.assert_close(one.pooled, two.pooled)
    assert not torch.allclose(one.pooled[0], one.pooled[1])


def test_the_pooled_state_is_that_of_the_end() -> None:
    config = JointConfig.tiny()
    ids, mask = config.tokenize(["the", ""], None)
    with torch.no_grad():
        found = config.build().eval()(ids, mask)
    ends = ids.eq(1).int().argmax(dim=1)
    torch.testing.assert_close(found.pooled, found.states[torch.arange(2), ends])


def test_the_vocabulary_is_learnt_once_and_identifies_the_model() -> None:
    fresh = JointConfig(tokens=8, vocabulary=270)
    one = fresh.learnt(lambda: iter(CAPTIONS))
    assert one.merges and one.digest
    assert one.learnt(lambda: iter(["something else"])) == one
    other = fresh.learnt(lambda: iter(["xyxyxy xyxy"]))
    assert changed(one) != changed(other)
    assert "merges" not in changed(one), "the digest says all of it"
    assert JointConfig.model_validate_json(one.model_dump_json()) == one


def test_lengths_are_those_before_cutting() -> None:
    config = JointConfig.tiny()
    assert config.lengths(["the", "the the", ""]) == [3, 4, 2]


def test_without_a_vocabulary_there_are_no_tokens() -> None:
    with pytest.raises(ConfigError, match="has not been learnt"):
        JointConfig().tokenize(["a"], None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 10, "heads": 4}, "heads: 4 does not divide width=10; the nearest is 5"),
        ({"merges": "a b", "digest": "0"}, "digest: is not that of merges"),
        ({"merges": "a b\nab c", "vocabulary": 259}, "merges: more than vocabulary=259 holds"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        JointConfig(**fields)
