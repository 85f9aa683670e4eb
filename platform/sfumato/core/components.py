"""Configuration fields that hold one of several components: objectives, networks, losses, samplers.

A component is a subclass of `Component`. It has its own module in the folder of its kind, and the module
names it in `COMPONENT`:

    # networks/dit/__init__.py; a small one is a single file, networks/dit.py
    class DiTConfig(NetworkConfig):
        kind: Literal["dit"] = Field("dit", description="Selects DiT.")
        width: int = Field(384, ge=1, description="Channels of a token.")

        def build(self, data: DataSpec) -> nn.Module: ...

    COMPONENT = DiTConfig

The folder's `__init__` defines the interface of its components. Every other module is one component; recipes
choose it by the module's name. The configuration that uses them declares:

    NETWORKS: Components[NetworkConfig] = Components("...diffusion.networks", NetworkConfig, default="unet")

    network: Annotated[NetworkConfig, NETWORKS] = Field(UNetConfig(), description="...")

To add a component, add one file to the folder. A recipe may also name a user's own class by its import path,
`kind: "my_package.my_module:MyNetwork"`. Modules are imported only when they are chosen.
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
"""Pydantic's type of this error; it is kept because the code that explains errors relies on it."""


class Component(Config):
    """A part that a recipe chooses by `kind`: a built-in name, or the import path of any other class."""

    brief: ClassVar[bool] = False
    """Whether a bare name may stand for a component with default settings; a base sets it for its kind."""
    kind: str = Field("", description="Which one: a built-in name, or package.module:ClassName.")

    @field_validator("kind", mode="before")
    @classmethod
    def _own_path(cls, given: Any) -> Any:
        return given or import_path(cls)

    @property
    def bare(self) -> str | None:
        """The name that describes it completely, if one does."""
        return self.kind if self.brief and self == type(self)(kind=self.kind) else None

    @classmethod
    def tiny(cls) -> Self:
        """The smallest real instance; contract and parity tests train it."""
        return cls()


C = TypeVar("C", bound=Component)


class Components(Generic[C]):
    """The components of one kind, used as the annotation of a field that holds one of them.

    `package` is their folder, `base` their base class, `default` the name that a mapping without `kind`
    means; without a default, `kind` is required. If the base is `brief`, a recipe may give a bare name,
    and a component with default settings is shown as its bare name.
    """

    def __init__(
        self,
        package: str,
        base: Any,
        *,
        default: str = "",
        spelling: Mapping[str, str] | None = None,
    ) -> None:
        """`spelling` maps modules to the names in recipes, if these are not valid names of modules."""
        self.folder: Folder[type[C]] = Folder(package, "COMPONENT", base, spelling)
        self.base: type[C] = base
        self.default = default

    def names(self) -> list[str]:
        """The names of the built-in components; imports none of them."""
        return self.folder.names()

    def find(self, name: str) -> type[C]:
        """A built-in class by its name, or any by its import path. Raises ConfigError if there is none."""
        return self.folder.find(name)

    def all(self) -> dict[str, type[C]]:
        """Every built-in class by name, imported."""
        return self.folder.all()

    def make(self, name: str, **settings: Any) -> C:
        """One of them with these settings."""
        return self.find(name).model_validate(settings)

    def chosen(self, value: Any) -> type[C] | None:
        """The class that `value` (an instance, a mapping or a bare name) selects; None if it selects none."""
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
            if name != self.default and "properties" in option:  # without `kind`, a mapping means the default
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
            usual = self.default or self.names()[0]
            name = f"a name such as {usual}, or " if self.base.brief else ""
            raise ValueError(f"expected {name}a mapping, such as {{kind: {usual}}}")
        if "kind" not in value and not self.default:
            raise PydanticCustomError("union_tag_not_found", "kind is missing", {"discriminator": "kind"})
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
    """Annotation of a text that names something in a folder, or by import path; imports nothing."""

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
    """Annotation of a field that holds a `base`: an instance of one of the classes that `options` returns.

    Validators of the model that has the field create the instance.
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
    """`content` as this class. The context of the error for an unknown key lists the known keys."""
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
    """The error for a name that is not in `known`, in the form that pydantic uses for a `Literal`."""
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
    """The bare name, or the whole component; without defaults, the kind stays to identify the settings."""
    if value.bare is not None:
        return value.bare
    if not info.exclude_defaults:
        return value
    return {"kind": value.kind, **value.model_dump(mode=info.mode, exclude_defaults=True)}
