"""Where the weights of a network come from before training: a run, a folder of a library, or one file.

A family's configuration has a field of type `Pretrained`; when a run starts, its place is made absolute and
its digest is recorded, and whatever loads the weights checks them against that digest:

    teacher: Pretrained                                        # in a recipe: {run: my-run, network: ema}
    opened = config.teacher.open(families.config_class)        # builds the network, and knows its family
    nets = {"teacher": Frozen(build=opened.build, weights=opened.weights, dtype=torch.bfloat16)}

    unet: Pretrained                                           # {folder: /models/sd, subfolder: unet}
    opened = library_networks.opened(config.unet)              # from sfumato.layers
    nets = {"unet": Frozen(build=opened.build, weights=opened.weights)}

Nothing is ever downloaded and nothing is unpickled. Everything here is plain data: the files are read by
`sampling.pretrained_files`, and references are looked up by `runtime.runs.pretrained`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, field_serializer, model_validator
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.config import Config, NeutralBeside
from sfumato.core.family import Family, FamilyConfig
from sfumato.core.finding import built_in_only
from sfumato.core.stored import StoredFile, StoredFolder, StoredNet, Weights
from sfumato.core.validation import first_problem
from sfumato.errors import ConfigError

BUILT_IN = r"^[a-z][a-z0-9_]*$"
Found = TypeVar("Found", bound="Reference")
IDENTIFIED = NeutralBeside("digest")
"""Marks what says nothing more of a run's numbers once the digest is known: where it lies, what is in it."""


class StoredModelCard(Config):
    """What a trained model is, without its weights."""

    family: str = Field(pattern=BUILT_IN, description="Its family; a built-in one, since loading runs code.")
    config: dict[str, Any] = Field(description="The family's configuration.")
    data: DataSpec = Field(description="The kind of images that it was trained on.")
    trained_on: str | None = Field(None, description="Digest of the data set that it was trained on.")

    @field_serializer("data")
    def _without_empty_fields(self, data: DataSpec) -> dict[str, Any]:
        """Recipes recorded before there were further columns keep their content."""
        return data.as_card()


class LibraryModel(Config):
    """What a network of a library is, without its weights."""

    library: Literal["diffusers", "transformers"] = Field(description="The library that has its class.")
    name: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*$", description="The name of its class there.")
    config: dict[str, Any] = Field(description="The network's configuration, as its config.json has it.")


class Reference(Config):
    """A part of a recipe that refers to something trained. It is found by this type, wherever it stands."""

    run: Annotated[str, IDENTIFIED] = Field(
        "", description="A trained run (name, MLflow id or folder) or a model folder; recorded as the latter."
    )
    digest: str | None = Field(
        None, description="sha256 of what it refers to; recorded when a run starts, and checked from then on."
    )

    @property
    def source(self) -> tuple[str, str]:
        """The field that says where it is, and the place; empty where it refers to nothing stored."""
        return "run", self.run

    @property
    def recorded(self) -> bool:
        """Whether all that is needed to build the network has been looked up."""
        return self.digest is not None


class Pretrained(Reference):
    """Where the initial weights of a network come from: one of `run`, `folder` and `file`."""

    network: str | None = Field(
        None, description="Which network of the run's model; may be left out where it has one."
    )
    folder: Annotated[str, IDENTIFIED] = Field(
        "", description="A folder of diffusers or transformers: config.json and *.safetensors."
    )
    subfolder: Annotated[str, IDENTIFIED] = Field(
        "", description="The part of `folder` that holds the network, such as unet."
    )
    file: Annotated[str, IDENTIFIED] = Field("", description="A safetensors file.")
    prefix: str = Field(
        "", description="Take the tensors of `file` whose names start with this, and cut it off."
    )
    model: Annotated[StoredModelCard | None, IDENTIFIED] = Field(
        None, description="What the run's model is; recorded when a run starts."
    )
    library: Annotated[LibraryModel | None, IDENTIFIED] = Field(
        None, description="What the folder's network is; recorded when a run starts."
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
                raise ValueError(f"{name} has an effect with {goes_with} alone; leave it out")
        return self

    @property
    def source(self) -> tuple[str, str]:
        given = [(name, str(getattr(self, name))) for name in ("run", "folder", "file")]
        return next(((name, place) for name, place in given if place), ("run", ""))

    @property
    def recorded(self) -> bool:
        return self.digest is not None and Path(self.source[1]).is_absolute()

    def weights(
        self, *, into: str = "", fresh: tuple[str, ...] = (), unused: tuple[str, ...] = ()
    ) -> Weights | None:
        """The weights, by their digest; None where `model` or `library` alone is given, and they are initial.

        Raises ConfigError where they have not been looked up yet.
        """
        kind, place = self.source
        if not place:
            return None
        if self.digest is None:
            raise ConfigError(f"{kind}: {place!r} has not been looked up")
        fit: dict[str, Any] = {"digest": self.digest, "into": into, "fresh": fresh, "unused": unused}
        if kind == "run":
            assert self.network is not None, "recorded with the digest"
            return StoredNet(folder=place, network=self.network, **fit)
        if kind == "folder":
            return StoredFolder(folder=str(Path(place, self.subfolder)), **fit)
        return StoredFile(file=place, prefix=self.prefix, **fit)

    def open(self, find: Callable[[str], type[FamilyConfig]]) -> OpenModel:
        """The network of a run's model; `find` is `sfumato.families.config_class`.

        Raises ConfigError where it has not been looked up, is no run, or has no network of this name.
        """
        kind, place = self.source
        if self.model is None:
            if kind != "run":
                reason = "is no run of Sfumato; name one in run"
            elif self.digest is None:
                reason = "has not been looked up"
            else:
                reason = "is of a family outside Sfumato, whose code is not run for it; use a built-in one"
            raise ConfigError(f"{kind}: {place!r} {reason}")
        config = card_config(self.model, find, "model.config")
        family = config.build(self.model.data)
        name = self.network or next(iter(family.samplers))
        if name not in family.nets:
            known = ", ".join(family.nets)
            raise ConfigError(f"network: {place!r} has no network {name!r}; it has {known}")
        return OpenModel(built_as(family, name).build, self.weights(), family, self.model.data)


@dataclass(frozen=True, slots=True)
class OpenNetwork:
    """A network that can be built, and its stored weights (None: initial ones)."""

    build: Callable[[], nn.Module]
    weights: Weights | None


@dataclass(frozen=True, slots=True)
class OpenModel(OpenNetwork):
    """A network of a trained model, with the family that it belongs to."""

    family: Family
    data: DataSpec
    """The images that it was trained on."""


def built_as(family: Family, name: str) -> Any:
    """The `Trainable` or `Frozen` that a network is built as: its own, or that of an average's source."""
    spec: Any = family.nets[name]
    return family.nets[spec.source] if hasattr(spec, "source") else spec


def card_config(card: StoredModelCard, find: Callable[[str], type[FamilyConfig]], field: str) -> FamilyConfig:
    """The family's configuration that a recorded card holds. Raises ConfigError naming `field`."""
    try:
        with built_in_only():  # loading others would run their code
            return find(card.family).model_validate(card.config)
    except ValidationError as error:
        raise ConfigError(f"{field}: {first_problem(error)}") from None


def recorded(card: Mapping[str, Any]) -> StoredModelCard:
    """The part of a model folder's card that a recipe records. Raises ConfigError for a foreign family."""
    try:
        known = {key: card[key] for key in ("family", "config", "data")}
        return StoredModelCard.model_validate({**known, "trained_on": card.get("trained_on")})
    except ValidationError as error:
        raise ConfigError(first_problem(error, StoredModelCard)) from None


def references(content: Any, field: str, kind: type[Found]) -> Iterator[tuple[str, Found]]:
    """All references of this kind in a configuration, with their dotted fields (`model.first_stage`)."""
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


def replaced(content: Any, field: str, change: Callable[[str, Reference], Reference]) -> Any:
    """The configuration with `change(field, reference)` in place of every reference in it."""
    if isinstance(content, Reference):
        return change(field, content)
    if isinstance(content, BaseModel):
        before = {name: getattr(content, name) for name in type(content).model_fields}
        after = {name: replaced(value, f"{field}.{name}", change) for name, value in before.items()}
        changed = {name: value for name, value in after.items() if value is not before[name]}
        return content.model_copy(update=changed) if changed else content
    if isinstance(content, Mapping):
        items = {name: replaced(value, f"{field}.{name}", change) for name, value in content.items()}
        return items if any(items[name] is not content[name] for name in items) else content
    if isinstance(content, (list, tuple)):
        values = [replaced(value, f"{field}.{index}", change) for index, value in enumerate(content)]
        same = all(new is old for new, old in zip(values, content, strict=True))
        return content if same else type(content)(values)
    return content
