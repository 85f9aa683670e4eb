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
from itertools import chain
from pathlib import Path

import import_circles
import pytest
from repository import ROOT

from sfumato.core.config import Config

ABOUT_SEVERAL = {
    Path(file)
    for file in (
        "data/reading/test_imports.py",
        "data/reading/test_invariance.py",
        "evaluation/test_likelihood.py",
        "families/diffusion/test_pretrained.py",
        "families/test_amounts.py",
        "runtime/jobs/test_sending.py",
        "runtime/pipeline/test_decisions.py",
        "runtime/runs/test_auto_features.py",
        "runtime/runs/test_pace.py",
        "sampling/test_adapters.py",
        "sampling/test_state.py",
        "test_coupled_rows.py",
        "test_imports.py",
    )
}
"""Unit tests of what several modules of a room do together, or of one trait of a module."""
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


def test_no_modules_import_one_another_in_a_circle(capsys: pytest.CaptureFixture[str]) -> None:
    assert import_circles.imports(PACKAGE).keys() >= set(MODULES), "every module is looked at"
    assert import_circles.main() == 0, capsys.readouterr().err


def test_circles_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of three in a row, of two, of three in a circle; for annotations, but not in functions."""
    circles = import_circles.circles
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == [["a", "b"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"c"}}) == [["a", "b", "c"]]

    package = tmp_path / "house"
    (package / "room").mkdir(parents=True)
    (package / "__init__.py").write_text("from house.room import door\n")
    (package / "room" / "__init__.py").write_text("WALLS = 4\n")
    (package / "room" / "door.py").write_text("def late():\n    from house.room import key\n")
    (package / "room" / "key.py").write_text("from house.room import WALLS, door\n")
    assert import_circles.main(package) == 0
    (package / "room" / "door.py").write_text("if TYPE_CHECKING:\n    from house.room.key import Key\n")
    assert import_circles.main(package) == 1
    assert "these import one another: house.room.door, house.room.key\n" in capsys.readouterr().err


def test_layout() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow Python's platform module"
    assert not (ROOT / "tests" / "platform").exists()
    assert not list((ROOT / "tests").rglob("__init__.py"))
    vague = {"utils", "util", "helpers", "helper", "common", "misc"}
    files = [*PACKAGE.rglob("*"), *(ROOT / "tests").rglob("*")]
    assert [file for file in files if file.stem in vague] == []


def test_unit_tests_mirror_the_package() -> None:
    """A test is named after the module or package that it tests, and lies in the room of the same name."""
    unit = ROOT / "tests" / "unit"
    files = {file.relative_to(unit) for file in unit.rglob("test_*.py")}
    own = {file for file in files if file.parts[0] in ("infra", "k8s")}
    strays = [
        str(file)
        for file in sorted(files - own - ABOUT_SEVERAL)
        if not _tested(PACKAGE / file.parent, file.stem.removeprefix("test_"))
    ]
    assert strays == []
    assert sorted(map(str, ABOUT_SEVERAL - files)) == [], "these are gone"


def _tested(room: Path, name: str) -> bool:
    package = room / name if room.name != name else room
    return (room / f"{name}.py").is_file() or (package / "__init__.py").is_file()


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
