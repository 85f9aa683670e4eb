"""The user's own code that a recipe needs: its module, and the project's modules that it imports.

Imports are read from the source, not run. Modules that are installed are none of our business: the cluster's
environment has to have them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sfumato.errors import ConfigError
from sfumato.runtime.jobs.ignore import Ignored


def sources(module: str, root: Path) -> list[Path]:
    """Files below `root` that importing `module` there needs; none where the module is installed elsewhere.

    Of a package all files count, since code may read what lies beside it. Raises ConfigError where a rule of
    .gitignore or .sfumatoignore excludes what is needed.
    """
    root = root.resolve()
    ignored = Ignored(root)
    found: dict[Path, None] = {}
    names, seen = [module.partition(".")[0]], set[str]()
    while names:
        name = names.pop()
        if name in seen:
            continue
        seen.add(name)
        for file in _files_of(name, root, ignored):
            found[file] = None
            if file.suffix == ".py":
                names += _imported(file)
    return sorted(found)


def _files_of(name: str, root: Path, ignored: Ignored) -> list[Path]:
    """The files of a top-level module of the project."""
    file, folder = root / f"{name}.py", root / name
    place = folder if folder.is_dir() and any(folder.rglob("*.py")) else file
    if not place.exists():
        return []
    if ignored(place):
        raise ConfigError(
            f"the recipe needs {place.relative_to(root)}, which .gitignore or .sfumatoignore excludes from "
            f"being sent: add a line `!{place.relative_to(root)}` to .sfumatoignore"
        )
    if place == file:
        return [file]
    # A link may lead out of the project, where no rule of it counts.
    return [path for path in sorted(folder.rglob("*")) if _is_own(path) and not ignored(path)]


def _is_own(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _imported(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be read as Python: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
