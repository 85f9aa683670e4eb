"""SIGTERM in the middle of a command that writes: status 130, nothing half-written, the same command again.

`pack`, `sample`, `evaluate`, `train` and pipelines (`test_pipeline_killed.py`) have tests of their own.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfumato.data.format.manifest import Manifest

Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def terminated(monkeypatch: pytest.MonkeyPatch, sfumato_here: Here) -> Callable[..., None]:
    """Ends a command by SIGTERM after a call of `owner.name`; the command given again succeeds."""

    def called(owner: Any, name: str, *arguments: str, left: Callable[[], object] = lambda: None) -> None:
        real = getattr(owner, name)

        def last(*given: Any, **options: Any) -> Any:
            real(*given, **options)
            signal.raise_signal(signal.SIGTERM)

        for sign, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            signal.signal(sign, handler)  # clusters and trainings of other tests leave Ray's
        monkeypatch.setattr(owner, name, last)
        status, out, err = sfumato_here(*arguments)
        assert status == 130 and out == "" and "error: interrupted; nothing half-written is kept" in err
        assert "SIGTERM received" not in err or err.index("SIGTERM") < err.index("interrupted")
        left()
        monkeypatch.setattr(owner, name, real)
        status, _, err = sfumato_here(*arguments)
        assert status == 0, err

    return called


@pytest.mark.parametrize("kind", ["safetensors", "diffusers"])
def test_export(
    kind: str,
    earlier_run: Callable[[str, Path], Path],
    terminated: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the middle: the weights are there, the card is not. The second call finds no folder in its way."""
    from sfumato.runtime.commands import sample

    run = earlier_run("runs", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())

    def nothing() -> None:
        assert sorted(tmp_path.iterdir()) == before

    terminated(sample, "export_card", "export", str(run), "out", "--format", kind, left=nothing)
    assert (tmp_path / "out" / "README.md").is_file()


def test_index(
    digits_data: Path, terminated: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first index: without a manifest it is no data set yet."""
    from sfumato.data.packing import index_existing

    folder = tmp_path / "tars"
    folder.mkdir()
    for shard in digits_data.glob("*.tar"):
        shutil.copy(shard, folder)

    def nothing() -> None:
        assert not Manifest.exists(folder)

    terminated(index_existing, "_save", "data", "index", str(folder), left=nothing)
    assert Manifest.load(folder).samples == Manifest.load(digits_data).samples
