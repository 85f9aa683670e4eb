"""The command line: bad input gets one clear line and status 2, before anything is started."""

from __future__ import annotations

import errno
import json
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import repository
import yaml
from PIL import Image
from tiny_recipe import write_tiny_recipe
from without_rights import as_ordinary_user

from sfumato import cli
from sfumato.data.packing.pack import pack
from sfumato.data.packing.sources.folder import FolderSource
from sfumato.errors import DataError

DIGITS = str(repository.DIGITS)


class Terminal:
    """Runs commands in a folder of their own."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.chdir(folder)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """(status, standard output, standard error)"""
        self._monkeypatch.setattr(sys, "argv", ["sfumato", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = self._capsys.readouterr()
        return int(left.value.code or 0), out, err

    def refused(self, *arguments: str) -> str:
        """The one line that a bad call gets."""
        status, out, err = self(*arguments)
        assert status == 2, err
        assert out == "" and "Traceback" not in err
        assert err.count("error:") == len([line for line in err.splitlines() if "error:" in line]) == 1, err
        return err


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(tmp_path, monkeypatch, capsys)


def picture(path: Path, size: int = 12, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def test_help_and_version(terminal: Terminal) -> None:
    status, out, _ = terminal("--help")
    assert status == 0
    commands = ("run", "train", "evaluate", "compare", "sample", "export", "pack", "recipe", "ui", "doctor")
    for command in commands:
        assert f" {command} " in out
    assert terminal("--version")[1].startswith("sfumato 0.")


def test_unknown_command_and_option(terminal: Terminal) -> None:
    assert "No such command" in terminal.refused("trian", DIGITS)
    assert "--frehs" in terminal.refused("run", DIGITS, "--frehs")


def test_pack_inspects_what_it_is_given(terminal: Terminal) -> None:
    assert "no such folder" in terminal.refused("pack", "nowhere", "out", "--size", "8")
    (terminal.folder / "empty").mkdir()
    assert "no images found" in terminal.refused("pack", "empty", "out")
    picture(terminal.folder / "small" / "a.png", size=6)
    assert "a.png" in terminal.refused("pack", "small", "out", "--size", "8")
    assert "unknown key" in terminal.refused("pack", "digits", "out", "colour=1")
    assert not (terminal.folder / "out").exists()


def test_pack_a_folder_and_again(terminal: Terminal) -> None:
    for label in ("cat", "dog"):
        for number in range(3):
            picture(terminal.folder / "pets" / label / f"{number}.png")
    status, out, _ = terminal("pack", "pets", "data/pets", "--size", "8", "--json")
    assert status == 0
    report = json.loads(out)
    assert (report["samples"], report["image"], report["classes"]) == (6, [3, 8, 8], ["cat", "dog"])
    assert "replace it with --overwrite" in terminal.refused("pack", "pets", "data/pets", "--size", "8")
    assert terminal("pack", "pets", "data/pets", "--size", "8", "--overwrite", "--json")[1] == out


def test_messages_name_what_the_reader_can_set(terminal: Terminal) -> None:
    """A flag on the command line, an argument in Python, a field in a recipe."""
    picture(terminal.folder / "small" / "a.png", size=6)
    picture(terminal.folder / "small" / "b.png", size=6)
    picture(terminal.folder / "small" / "c.png", size=8)
    small = ["small", "out", "--size", "8"]
    assert "leave it out with --on-error skip)" in terminal.refused("pack", *small)
    few = terminal.refused("pack", *small, "--on-error", "skip", "--max-errors", "1")
    assert "2 samples cannot be used, more than --max-errors=1" in few
    source = ["data.path=out", "data.source={kind: folder, path: small, size: 8}"]
    assert "leave it out with data.on_error=skip)" in terminal.refused("train", DIGITS, *source)
    settings = FolderSource(path="small", size=8)
    with pytest.raises(DataError, match="leave it out with on_error='skip'"):
        pack(settings, "out")
    pack(settings, "out", on_error="skip")
    with pytest.raises(DataError, match="replace it with overwrite=True"):
        pack(settings, "out", on_error="skip")
    assert "replace it with --overwrite" in terminal.refused("data", "index", "out")


def test_recipe_commands(terminal: Terminal) -> None:
    assert terminal("recipe", "check", DIGITS)[0] == 0
    assert "name: digits-ddpm" in terminal("recipe", "show", DIGITS)[1]
    assert json.loads(terminal("recipe", "schema")[1])["properties"]["train"]
    assert "did you mean 'images'" in terminal.refused("recipe", "check", DIGITS, "train.imges=1")
    assert "nearest" in terminal.refused("run", DIGITS, "train.batch=100", "train.micro_batch=null")


def test_data_that_is_missing_or_damaged(terminal: Terminal) -> None:
    nothing = ["data.path=data/none", "data.source=null"]
    assert "no manifest.json" in terminal.refused("train", DIGITS, *nothing)
    assert terminal("pack", "digits", "data/digits")[0] == 0
    (shard,) = (terminal.folder / "data" / "digits").glob("*.tar")
    content = bytearray(shard.read_bytes())
    content[600] ^= 1
    shard.write_bytes(content)
    assert "checksum" in terminal.refused("train", DIGITS)
    shard.write_bytes(content[:-512])
    assert "truncated" in terminal.refused("train", DIGITS)


def test_runs_that_are_not_there(terminal: Terminal) -> None:
    assert "no run" in terminal.refused("sample", "nothing", "--out", "x")
    assert "no run" in terminal.refused("evaluate", "nothing")
    assert "no MLflow store" in terminal.refused("ui")


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_recipe_is_looked_at_without_running_the_module_that_it_names(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = "import sys\nfrom sfumato.families.gan import Config\nprint('RUN', file=sys.stderr)\n\n\n"
    body = f"class Mine(Config):\n    family: str = 'looked_at_{command}:Mine'\n"
    (tmp_path / f"looked_at_{command}.py").write_text(code + body)
    recipe = {"name": "x", "data": {"path": "d"}, "train": {"images": 64, "batch": 64}}
    recipe["model"] = {"family": f"looked_at_{command}:Mine"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))

    def called(*arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["sfumato", "recipe", command, "mine.yaml", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, capsys.readouterr().err

    status, err = called()
    assert status == 2 and "with --trust" in err and "RUN" not in err
    status, err = called("--trust")
    assert status == 0 and "RUN" in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x.tar"),
            "/data/x.tar: No space left on device",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "a file that was to be written: No space left"),
        (
            OSError(errno.EROFS, "Read-only file system", "/runs"),
            "/runs: Read-only file system; choose another",
        ),
        (
            OSError(errno.EACCES, "Permission denied", "a/.page.html.0a1b2c3d"),
            "a/page.html: Permission denied",
        ),
    ],
)
def test_a_disk_that_is_full_is_no_defect(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch, sfumato_here: Any
) -> None:
    def fails(**_: object) -> int:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    status, _, err = sfumato_here("doctor")
    assert status == 1 and err.startswith(f"error: {said}") and "defect" not in err
    monkeypatch.setattr(cli, "app", lambda **_: 1 / 0)
    status, _, err = sfumato_here("doctor")
    assert status == 1 and "ZeroDivisionError: division by zero (a defect of Sfumato" in err


@pytest.mark.parametrize(
    ("words", "bytes_", "named"),
    [
        (("pack", "digits", "drawn"), 20_000, "digits-000000.tar: cannot be written: File too large"),
        (("sample", "RUN", "--num", "4", "--out", "drawn"), 200, "drawn: File too large"),
        (("export", "RUN", "drawn"), 3_000, "drawn/ema.safetensors: File too large"),
        (("export", "RUN", "drawn", "--format", "diffusers"), 3_000, "drawn: File too large"),
    ],
)
def test_a_command_on_a_disk_that_takes_no_more_names_the_file(
    words: tuple[str, ...],
    bytes_: int,
    named: str,
    terminal: Terminal,
    earlier_run: Callable[[str, Path], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A limit on the size of files: writing fails as on a full disk, and nothing half-written stays."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep half of a module's for good
    run = str(earlier_run("runs", terminal.folder))
    before = {path.name for path in terminal.folder.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, limits[1]))
    try:
        status, out, err = terminal(*(run if word == "RUN" else word for word in words))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status in (1, 2) and out == "" and named in err and "defect" not in err, err
    assert {path.name for path in terminal.folder.iterdir()} - before <= {".drawn-packing"}


def test_lines_hide_the_credentials_of_places(sfumato_here: Any, tmp_path: Path) -> None:
    status, out, err = sfumato_here("data", "verify", f"odd://me:hunter2@{tmp_path.name}/set?token=hunter3")
    assert status == 2 and "odd://[hidden]@" in err and "hunter" not in out + err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "a.yaml"], "the same command resumes"),
        (["train", "a.yaml", "--fresh"], "the same command without --fresh resumes"),
        (["tune", "a.yaml"], "the same command with --resume resumes"),
        (["tune", "a.yaml", "--fresh"], "the same command with --resume instead of --fresh resumes"),
        (["tune", "--resume-if-any", "a.yaml"], "the same command resumes"),
        (["export", "run", "folder"], "the same command starts anew"),
        (["sample", "run"], "the same command starts anew"),
        (["augment", "data", "more"], "the same command starts anew"),
        (["data", "index", "data"], "the same command starts anew"),
        (["edit", "inpaint", "run"], "the same command resumes"),
    ],
)
def test_an_interrupted_command_says_what_resumes_it(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, sfumato_here: Any
) -> None:
    monkeypatch.setattr(cli, "app", lambda **_: 130)
    status, _, err = sfumato_here(*words)
    assert status == 130 and f"and {said}" in " ".join(err.split())


def test_sigterm_is_heard_by_commands_without_a_cluster(
    monkeypatch: pytest.MonkeyPatch, sfumato_here: Any
) -> None:
    from sfumato.runtime.commands import doctor

    monkeypatch.setattr(doctor, "examine", lambda folder: signal.raise_signal(signal.SIGTERM))
    for sign, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(sign, handler)  # clusters and trainings of other tests leave Ray's
    status, out, err = sfumato_here("doctor")
    assert status == 130 and out == "" and "error: interrupted; nothing half-written is kept" in err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_folders_of_others(terminal: Terminal) -> None:
    """Each command says what cannot be written, by the name that the user gave it."""
    for number in range(3):
        picture(terminal.folder / "pets" / f"{number}.png")
    assert terminal("pack", "pets", "theirs/data", "--size", "8")[0] == 0
    theirs = terminal.folder / "theirs"
    for folder in (theirs, *(path for path in theirs.rglob("*") if path.is_dir())):
        folder.chmod(0o555)
    write_tiny_recipe(
        terminal.folder, "theirs/data", train={"images": 128}, storage="theirs/runs", data={"streams": 1}
    )
    with as_ordinary_user():
        assert "theirs/other: cannot be written" in terminal.refused("pack", "pets", "theirs/other")
        assert "cannot be written" in terminal.refused("data", "index", "theirs/data", "--overwrite")
        assert "theirs/x.png: cannot be written" in terminal.refused(
            "data", "inspect", "theirs/data", "--sheet", "theirs/x.png"
        )
        refused = terminal.refused("train", "tiny.yaml", "tracking.enabled=false")
        assert "no folder can be made there (Permission denied)" in refused
    theirs.chmod(0o755)


def test_a_cluster_that_was_killed_is_no_defect(monkeypatch: pytest.MonkeyPatch, sfumato_here: Any) -> None:
    from ray.exceptions import WorkerCrashedError

    def fails(**_: object) -> int:
        raise WorkerCrashedError

    monkeypatch.setattr(cli, "app", fails)
    status, _, err = sfumato_here("doctor")
    assert status == 1 and err.startswith(
        "error: Ray's processes ended under this command (WorkerCrashedError)"
    )
    assert "The same command resumes" in err and "defect" not in err
