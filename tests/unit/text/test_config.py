"""The `text:` part of a model: what it learns from captions, notes and refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sfumato.core.batch import DataSpec
from sfumato.core.columns import Column
from sfumato.errors import ConfigError
from sfumato.text.config import TextConfig
from sfumato.text.encoders.joint import JointConfig
from sfumato.text.states import TextShape

DATA = DataSpec(1, 8, 8, (), {"text": Column("text", "str"), "tags": Column("tags", "str")})


def encoder(**fields: object) -> JointConfig:
    return JointConfig(**{"tokens": 8, "width": 8, "vocabulary": 270, **fields})


class Data:
    """Captions, and states of one encoder."""

    def __init__(self, texts: list[str], encoder: str | None = None) -> None:
        self._texts, self._encoder = texts, encoder

    def values(self, column: str) -> Iterator[str]:
        assert column == "text"
        return iter(self._texts)

    def encoder(self, column: str) -> str | None:
        return self._encoder if column == "text_encoder_states" else None


def learnt(config: TextConfig, texts: list[str]) -> tuple[TextConfig, list[str]]:
    notes: list[str] = []
    return config.learnt(Data(texts), notes.append), notes


def test_captions_teach_the_vocabulary_and_are_counted() -> None:
    texts = ["red cube"] * 5 + ["", "", "a blue ball far away to the left of it"]
    found, notes = learnt(TextConfig(encoders=(encoder(),)), texts)
    assert found.encoders[0].digest is not None
    assert notes == [
        "2 of 8 captions are empty: their images are learnt as those of no text",
        "1 of 8 captions are longer than the 8 tokens of the text encoder joint, and are cut",
    ]


def test_data_without_any_caption_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of 3 captions in 'text' says anything"):
        learnt(TextConfig(encoders=(encoder(),)), ["", "", ""])


def test_states_of_another_encoder_are_refused() -> None:
    config = TextConfig(encoders=(JointConfig.tiny(),))
    own = config.encoders[0].content()
    assert config.learnt(Data(["a"], own), print).encoders == config.encoders
    with pytest.raises(ConfigError, match="text_encoder_states is of another text encoder"):
        config.learnt(Data(["a"], "0123" * 16), print)


def test_what_the_network_sees() -> None:
    config = TextConfig(
        encoders=(encoder(width=4), encoder(width=12, uses="states"), encoder(tokens=5, uses="pooled"))
    )
    assert config.shape() == TextShape(tokens=16, width=12, pooled=12)


def test_a_text_is_required_where_the_empty_one_was_not_learnt() -> None:
    assert not TextConfig(encoders=(encoder(),)).condition(negative=True).required
    assert TextConfig(encoders=(encoder(),), dropout=0).condition(negative=True).required


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TextConfig(encoders=(encoder(),), column="txt"), "no captions in 'txt', only image, text"),
        (TextConfig(encoders=(encoder(),), column="tags"), "'tags' is of kind tags; name a column of texts"),
        (TextConfig(encoders=(encoder(beside=True),)), "0.beside: there is no encoder before the first"),
        (
            TextConfig(encoders=(encoder(), encoder(tokens=9, beside=True))),
            "encoders.1.beside: joins 9 tokens to 8",
        ),
    ],
)
def test_problems_are_a_line_each(config: TextConfig, message: str) -> None:
    (problem,) = config.problems(DATA)
    assert message in problem and "\n" not in problem
