"""What every test relies on: one thread a process, a quiet loopback-only Ray, and packed real data."""

from __future__ import annotations

import gc
import os
import sys

# Read when torch, NumPy and Ray load, so before any of them is imported.
os.environ.update(
    {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.3",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # three tests at once on two cores start slowly
        "RAY_agent_register_timeout_ms": "120000",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }
)

# Packages are installed without bytecode (Makefile). Where the environment forbids to write any, each process
# that a test starts would compile all of torch and Ray anew: more work than most tests are.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import janitor
import pytest
import torch
from cpu_seconds import CpuSeconds

torch.set_num_threads(1)
# Commands that a test calls in this process would give torch all cores, for good. Where other tests use these
# cores, too, threads that wait for one another cost up to 50 times what one thread does, in every later test.
torch.set_num_threads = lambda number: None


# The groups that take longest start first, so that the last one does not leave a process idle.
_LONGEST = (
    "ray",
    "commands that start Ray",
    "ranks",
    "tests/integration/",
)
_CHAINS = 3
"""The first of them: each is one process's, test after test, and they end last."""
_START_RAY = {
    "tests/e2e/test_digits.py",
    "tests/integration/test_earlier_runs.py",
    "tests/integration/test_jobs.py",
    "tests/integration/test_train_failures.py",
}
"""Commands in processes of their own, each with a cluster of its own: they wait more than they compute."""


def group_of(nodeid: str) -> str:
    """The tests that run in one process, one after another, since they share what is expensive to make.

    These are the tests of a file, for its fixtures; those of all files that use `ray_local`, for its cluster;
    those that train on ranks, for the process that forks these and for the references; and those of commands
    that start Ray, so that a third process computes while two wait for their clusters.
    """
    file = nodeid.partition("::")[0]
    if file in _START_RAY:
        return "commands that start Ray"
    if file.startswith(("tests/parity/", "tests/examples/")):
        return "ranks"
    return "ray" if _uses_ray(file) else file


@cache
def _uses_ray(file: str) -> bool:
    return "ray_local" in (Path(__file__).parents[1] / file).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand out whole groups. The marks of `--dist loadgroup` have no effect with pytest 9.2."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return Groups(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cpu-seconds",
        type=int,
        metavar="N",
        help="list the N tests that took the most CPU time, all processes that they started included",
    )


def pytest_configure(config: pytest.Config) -> None:
    if int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) >= _CHAINS:
        os.nice(10)  # computes while the chains wait, and does not hold them up
    if shown := config.getoption("cpu_seconds"):
        config.pluginmanager.register(CpuSeconds(shown))
    if not config.getoption("numprocesses", None):  # what hands tests out to others starts nothing itself
        janitor.begin()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _place(group_of(item.nodeid)))


def pytest_collection_finish() -> None:
    """What is imported by now stays: the garbage collector need not look through it ever again."""
    gc.collect()
    gc.freeze()


def _place(group: str) -> int:
    """Where a group stands among those that take long."""
    return next((n for n, start in enumerate(_LONGEST) if group.startswith(start)), len(_LONGEST))


@pytest.fixture
def sfumato_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """A command in this process and folder: (status, standard output, standard error).

    A test uses it wherever start-up, signals and the end of a process are not what it is about.
    """
    from sfumato import cli

    def called(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sfumato", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return called


@pytest.fixture(scope="session")
def ray_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The private cluster that commands open, with four logical CPUs: two workers leave Ray Data some."""
    from sfumato.runtime.cluster import forking, ray_cluster

    with ray_cluster.cluster(4, tmp_path_factory.mktemp("ray"), modules=forking.TRAINING):
        yield


@pytest.fixture(scope="session")
def digits_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scikit-learn's 1,797 handwritten digits, packed as `sfumato pack` does it."""
    from sfumato.data.packing.pack import pack
    from sfumato.data.packing.sources.digits import DigitsSource

    folder = tmp_path_factory.mktemp("data") / "digits"
    pack(DigitsSource(), folder)
    return folder


@pytest.fixture(scope="session")
def earlier_run() -> Callable[[str, Path], Path]:
    """`earlier_run(kind, root)` makes a project at `root` with the data, the recipe and one run of version
    0.1 from tests/data/runs-0.1, "runs" (finished) or "interrupted"; the run's folder, in `root/runs`."""
    import lzma
    import shutil

    old = Path(__file__).parent / "data" / "runs-0.1"

    def put(kind: str, root: Path) -> Path:
        shutil.copytree(old / "data", root / "data")
        shutil.copy(old / "recipe.yaml", root)
        (made,) = (old / kind).iterdir()
        run = Path(shutil.copytree(made, root / "runs" / made.name))
        for file in [*run.glob("*.yaml"), *run.glob("stages/*.json")]:
            text = file.read_text().replace("{project}/interrupted", "{project}/runs")
            file.write_text(text.replace("{project}", str(root.resolve())))
        for packed in [*run.rglob("*.xz")]:
            packed.with_suffix("").write_bytes(lzma.decompress(packed.read_bytes()))
            packed.unlink()
        return run

    return put


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights and a tokenizer of three letters, as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    from library_folders import save_clip_tokenizer

    from sfumato.core.rng import seeded

    folder = tmp_path_factory.mktemp("clip")
    save_clip_tokenizer(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **small,
            "vocab_size": 8,
            "max_position_embeddings": 10,
            "eos_token_id": 7,
            "bos_token_id": 6,
        },
        vision_config={**small, "image_size": 28, "patch_size": 14},
        projection_dim=12,
    )
    with seeded(0, "clip"):
        transformers.CLIPModel(config).save_pretrained(folder)
    return folder
