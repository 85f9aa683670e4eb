"""From a recipe to Ray Train: workers, streams of data, failures, progress."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig

from sfumato import errors
from sfumato.data.format.manifest import Manifest
from sfumato.data.reading.ray_reader import RankStreams
from sfumato.errors import TrainingError, WorkersLost
from sfumato.recipe import Recipe
from sfumato.runtime.cluster import ray_cluster
from sfumato.runtime.runs.display import Display
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training import progress_actor as boards
from sfumato.runtime.training import watchdog
from sfumato.runtime.training.beside import beside
from sfumato.runtime.training.introduce import Introduce
from sfumato.runtime.training.job import TrainJob, train_worker
from sfumato.runtime.training.preemption import SaveBeforeResize
from sfumato.runtime.training.trainer import Trainer
from sfumato.runtime.training.validation import TrainingEvaluations
from sfumato.tracking.run import TrackerHandle

_POLL_S = 0.5

Watch = Callable[[boards.Snapshot], None]
"""Receives the progress of training regularly while it runs."""


def fit(
    recipe: Recipe,
    folder: RunFolder,
    tracker: TrackerHandle,
    display: Display,
    *,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Train the recipe to its end on the connected cluster; resumes from the run's newest checkpoint.

    Returns rank 0's summary. Raises the SfumatoError that a worker met, or WorkersLost when workers were lost
    more often than `parallel.max_failures`. Whoever has `watch` can end the run by the snapshot's controller.
    """
    parallel = recipe.parallel
    ray_cluster.patience(parallel)
    ray_cluster.check_custom_resources(parallel)
    manifest = Manifest.load(recipe.data.path)
    board = boards.create(folder.id)
    job = TrainJob(
        recipe=recipe.model_dump(mode="json"),
        run_path=str(folder.path),
        threads=ray_cluster.threads_per_worker(parallel, ray_cluster.cores()),
        board=board,
        tracker=tracker,
        notices=parallel.elastic or ray_cluster.may_lose_nodes(),
    )
    callbacks = [
        *([Introduce(board)] if watch else []),
        *([SaveBeforeResize(board)] if parallel.elastic else []),
    ]
    resources = {"CPU": parallel.cpus_per_worker, **parallel.resources_per_worker}
    if parallel.gpus_per_worker:
        resources["GPU"] = parallel.gpus_per_worker
    streams = RankStreams(recipe.data, manifest, recipe.seed, cpus_per_worker=parallel.cpus_per_worker)
    trainer = Trainer(
        cast(Any, train_worker),  # typed as if it could not return anything
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if parallel.gpus_per_worker else "gloo"),
        scaling_config=cast(Any, ScalingConfig)(  # typed as that of Ray Train's first version
            num_workers=(parallel.least_workers, parallel.workers) if parallel.elastic else parallel.workers,
            elastic_resize_monitor_interval_s=parallel.resize_interval,
            use_gpu=parallel.gpus_per_worker > 0,
            resources_per_worker=resources,
        ),
        run_config=RunConfig(
            # A fresh name each time: our own checkpoints alone decide where to resume.
            name=f"{folder.id}-{time.time_ns():x}",
            storage_path=str(folder.logs / "ray_train"),
            failure_config=FailureConfig(max_failures=parallel.max_failures),
            callbacks=cast(Any, callbacks),
        ),
        datasets={**streams.datasets},
        dataset_config=streams,
        # Whoever watches may run several trainings on one cluster.
        alone=watch is None and not ray_cluster.may_lose_nodes(),
    )
    with TrainingEvaluations(recipe, folder, tracker, display, board):
        stuck = watchdog.watching(board, parallel.hang_timeout)
        with _watching(board, display, watch), stuck, _ctrl_c_as_usual():
            try:
                result = trainer.fit()
            except ray.train.TrainingFailedError as error:
                _raise_user_error(board)
                raise WorkersLost(_explain(error, folder.logs)) from error
        _raise_user_error(board)
        summary = getattr(result, "return_value", None)
        if not isinstance(summary, dict):
            raise TrainingError(f"training ended without a result; Ray's logs are in {folder.logs}")
        return summary


@contextlib.contextmanager
def _ctrl_c_as_usual() -> Iterator[None]:
    """Ray Train puts a handler of its own in place, which ends the run in order and then exits the process.

    The order is welcome; the exit becomes the KeyboardInterrupt that it stands for, and the handler goes.
    """
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


def _watching(board: Any, display: Display, told: Watch | None) -> AbstractContextManager[None]:
    """Show the board's progress and notes on the display while the block runs."""
    # Ray Train reports on its controller on standard output; we have the display.
    logging.getLogger("ray").setLevel(logging.ERROR)

    def watch(over: threading.Event) -> None:
        shown = 0
        while True:
            last = over.wait(_POLL_S)
            try:
                snapshot = ray.get(board.snapshot.remote(), timeout=60 if last else 5)
            except ray.exceptions.GetTimeoutError:  # on a busy machine the board may start late
                if last:
                    return
                continue
            except ray.exceptions.RayError:  # the cluster may be going down; fit() reports that
                return
            for note in snapshot.notes[shown:]:
                display.note(note)
            shown = len(snapshot.notes)
            if told is not None:
                told(snapshot)
            if snapshot.total_images:
                display.update(snapshot.images, snapshot.total_images, _brief(snapshot.metrics))
            if last:
                return

    return beside(watch, "progress")


def _brief(metrics: dict[str, float]) -> dict[str, float]:
    """The figures next to the bar: the losses and the speed."""
    losses = {n.removeprefix("train/"): v for n, v in metrics.items() if n.endswith("/loss")}
    short = {n.removesuffix("/loss") + " loss": v for n, v in losses.items()}
    return {**short, "images/s": metrics.get("train/images_per_second", 0.0)}


def _raise_user_error(board: Any) -> None:
    failed = ray.get(board.failed.remote())
    if failed is None:
        return
    kind, message = failed
    cls = getattr(errors, kind, TrainingError)
    raise cls(*message.split("\n")) if issubclass(cls, errors.ConfigError) else cls(message)


def _explain(error: BaseException, logs: Path) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return f"workers failed too often (parallel.max_failures): {cause}; Ray's logs are in {logs}"
