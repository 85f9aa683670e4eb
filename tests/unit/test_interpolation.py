"""Messages about `${...}` name the field and what to do, and none of them names a library's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato import recipe as recipes
from sfumato.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("${oc.env:NOT_SET_HERE}", r"tracking.tags.a: environment variable NOT_SET_HERE is not set; set it"),
        ("${oc.nev:X}", r"tracking.tags.a: \$\{oc.nev:...\} is unknown; there are"),
        ("${no.where}", r"tracking.tags.a: \$\{no.where\} refers to a field that is not there"),
        ("${name", r"tracking.tags.a: the text after \$\{ is not complete"),
        ("${name.deep}", r"tracking.tags.a: .*`name` is not a container"),
    ],
)
def test_what_a_value_refers_to(tmp_path: Path, value: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(f'name: x\ntracking: {{tags: {{a: "{value}"}}}}\n')
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/r.yaml(: | is not valid YAML: ){said}") as raised:
        recipes.read(tmp_path / "r.yaml", [])
    assert "\n" not in str(raised.value) and "full_key" not in str(raised.value)


def test_a_file_that_multiplies_itself(tmp_path: Path) -> None:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdef", "bcdefg", strict=True)]
    (tmp_path / "r.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"anchors and aliases .* more than 10,000 values") as raised:
        recipes.read(tmp_path / "r.yaml", [])
    assert "OMEGACONF" not in str(raised.value)
