"""The `text:` part of a model's configuration: what encodes captions, and how many are dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Annotated, Self

from pydantic import Field

from sfumato.core.batch import DataSpec
from sfumato.core.conditions import Condition
from sfumato.core.from_data import DataSet, FromData
from sfumato.errors import ConfigError
from sfumato.text.encoders import ENCODERS, TextEncoderConfig
from sfumato.text.states import TextShape, combined_shape

NAME = "text"
"""Of the condition."""
AT_ONCE = 4096
COUNTED = 100 * AT_ONCE
"""Captions that are counted before a run starts: about two seconds of work."""


class TextConfig(FromData):
    """Texts as a condition."""

    column: str = Field("text", description="The column of the data set that holds the captions.")
    encoders: tuple[Annotated[TextEncoderConfig, ENCODERS], ...] = Field(
        min_length=1, description="What encodes a text: one or several of joint, folder, ..."
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Share of captions that training replaces by the empty text, which guidance needs.",
    )
    prefix: str = Field(
        "", description="Put in front of every text but the empty one, in training and sampling."
    )

    def condition(self, *, negative: bool) -> Condition:
        """The text, required if the model was not trained on the empty one."""
        return Condition(NAME, self.column, "text", required=not self.droppable, negative=negative)

    @property
    def droppable(self) -> bool:
        """Whether the model learns what images of no text are."""
        return bool(self.dropout) or all(encoder.dropout for encoder in self.encoders)

    def shape(self) -> TextShape:
        """What the network sees. Raises ConfigError before the encoders are looked up."""
        return combined_shape([used_shape(e) for e in self.encoders], [e.beside for e in self.encoders])

    def problems(self, data: DataSpec, field: str = "model.text") -> list[str]:
        """Why it cannot be used with this data, one line each."""
        found = [
            f"{field}.encoders.{number}.{problem}"
            for number, encoder in enumerate(self.encoders)
            for problem in encoder.problems()
        ]
        column = data.extra.get(self.column)
        if all(f"{name}_states" in data.extra for name in named(self.encoders)):
            pass  # they were encoded beforehand
        elif column is None:
            has = ", ".join(data.columns)
            found.append(
                f"{field}.column: batches have no captions in {self.column!r}, only {has}; pack images with "
                "captions, and set data.text=true"
            )
        elif column.kind != "text":
            found.append(f"{field}.column: {self.column!r} is of kind {column.kind}; name a column of texts")
        if not found:
            found += self._joining_problems(field)
        return found

    def clashes(self, condition: str, guidance: float = 1.0) -> list[str]:
        """Other settings of the model that texts rule out, one line each."""
        found = []
        if condition != "auto":
            found.append(f"model.condition: {condition!r}, but model.text is given; leave one out")
        if guidance != 1 and not self.droppable:
            found.append(
                f"model.sampling.guidance: {guidance:g} needs a model trained with model.text.dropout "
                f"above 0 "
                "(such as 0.1); set guidance to 1"
            )
        return found

    def learnt(self, data: DataSet, note: Callable[[str], None]) -> Self:
        """With encoders that have learnt their vocabularies. Notes captions that are empty or will be cut.

        Raises ConfigError if there is no caption at all, or states in the data are of another encoder.
        """

        def captions() -> Iterator[str]:
            return (prefixed(text, self.prefix) for text in data.values(self.column) if text)

        encoders = tuple(encoder.learnt(captions) for encoder in self.encoders)
        for name, encoder in named(encoders).items():
            _check_computed(name, content_of(encoder, self.prefix), data.encoder(f"{name}_states"))
        total = empty = 0
        cut = [0] * len(encoders)
        values = data.values(self.column)
        while total < COUNTED and (texts := list(islice(values, AT_ONCE))):
            total, empty = total + len(texts), empty + sum(not text for text in texts)
            for number, encoder in enumerate(encoders):
                lengths = encoder.lengths([prefixed(text, self.prefix) for text in texts])
                most = encoder.shape().tokens if lengths else 0
                cut[number] += sum(length > most for length in lengths or ())
        of = f"{total:,} captions" if total < COUNTED else f"the first {total:,} captions"
        if total == empty:
            raise ConfigError(
                f"model.text.column: none of {of} in {self.column!r} says anything; pack images with captions"
            )
        if empty:
            note(f"{empty:,} of {of} are empty: their images are learnt as those of no text")
        for encoder, number in zip(encoders, cut, strict=True):
            if number:
                note(
                    f"{number:,} of {of} are longer than the {encoder.shape().tokens} tokens "
                    f"of the text encoder {encoder.kind}, and are cut"
                )
        return self.model_copy(update={"encoders": encoders})

    def _joining_problems(self, field: str) -> list[str]:
        found = []
        for number, encoder in enumerate(self.encoders):
            here = f"{field}.encoders.{number}"
            if not encoder.beside:
                continue
            if number == 0:
                found.append(f"{here}.beside: there is no encoder before the first; leave it out")
                continue
            before, own = (used_shape(self.encoders[n]).tokens for n in (number - 1, number))
            if before != own:
                found.append(f"{here}.beside: joins {own} tokens to {before}; set the same `tokens` for both")
        return found


def named(encoders: Sequence[TextEncoderConfig]) -> dict[str, TextEncoderConfig]:
    """The encoders under the names that diffusers' pipelines give them."""
    return {
        "text_encoder" if number == 1 else f"text_encoder_{number}": encoder
        for number, encoder in enumerate(encoders, 1)
    }


def prefixed(text: str, prefix: str) -> str:
    """The text as encoders see it; the empty one stays empty."""
    return f"{prefix}{text}" if text else ""


def content_of(encoder: TextEncoderConfig, prefix: str) -> str:
    """A digest of all that the states of a caption depend on."""
    if not prefix:
        return encoder.content()
    return hashlib.sha256(f"{encoder.content()} {prefix}".encode()).hexdigest()


def _check_computed(name: str, own: str, digest: str | None) -> None:
    if digest is not None and digest != own:
        raise ConfigError(
            f"data.path: its column {name}_states is of another text encoder (digest {digest[:12]}) than the "
            f"recipe's ({own[:12]}); run `sfumato precompute` with this recipe"
        )


def used_shape(encoder: TextEncoderConfig) -> TextShape:
    """What the model sees of one encoder."""
    shape = encoder.shape()
    tokens, width = (0, 0) if encoder.uses == "pooled" else (shape.tokens, shape.width)
    return TextShape(tokens, width, 0 if encoder.uses == "states" else shape.pooled)
