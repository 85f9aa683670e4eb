"""Ray's own processes may be late for as long as they live."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sfumato.runtime.cluster.patience import patience


@pytest.fixture
def raylet(tmp_path: Path) -> Any:
    """A child that looks like the raylet of a cluster in `tmp_path`."""
    program = tmp_path / "raylet" / "raylet"
    program.parent.mkdir()
    program.symlink_to(sys.executable)
    process = subprocess.Popen([str(program), "-c", "import time; time.sleep(600)", str(tmp_path)])
    yield process
    process.kill()
    process.wait()


def test_a_late_raylet_is_asked_again_until_it_ends(
    raylet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import ray_constants, services

    asked = []

    def late(address: str, node: str) -> dict[str, str]:
        asked.append((address, node))
        if len(asked) == 4:
            raylet.kill()
            raylet.wait()
        if len(asked) != 3:
            raise RuntimeError("no such node")
        return {"node": node}

    monkeypatch.setattr(services, "get_node", late)
    before = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
    with patience(tmp_path):
        assert services.get_node("here", "a") == {"node": "a"}
        assert asked == [("here", "a")] * 3
        assert before < ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
        with pytest.raises(RuntimeError, match="no such node"):  # it has ended: nobody waits for it
            services.get_node("here", "b")
    assert (ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S, services.get_node) == (before, late)
