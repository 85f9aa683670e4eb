"""How values of options are read."""

from __future__ import annotations

import pytest

from sfumato.cli.arguments import structured
from sfumato.errors import ConfigError


def test_lists_and_mappings_are_yaml_and_all_else_is_text() -> None:
    given = ["guide={run: small, network: ema}", "guidance_interval=[0.2, 3]", "guidance=1.5", "name=a{b"]
    assert structured(given) == {
        "guide": {"run": "small", "network": "ema"},
        "guidance_interval": [0.2, 3],
        "guidance": "1.5",
        "name": "a{b",
    }


def test_a_broken_mapping_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"guide: .* is not YAML") as caught:
        structured(["guide={run: small"])
    assert "\n" not in str(caught.value)
