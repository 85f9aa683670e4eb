"""Finds the classes in a folder, one per module, and users' own classes by import path.

A module that fails to import raises its error here: nothing is skipped. Modules therefore import optional
packages inside the functions that need them.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

from sfumato.errors import ConfigError

T = TypeVar("T")
ALLOW = "allow that with trust=True, on the command line with --trust"
"""What to do if an import path is refused."""
_trusted: ContextVar[bool] = ContextVar("trusted", default=True)


@contextmanager
def built_in_only(only: bool = True) -> Iterator[None]:
    """Refuse import paths inside the block: they run code, and the content read there is from elsewhere."""
    token = _trusted.set(_trusted.get() and not only)
    try:
        yield
    finally:
        _trusted.reset(token)


class Folder(Generic[T]):
    """The modules of a package, each with one class under the name `attribute`, and such classes elsewhere.

    `base` is their base class. Modules and packages whose name begins with an underscore do not count.
    """

    def __init__(
        self, package: str, attribute: str, base: Any, spelling: Mapping[str, str] | None = None
    ) -> None:
        """`spelling` maps modules to the names they are found by, if the two differ."""
        self.package = package
        self._spelling = dict(spelling or {})
        self._attribute = attribute
        self._base = base

    def names(self) -> list[str]:
        """The names in the folder, sorted; imports nothing."""
        spec = importlib.util.find_spec(self.package)
        assert spec is not None, self.package
        assert spec.submodule_search_locations is not None, self.package
        found = (module.name for module in pkgutil.iter_modules(spec.submodule_search_locations))
        return sorted(self._spelling.get(name, name) for name in found if not name.startswith("_"))

    def find(self, name: str) -> T:
        """A built-in class by its module's name, or any by `package.module:ClassName`, which runs the module.

        Raises ConfigError for an unknown name, and for a class that does not derive from the base.
        """
        if ":" in name:
            return self._checked(imported(name), name)
        if name not in self.names():
            known = self.names()
            near = nearest(name, known) or f"there are {', '.join(known)} "
            raise ConfigError(f"got {name!r}; {near}(your own: 'package.module:ClassName')")
        module = self._module(name)
        return self._checked(
            getattr(module, self._attribute, None), f"{self.package}.{name}:{self._attribute}"
        )

    def all(self) -> dict[str, T]:
        """Everything in the folder by name, imported."""
        return {name: self.find(name) for name in self.names()}

    def reference(self, found: type) -> str:
        """The name by which `find` returns this class."""
        for name in self.names():
            if found.__module__.startswith(f"{self.package}.{self._file(name)}") and self.find(name) is found:
                return name
        return import_path(found)

    def _module(self, name: str) -> ModuleType:
        return importlib.import_module(f"{self.package}.{self._file(name)}")

    def _file(self, name: str) -> str:
        return next((file for file, spelt in self._spelling.items() if spelt == name), name)

    def _checked(self, found: Any, path: str) -> T:
        if not (isinstance(found, type) and issubclass(found, self._base)):
            base = f"{self._base.__module__}.{self._base.__qualname__}"
            raise ConfigError(f"{path!r} cannot be used here; it must subclass {base}")
        return found  # type: ignore[return-value]


def imported(path: str) -> Any:
    """The object that `package.module:Name` names. Imports the user's module, which runs its code.

    A broken module raises its own error, which is never hidden.

    Raises:
        ConfigError: no such module or name, or the path comes from elsewhere and is not trusted.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name:
        raise ConfigError(f"got {path!r}; write it as 'package.module:ClassName'")
    if not _trusted.get():
        raise ConfigError(f"{path!r} is not part of Sfumato; loading it runs its code: {ALLOW}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If the user's own module fails to find another, the error is in that module and is shown unchanged.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"module {error.name!r} of {path!r} cannot be imported; install it in this "
            "environment or put its folder on PYTHONPATH"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise ConfigError(f"{path!r} was imported but has no class {name!r}")
    return found


def import_path(found: type) -> str:
    """`package.module:ClassName` of a class."""
    return f"{found.__module__}:{found.__qualname__}"


def paths_in(content: Any) -> Iterator[str]:
    """Every import path among the values of plain data, at any depth."""
    if isinstance(content, str):
        module, colon, name = content.partition(":")
        if colon and name.isidentifier() and all(part.isidentifier() for part in module.split(".")):
            yield content
    elif isinstance(content, Mapping):
        for value in content.values():
            yield from paths_in(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from paths_in(value)


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean 'x'? `, or nothing if no name is close."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}? " if near else ""


class Named(Protocol):
    """Anything with a name."""

    name: str


M = TypeVar("M", bound=Named)


class Members(Generic[M]):
    """Several named objects per module: all that the modules of a package list in a tuple `attribute`."""

    def __init__(self, package: str, attribute: str) -> None:
        self.package = package
        self.attribute = attribute

    def all(self) -> dict[str, M]:
        """By name, in the order of the modules' names. Raises ValueError if two have the same name."""
        found: dict[str, M] = {}
        for name in Folder(self.package, self.attribute, object).names():
            module = importlib.import_module(f"{self.package}.{name}")
            for member in getattr(module, self.attribute, ()):
                if member.name in found:
                    raise ValueError(f"{self.package} has two members called {member.name!r}")
                found[member.name] = member
        return found

    def imported(self, path: str, methods: Iterable[str]) -> M:
        """The member at an import path: an instance, or a class, which is instantiated.

        Raises ConfigError if it has none of the `methods` of such members.
        """
        found = imported(path)
        member: M = found() if isinstance(found, type) else found
        if not any(callable(getattr(member, method, None)) for method in methods):
            raise ConfigError(f"{path!r} cannot be used here; it needs {' or '.join(methods)}")
        return member


def unknown_names(field: str, names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    """One line per unknown name, with the closest known one."""
    return [
        f"{field}: no {name!r}; {nearest(name, known, 0.4)}known: {', '.join(known)}"
        for name in names
        if name not in known
    ]
