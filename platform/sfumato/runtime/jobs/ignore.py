"""Decides what may leave this machine: nothing that .gitignore or .sfumatoignore excludes.

Both are read in every folder from the project's root down, as git does; rules of .sfumatoignore count after
those of .gitignore, so a line `!path` there lets something through.
"""

from __future__ import annotations

from pathlib import Path

import pathspec

FILES = (".gitignore", ".sfumatoignore")
_NEVER = ("__pycache__/", "*.pyc", ".git/", ".venv/", "*.egg-info/")


class Ignored:
    """Says of a path below `root` whether it is excluded."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()
        self._top = _top_of(self._root)
        self._rules: dict[Path, pathspec.GitIgnoreSpec] = {}

    def __call__(self, path: Path) -> bool:
        """Whether the absolute path, below the root, or a folder that it lies in, is excluded."""
        chain = [path, *path.parents]
        below = chain[: chain.index(self._top)]
        return any(self._matches(place, is_dir=place != path or path.is_dir()) for place in reversed(below))

    def _matches(self, path: Path, *, is_dir: bool) -> bool:
        # The rules nearest to the path decide, where they say anything of it.
        for folder in path.parents:
            name = path.relative_to(folder).as_posix() + ("/" if is_dir else "")
            said = self._spec(folder).check_file(name).include
            if said is not None:
                return said
            if folder == self._top:
                break
        return False

    def _spec(self, folder: Path) -> pathspec.GitIgnoreSpec:
        if folder not in self._rules:
            lines = list(_NEVER) if folder == self._top else []
            for name in FILES:
                if (folder / name).is_file():
                    lines += (folder / name).read_text(errors="replace").splitlines()
            self._rules[folder] = pathspec.GitIgnoreSpec.from_lines(lines)
        return self._rules[folder]


def _top_of(root: Path) -> Path:
    """The repository that holds the folder, whose rules count too; the folder itself where there is none."""
    for folder in (root, *root.parents):
        if (folder / ".git").exists():
            return folder
    return root
