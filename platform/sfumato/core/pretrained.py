"""Where a network's initial weights come from: a run, a folder of a library, or one file.

A family's configuration has a field of type `Pretrained`. When a run starts, its path is made absolute and
its digest is recorded; all code that loads the weights checks them against that digest:

    teacher: Pretrained                                        # in a recipe: {run: my-run, network: ema}
    opened = config.teacher.open(families.config_class)        # builds the network and knows its family
    nets = {"teacher": Frozen(build=opened.build, weights=opened.weights, dtype=torch.bfloat16)}

    unet: Pretrained                                           # {folder: /models/sd, subfolder: unet}
    opened = library_networks.opened(config.unet)              # from sfumato.layers
    nets = {"unet": Frozen(build=opened.build, weights=opened.weights)}

Nothing is ever downloaded or unpickled. This module holds only plain data: `sampling.pretrained_files` reads
the files, and `runtime.runs.pretrained` looks up the references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_serializer, model_validator
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config, Neutral, NeutralBeside
from sfumato.core.earlier_defaults import FIRST, as_of
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.finding import built_in_only, paths_in
from sfumato.core.stored import StoredFile, StoredFolder, StoredNet, Weights
from sfumato.core.validation import first_problem
from sfumato.errors import ConfigError

BUILT_IN = r"^[a-z][a-z0-9_]*$"
Found = TypeVar("Found")
Card = TypeVar("Card", bound="ModelCard")
IDENTIFIED = NeutralBeside("digest")
"""Marks a field that adds nothing to a run's identity once the digest is known: a location, or contents."""


class ModelCard(Config):
    """The description of a trained model, without its weights."""

    family: str = Field(min_length=1, description="Its family: a built-in one, or an import path.")
    config: dict[str, Any] = Field(description="The family's configuration.")
    data: DataSpec = Field(description="The kind of images it was trained on.")
    trained_on: str | None = Field(None, description="Digest of the data set it was trained on.")

    @field_serializer("data")
    def _without_empty_fields(self, data: DataSpec) -> dict[str, Any]:
        """Keep the content of recipes recorded before further columns existed."""
        return data.as_card()


class StoredModelCard(ModelCard):
    """The same of a built-in family, which runs no code of others."""

    family: str = Field(pattern=BUILT_IN, description="Its family; a built-in one, since loading runs code.")


class LibraryModel(Config):
    """The description of a library's network, without its weights."""

    library: Literal["diffusers", "transformers"] = Field(description="The library that defines its class.")
    name: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$", description="The name of its class in that library.")
    config: dict[str, Any] = Field(description="The network's configuration, from its config.json.")


class Reference(Config):
    """A part of a recipe that refers to something trained. It is found, wherever it is, by its type."""

    run: Annotated[str, IDENTIFIED] = Field(
        "", description="A trained run (name, MLflow id or folder) or a model folder; recorded as the folder."
    )
    digest: str | None = Field(
        None, description="sha256 of the content; recorded when a run starts and checked from then on."
    )

    @property
    def source(self) -> tuple[str, str]:
        """The field that holds its location, and the location; empty if it refers to nothing stored."""
        return "run", self.run

    @property
    def recorded(self) -> bool:
        """Whether everything needed to build the network has been looked up."""
        return self.digest is not None


class Pretrained(Reference):
    """The source of a network's initial weights: one of `run`, `folder` and `file`."""

    network: str | None = Field(
        None, description="Which network of the run's model; may be left out if it has only one."
    )
    folder: Annotated[str, IDENTIFIED] = Field(
        "", description="A folder written by diffusers or transformers: config.json and *.safetensors."
    )
    subfolder: Annotated[str, IDENTIFIED] = Field(
        "", description="The part of `folder` that holds the network, such as unet."
    )
    file: Annotated[str, IDENTIFIED] = Field("", description="A safetensors file.")
    prefix: str = Field(
        "", description="Use only the tensors of `file` whose names start with this, and strip it from them."
    )
    trust: Neutral[bool] = Field(
        False, description="Allow the run's family and its parts to be named by import path, which runs code."
    )
    model: Annotated[ModelCard | None, IDENTIFIED] = Field(
        None, description="The run's model; recorded when a run starts."
    )
    library: Annotated[LibraryModel | None, IDENTIFIED] = Field(
        None, description="The folder's network; recorded when a run starts."
    )

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        given = [name for name in ("run", "folder", "file") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"takes one of run, folder and file, got {' and '.join(given)}")
        if not given and self.model is None and self.library is None:
            raise ValueError("needs run (a trained run), folder (of diffusers or transformers) or file")
        for name, goes_with in (("subfolder", "folder"), ("prefix", "file")):
            if getattr(self, name) and not getattr(self, goes_with):
                raise ValueError(f"{name} has an effect only with {goes_with}; leave it out")
        return self

    @property
    def source(self) -> tuple[str, str]:
        given = [(name, str(getattr(self, name))) for name in ("run", "folder", "file")]
        return next(((name, place) for name, place in given if place), ("run", ""))

    @property
    def recorded(self) -> bool:
        return self.digest is not None and Path(self.source[1]).is_absolute()

    def weights(
        self,
        *,
        into: str = "",
        fresh: tuple[str, ...] = (),
        unused: tuple[str, ...] = (),
        inside: str = "",
    ) -> Weights | None:
        """The stored weights, with their digest; None (initial weights) if only `model` or `library` is set.

        Raises ConfigError if they have not been looked up yet.
        """
        kind, place = self.source
        if not place:
            return None
        if self.digest is None:
            raise ConfigError(f"{kind}: {place!r} has not been looked up")
        fit: dict[str, Any] = {
            "digest": self.digest,
            "into": into,
            "fresh": fresh,
            "unused": unused,
            "inside": inside,
        }
        if kind == "run":
            assert self.network is not None, "recorded with the digest"
            return StoredNet(folder=place, network=self.network, **fit)
        if kind == "folder":
            return StoredFolder(folder=str(Path(place, self.subfolder)), **fit)
        return StoredFile(file=place, prefix=self.prefix, **fit)

    def open(self, find: Callable[[str], type[FamilyConfig]]) -> OpenModel:
        """The network of a run's model; `find` is `sfumato.families.config_class`.

        Raises ConfigError if it has not been looked up, is not a run, has no network of this name, or needs
        code from outside Sfumato without `trust`.
        """
        kind, place = self.source
        if self.model is None:
            if kind != "run":
                reason = "is not a Sfumato run; name one in run"
            elif self.digest is None:
                reason = "has not been looked up"
            else:
                reason = "belongs to a family outside Sfumato; allow its code to run with trust: true"
            raise ConfigError(f"{kind}: {place!r} {reason}")
        config = card_config(self.model, find, "model.config", trust=self.trust)
        family = config.build(self.model.data)
        name = self.network or next(iter(family.samplers))
        if name not in family.nets:
            known = ", ".join(family.nets)
            raise ConfigError(f"network: {place!r} has no network {name!r}; it has {known}")
        return OpenModel(built_as(family, name).build, self.weights(), family, self.model.data)


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """A network, ready to be built, and its stored weights (None: initial weights)."""

    build: Callable[[], nn.Module]
    weights: Weights | None


@dataclass(frozen=True, slots=True)
class OpenModel(OpenNetwork):
    """A network of a trained model, with its family."""

    family: Family
    data: DataSpec
    """The images it was trained on."""


def built_as(family: Family, name: str) -> Any:
    """The `Trainable` or `Frozen` that builds a network: its own or, for an average, its source's."""
    spec: Any = family.nets[name]
    return family.nets[spec.source] if hasattr(spec, "source") else spec


def card_config(
    card: ModelCard, find: Callable[[str], type[FamilyConfig]], field: str, *, trust: bool = False
) -> FamilyConfig:
    """The family configuration in a recorded card. Raises ConfigError naming `field`.

    Only with `trust` may it name a class by import path, which runs that module's code.
    """
    if not trust and (own := next(paths_in([card.family, card.config]), None)) is not None:
        raise ConfigError(f"{field}: needs {own!r}, which is not part of Sfumato; its code is not run here")
    try:
        with built_in_only(not trust):
            return as_of(find(card.family).model_validate(card.config), FIRST)
    except ValidationError as error:
        raise ConfigError(f"{field}: {first_problem(error)}") from None


def recorded(card: Mapping[str, Any], kind: type[Card]) -> Card:
    """The part of a model folder's card that a recipe records. Raises ConfigError if `kind` refuses it."""
    try:
        known = {key: card[key] for key in ("family", "config", "data")}
        return kind.model_validate({**known, "trained_on": card.get("trained_on")})
    except ValidationError as error:
        raise ConfigError(first_problem(error, kind)) from None


def references(content: Any, field: str, kind: type[Found]) -> Iterator[tuple[str, Found]]:
    """All references (or other parts) of this class in a configuration, with their dotted fields."""
    if isinstance(content, kind):
        yield field, content
    elif isinstance(content, BaseModel):
        for name in type(content).model_fields:
            yield from references(getattr(content, name), f"{field}.{name}", kind)
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from references(value, f"{field}.{name}", kind)
    elif isinstance(content, (list, tuple)):
        for index, value in enumerate(content):
            yield from references(value, f"{field}.{index}", kind)


def replaced(content: Any, field: str, change: Callable[[str, Any], Any], kind: type[Any] = Reference) -> Any:
    """The configuration with every part of this class in it replaced by `change(field, part)`."""
    if isinstance(content, kind):
        return change(field, content)
    if isinstance(content, BaseModel):
        before = {name: getattr(content, name) for name in type(content).model_fields}
        after = {name: replaced(value, f"{field}.{name}", change, kind) for name, value in before.items()}
        changed = {name: value for name, value in after.items() if value is not before[name]}
        return content.model_copy(update=changed) if changed else content
    if isinstance(content, Mapping):
        items = {name: replaced(value, f"{field}.{name}", change, kind) for name, value in content.items()}
        return items if any(items[name] is not content[name] for name in items) else content
    if isinstance(content, (list, tuple)):
        values = [replaced(value, f"{field}.{index}", change, kind) for index, value in enumerate(content)]
        same = all(new is old for new, old in zip(values, content, strict=True))
        return content if same else type(content)(values)
    return content
