"""Finding a family by name or by import path."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato import families
from sfumato.core.family import FamilyConfig
from sfumato.errors import ConfigError


def test_folders_are_families() -> None:
    folders = {path.parent.name for path in Path(families.__file__).parent.glob("*/__init__.py")}
    assert set(families.names()) == folders
    assert "diffusion" in folders
    for name in folders:
        kind = families.config_class(name)
        assert issubclass(kind, FamilyConfig)
        assert kind.model_fields["family"].default == name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("difusion", "did you mean 'diffusion'"),
        ("zzz", "there are .*diffusion"),
        ("a:", "write it as 'package.module:ClassName'"),
        (":B", "write it as 'package.module:ClassName'"),
        ("no_such_package.model:Config", "'no_such_package'.*cannot be imported"),
        ("sfumato.no_such_module:Config", r"'sfumato\.no_such_module'.*cannot be imported"),
        ("sfumato.errors:Missing", "no class 'Missing'"),
        ("sfumato.errors:ConfigError", "must subclass"),
        ("sfumato:load", "must subclass"),
    ],
)
def test_names_that_are_no_family(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        families.config_class(name)


def test_a_broken_module_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_family_one.py").write_text("import a_module_that_is_not_installed\n")
    (tmp_path / "broken_family_two.py").write_text("1 / 0\n")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_installed"):
        families.config_class("broken_family_one:Config")
    with pytest.raises(ZeroDivisionError):
        families.config_class("broken_family_two:Config")


def test_an_import_path_finds_a_class() -> None:
    kind = families.config_class("sfumato.families.diffusion.config:DiffusionConfig")
    assert kind is families.config_class("diffusion")
    assert families.reference(kind.tiny()) == "diffusion"
