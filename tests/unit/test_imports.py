"""The shape of the package: who may import whom, that all of it loads, that settings are described."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

import pytest
from repository import ROOT

from sfumato.core.config import Config

PACKAGE = ROOT / "platform" / "sfumato"
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "sfumato.")
    if not module.name.endswith("__main__")
)


def imported(file: Path) -> Iterator[str]:
    """The top-level names of what a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def configs() -> list[type[Config]]:
    for name in MODULES:
        importlib.import_module(name)
    found, waiting = [], [Config]
    while waiting:
        subclasses = waiting.pop().__subclasses__()
        waiting += subclasses
        found += [cls for cls in subclasses if cls.__module__.startswith("sfumato.")]
    return found


def is_base(cls: type[Config]) -> bool:
    """Whether no recipe holds an instance of it."""
    return inspect.isabstract(cls) or cls.__name__.startswith("_")


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__, f"{name} has no docstring"


def test_import_contracts_hold() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [lint, "--no-cache"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_core_imports_torch_and_pydantic_alone() -> None:
    allowed = {"torch", "pydantic", "pydantic_core", "sfumato"} | set(sys.stdlib_module_names)
    strangers = {
        f"{file.name}: {name}"
        for file in (PACKAGE / "core").glob("*.py")
        for name in imported(file)
        if name not in allowed
    }
    assert not strangers


def test_heavy_dependencies_load_on_use() -> None:
    """`sfumato --help` and a recipe check should not wait for Ray and MLflow."""
    code = (
        "import sys, sfumato.cli\n"
        "print(*sorted({'ray', 'mlflow', 'diffusers', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []


def test_every_setting_is_described() -> None:
    found = configs()
    assert found
    silent = [
        f"{cls.__module__}.{cls.__name__}.{name}"
        for cls in found
        for name, field in cls.model_fields.items()
        # A discriminator has one value and explains itself; bases are completed by their subclasses.
        if not field.description and name not in {"family", "kind"} and not is_base(cls)
    ]
    assert not silent


def test_no_modules_import_one_another_in_a_circle() -> None:
    """Neither when they are imported nor for annotations: a circle is two modules that are one."""
    files = {name: Path(spec.origin) for name in MODULES if (spec := find_spec(name)) and spec.origin}
    uses = {name: used_by(file, name) & files.keys() for name, file in files.items()}
    assert circles(uses) == []


def test_circles_are_found() -> None:
    """Of three in a row, two in a circle, and one that uses itself by way of two others."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [["a", "b"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"c"}}) == [["a", "b", "c"]]


def used_by(file: Path, name: str) -> set[str]:
    """What a module imports at its top level, `if TYPE_CHECKING:` included: modules or names in them."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(ast.parse(file.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            # A package is used by whoever takes from it what is no module of its own.
            found |= inner if inner <= set(MODULES) else inner | {node.module}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.expr):
            waiting += ast.iter_child_nodes(node)
    return found - {name}


def circles(uses: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that all use one another, by way of others or not."""
    reach: dict[str, set[str]] = {}
    for start in uses:
        seen, waiting = set[str](), [start]
        while waiting:
            for used in uses[waiting.pop()] - seen:
                seen.add(used)
                waiting.append(used)
        reach[start] = seen
    found = {frozenset(a for a in reach[b] if b in reach[a]) for b in reach}
    return sorted(sorted(circle) for circle in found if circle)


def test_layout() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow Python's platform module"
    assert not (ROOT / "tests" / "platform").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    files = [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*")]
    assert [file for file in files if file.stem in vague] == []


def test_direct_dependencies_are_locked() -> None:
    locked = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    names = {
        requirement.split("[")[0].split(">")[0].split("=")[0].lower().replace("_", "-")
        for requirement in wanted
    }
    assert sorted(names - locked) == []
