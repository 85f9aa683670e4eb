"""A second `train` of a run that a living process works on ends before anything is started."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_recipe import write_tiny_recipe

from sfumato.runtime.runs.live import FILE, Owner


def test_the_second_of_two_commands_is_refused(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sfumato_here: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_recipe(tmp_path, digits_data, train={"images": 128}, tracking={"enabled": False})
    status, _, err = sfumato_here("evaluate", "tiny.yaml")
    assert status != 0 and "has no trained model yet" in err
    (run,) = tmp_path.glob("runs/tiny-*")
    parent = psutil.Process(os.getppid())
    other = replace(Owner.here(), pid=parent.pid, started=parent.create_time())
    (run / FILE).write_text(json.dumps(asdict(other)))
    for command in ("train", "run"):
        status, _, err = sfumato_here(command, "tiny.yaml")
        assert status == 2 and err.count("error:") == 1
        assert f"process {parent.pid} on {other.host} is working on {run.name}" in err
        assert "--take-over" in err
    assert json.loads((run / FILE).read_text()) == asdict(other)
    _, _, err = sfumato_here("evaluate", "tiny.yaml")
    assert "has no trained model yet" in err, "measuring needs no run of its own"
