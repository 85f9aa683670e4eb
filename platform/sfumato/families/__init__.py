"""The families of generators, found by folder: a family is a folder here that exposes `Config`.

A recipe names a built-in family by its folder (`diffusion`) or a family of its own by import path
(`my_package.my_module:MyConfig`), so that users add families without touching this package.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from sfumato.core.family import FamilyConfig
from sfumato.errors import ConfigError


def names() -> list[str]:
    """The built-in families, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)


def config_class(name: str) -> type[FamilyConfig]:
    """The configuration class of a family.

    `name` is a built-in family or `package.module:ClassName`. The latter imports the user's module, that
    is, runs its code. A broken module raises its own error: it is never hidden.

    Raises:
        ConfigError: nothing goes by this name, or what does is not a family's configuration.
    """
    if ":" in name:
        return _imported(name)
    known = names()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ConfigError(f"no family is called {name!r}; {hint} (your own: 'package.module:ClassName')")
    return _checked(importlib.import_module(f"{__name__}.{name}"), "Config", f"families.{name}:Config")


def reference(config: FamilyConfig) -> str:
    """The name that `config_class` finds the class of `config` by."""
    kind = type(config)
    if config.family in names() and config_class(config.family) is kind:
        return config.family
    return f"{kind.__module__}:{kind.__qualname__}"


def _imported(path: str) -> type[FamilyConfig]:
    module_name, _, class_name = path.partition(":")
    if not module_name or not class_name:
        raise ConfigError(f"got {path!r}; write it as 'package.module:ClassName'")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A module that the user's own module fails to find is an error in that module, and shows as one.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"module {error.name!r} of {path!r} cannot be imported; install it in this "
            "environment or put its folder on PYTHONPATH"
        ) from error
    return _checked(module, class_name, path)


def _checked(module: object, class_name: str, path: str) -> type[FamilyConfig]:
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"{path!r} was imported but has no class {class_name!r}")
    if not (isinstance(found, type) and issubclass(found, FamilyConfig)):
        raise ConfigError(f"{path!r} is not a family; it must subclass sfumato.core.family.FamilyConfig")
    return found
