"""The families of generators, found by folder: a family is a folder here that exposes `Config`.

A recipe names a built-in family by its folder (`diffusion`) or a user's own family by import path
(`my_package.my_module:MyConfig`), so that users add families without touching this package.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from sfumato.core.family import FamilyConfig
from sfumato.core.finding import import_path, imported
from sfumato.errors import ConfigError


def names() -> list[str]:
    """The built-in families, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def config_class(name: str) -> type[FamilyConfig]:
    """The configuration class of a family.

    `name` is a built-in family or `package.module:ClassName`. The latter imports the user's module, that
    is, runs its code. A broken module raises its own error: it is never hidden.

    Raises:
        ConfigError: nothing has this name, or it is not a family's configuration.
    """
    if ":" in name:
        return _checked(imported(name), name)
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no family is called {name!r}; {hint} (your own: 'package.module:ClassName')")
    return _checked(importlib.import_module(f"{__name__}.{name}").Config, f"families.{name}:Config")


def reference(config: FamilyConfig) -> str:
    """The name by which `config_class` finds the class of `config`."""
    kind = type(config)
    if config.family in names() and config_class(config.family) is kind:
        return config.family
    return import_path(kind)


def _checked(found: object, path: str) -> type[FamilyConfig]:
    if not (isinstance(found, type) and issubclass(found, FamilyConfig)):
        raise ConfigError(f"{path!r} is not a family; it must subclass sfumato.core.family.FamilyConfig")
    return found
