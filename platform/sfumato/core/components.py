"""Fields of a configuration that hold one of several components: objectives, networks, losses, samplers.

A component is a subclass of `Component`, alone in a module of its kind's folder, which it names by
`COMPONENT`:

    # networks/dit.py
    class DiTConfig(NetworkConfig):
        kind: Literal["dit"] = Field("dit", description="Selects DiT.")
        width: int = Field(384, ge=1, description="Channels of a token.")

        def build(self, data: DataSpec) -> nn.Module: ...

    COMPONENT = DiTConfig

The folder's `__init__` has what its components implement; every other module is one component, of the name
that recipes choose it by. The configuration on top of them says:

    NETWORKS: Components[NetworkConfig] = Components("...diffusion.networks", NetworkConfig, default="unet")

    network: Annotated[NetworkConfig, NETWORKS] = Field(UNetConfig(), description="...")

Then a file in the folder is all that another component takes, and a recipe may name a class of the user's
own by its import path, `kind: "my_package.my_module:MyNetwork"`. Modules are imported when they are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError, field_validator
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError, core_schema

from sfumato.core.config import Config, fields_at
from sfumato.core.finding import Folder, import_path, nearest
from sfumato.core.validation import shown
from sfumato.errors import ConfigError

UNKNOWN_KEY = "extra_forbidden"
"""Pydantic's type of this error, which is kept: whoever explains errors knows it."""


class Component(Config):
    """What a recipe chooses by `kind`; of one that is not built in it is the import path."""

    brief: ClassVar[bool] = False
    """Whether a bare name does for one without settings of its own; a base says it for all of its kind."""
    kind: str = Field("", description="Which one: a built-in name, or package.module:ClassName.")

    @field_validator("kind", mode="before")
    @classmethod
    def _own_path(cls, given: Any) -> Any:
        return given or import_path(cls)

    @property
    def bare(self) -> str | None:
        """The name that says all there is to it, where one does."""
        return self.kind if self.brief and self == type(self)(kind=self.kind) else None

    @classmethod
    def tiny(cls) -> Self:
        """The smallest real instance; contract and parity suites train it."""
        return cls()


C = TypeVar("C", bound=Component)


class Components(Generic[C]):
    """The components of one kind, as the annotation of a field that holds one of them.

    `package` is their folder, `base` what they derive from, `default` the name that a mapping without
    `kind` means. Where the base is `brief`, a recipe may give a bare name, and one without settings is
    shown as that.
    """

    def __init__(
        self,
        package: str,
        base: Any,
        *,
        default: str,
        spelling: Mapping[str, str] | None = None,
    ) -> None:
        """`spelling` gives the names of modules that recipes spell otherwise than Python can."""
        self.folder: Folder[type[C]] = Folder(package, "COMPONENT", base, spelling)
        self.base: type[C] = base
        self.default = default

    def names(self) -> list[str]:
        """The built-in ones; imports none of them."""
        return self.folder.names()

    def find(self, name: str) -> type[C]:
        """A built-in one by its name, or any by its import path. Raises ConfigError for what is none."""
        return self.folder.find(name)

    def all(self) -> dict[str, type[C]]:
        """Every built-in one by name, imported."""
        return self.folder.all()

    def make(self, name: str, **settings: Any) -> C:
        """One of them with these settings."""
        return self.find(name).model_validate(settings)

    def chosen(self, value: Any) -> type[C] | None:
        """The class that `value` (an instance, a mapping, a bare name) means; None where it means none."""
        if isinstance(value, self.base):
            return type(value)
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            return None
        try:
            return self.find(str(value.get("kind", self.default)))
        except ConfigError:
            return None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._read,
            serialization=core_schema.plain_serializer_function_ser_schema(
                _plain, info_arg=True, return_schema=core_schema.any_schema()
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        options = []
        for name, found in self.all().items():
            option = dict(handler(found.__pydantic_core_schema__))
            if name != self.default and "properties" in option:  # a mapping without `kind` is the default's
                option["required"] = sorted({*option.get("required", ()), "kind"})
            options.append(option)
        path = {"type": "string", "pattern": ".+:.+"}
        by_path = {"type": "object", "properties": {"kind": path}, "required": ["kind"]}
        names = [{"enum": self.names()}, path] if self.base.brief else []
        return {"anyOf": [*names, *options, by_path]}

    def _read(self, value: Any) -> C:
        if isinstance(value, self.base):
            return value
        if self.base.brief and isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            name = f"a name such as {self.default}, or " if self.base.brief else ""
            raise ValueError(f"expected {name}a mapping, such as {{kind: {self.default}}}")
        kind = value.get("kind", self.default)
        try:
            found = self.find(kind if isinstance(kind, str) else "")
        except ConfigError as error:
            raise self._unknown(kind, error) from None
        return read(found, {**value, "kind": kind} if "kind" in value else value)

    def _unknown(self, kind: object, error: ConfigError) -> Exception:
        if isinstance(kind, str) and ":" in kind:
            return ValueError("; ".join(error.problems))
        if self.base.brief:
            return unknown_name(self.names())
        near = nearest(str(kind), self.names())
        there = "There are" if near else "there are"
        return ValueError(f"kind: got {shown(kind)}; {near}{there} {', '.join(self.names())}")


class Names:
    """Annotation of a text that names something in a folder, or by import path; imports none of it."""

    def __init__(self, folder: Folder[Any]) -> None:
        self._folder = folder

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"enum": self._folder.names()}, {"type": "string", "pattern": ".+:.+"}]}

    def _check(self, name: str) -> str:
        if ":" not in name and name not in self._folder.names():
            raise unknown_name(self._folder.names())
        return name


class OneOf:
    """Annotation of a field that holds an instance of `base`, of one of the classes that `options` gives.

    Validators of the model that has the field make the instance.
    """

    def __init__(self, base: type[Config], options: Callable[[], Iterable[type[Config]]]) -> None:
        self._base = base
        self._options = options

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self._check, serialization=core_schema.simple_ser_schema("any")
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [handler(found.__pydantic_core_schema__) for found in self._options()]}

    def _check(self, value: Any) -> Any:
        if not isinstance(value, self._base):
            raise ValueError(f"expected a mapping, such as {{{next(iter(self._base.model_fields))}: ...}}")
        return value


S = TypeVar("S", bound=Config)


def read(kind: type[S], content: Mapping[str, Any]) -> S:
    """`content` as this class. The error of an unknown key carries in its context the keys that there are."""
    try:
        return kind.model_validate(dict(content))
    except ValidationError as error:
        items = error.errors(include_url=False)
        if not any(item["type"] == UNKNOWN_KEY for item in items):
            raise
        raise ValidationError.from_exception_data(
            error.title, [_told(item, kind) for item in items]
        ) from None


def unknown_name(known: Sequence[str]) -> PydanticCustomError:
    """The error of a name that is none of `known`, as pydantic has it for a `Literal`."""
    *names, last = (repr(name) for name in known)
    expected = f"{', '.join(names)} or {last}" if names else last
    return PydanticCustomError("literal_error", "expected {expected}", {"expected": expected})


def _told(item: ErrorDetails, kind: type[Config]) -> InitErrorDetails:
    told = InitErrorDetails(type=item["type"], loc=item["loc"], input=item["input"], ctx=item.get("ctx", {}))
    if item["type"] == UNKNOWN_KEY:
        known = item.get("ctx", {}).get("known") or fields_at(kind, [str(part) for part in item["loc"][:-1]])
        told["type"] = PydanticCustomError(UNKNOWN_KEY, "unknown key", {"known": known})
    return told


def _plain(value: Component, info: core_schema.SerializationInfo) -> Any:
    """A bare name, or all of it; of settings without their defaults the kind is left, which says whose they
    are.
    """
    if value.bare is not None:
        return value.bare
    if not info.exclude_defaults:
        return value
    return {"kind": value.kind, **value.model_dump(mode=info.mode, exclude_defaults=True)}
