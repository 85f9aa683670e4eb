"""Reading by Ray Data: the blocks of a rank as ordered read tasks, anywhere in the cluster.

`RankStreams` goes to Ray Train as its `dataset_config`; inside the train function
`ray.train.get_dataset_shard("train")` then returns the rank's `RankReader`, and `batches` starts it at the
place where the checkpoint stands, which only the rank knows.

The blocks of a run have no end, so they are executed as Datasets of a bounded number of tasks (spans), each
started before its predecessor has ended.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
import ray
import ray.data
from ray.data import Datasource, ExecutionResources, ReadTask
from ray.data.block import Block as RayBlock
from ray.data.block import BlockAccessor, BlockMetadata
from ray.train import DataConfig

from sfumato.data.batches import MicroBatches
from sfumato.data.blocks import BlockReader, Columns
from sfumato.data.config import DataSettings
from sfumato.data.local import RankPlan
from sfumato.data.manifest import Manifest
from sfumato.data.order import Block

DATASET = "train"
_SPAN_TASKS = 64
_TASK_ROWS = 1024
_LEAD = 0.25
_MIN_STORE = 64 << 20

Task = tuple[Block, ...]


class RankStreams(DataConfig):
    """Gives each training worker the reader of its streams."""

    def __init__(self, settings: DataSettings, manifest: Manifest, seed: int) -> None:
        super().__init__()
        self._settings, self._manifest, self._seed = settings, manifest, seed

    @property
    def datasets(self) -> dict[str, Callable[[], ray.data.Dataset]]:
        """What the trainer's `datasets` has to be: Ray Train asks for the name, the content is not read."""
        return {DATASET: _never_read}

    def configure(  # type: ignore[override]  # Ray hands on whatever it gets, and needs no DataIterator
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, RankReader]]:
        readers = [
            RankReader(RankPlan(self._settings, self._manifest, self._seed, rank, world_size))
            for rank in range(world_size)
        ]
        return [dict.fromkeys(datasets, reader) for reader in readers]


def _never_read() -> ray.data.Dataset:
    return ray.data.range(1)


@dataclass(frozen=True, slots=True)
class RankReader:
    """The micro-batches of one rank, read by Ray Data; the counterpart of `local.LocalReader`."""

    plan: RankPlan

    def batches(self, *, images: int, batch: int, micro_batch: int | None = None) -> MicroBatches:
        """One list of micro-batches a global batch, without end, from the one at `images` on.

        Call `close` on it to stop the read tasks.
        """
        chunks = _chunks(self.plan.reader(), self.plan.blocks(images, batch), self.plan.settings.read_tasks)
        return self.plan.assemble(chunks, images=images, batch=batch, micro_batch=micro_batch)


class BlockSource(Datasource):
    """A Ray Data source whose read tasks are given blocks, in order."""

    def __init__(self, reader: BlockReader, tasks: Sequence[Task]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._reader, self._tasks = reader, tasks

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(_rows(task) for task in self._tasks) * self._reader.row_bytes

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [self._read_task(task) for task in self._tasks]

    def _read_task(self, task: Task) -> ReadTask:
        rows = _rows(task)
        metadata = BlockMetadata(
            num_rows=rows, size_bytes=rows * self._reader.row_bytes, exec_stats=None, input_files=None
        )
        return ReadTask(partial(_read, self._reader.only(task), task), metadata)


def _read(reader: BlockReader, task: Task) -> Iterator[RayBlock]:
    """What runs in a Ray task. Errors travel as values: Ray would bury an exception under its own words."""
    for block in task:
        yield BlockAccessor.batch_to_block(reader.read_or_tell(block))


def _rows(task: Task) -> int:
    return sum(block.rows for block in task)


def _tasks(blocks: Iterable[Block]) -> Iterator[Task]:
    """Blocks gathered to tasks that are worth their start: a small data set has small blocks."""
    task: list[Block] = []
    for block in blocks:
        task.append(block)
        if _rows(tuple(task)) >= _TASK_ROWS:
            yield tuple(task)
            task = []


def _chunks(reader: BlockReader, blocks: Iterator[Block], read_tasks: int) -> Iterator[Columns]:
    """The columns of all blocks, span after span."""
    tasks = _tasks(blocks)

    def start() -> _Span:
        return _Span(reader, list(islice(tasks, _SPAN_TASKS)), read_tasks)

    span, following = start(), None
    try:
        while True:
            for columns in span:
                if following is None and span.left <= _LEAD * span.rows:
                    following = start()
                yield columns
            span, following = following or start(), None
    finally:
        for running in (span, following):
            if running is not None:
                running.stop()


class _Span:
    """A Dataset of some tasks, executing in a thread that stays a few chunks ahead of the consumer."""

    def __init__(self, reader: BlockReader, tasks: Sequence[Task], read_tasks: int) -> None:
        self.rows = self.left = sum(_rows(task) for task in tasks)
        self._dataset = _dataset(reader, tasks, read_tasks)
        self._ahead: queue.Queue[Columns | Exception | None] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sfumato-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Columns]:
        while (item := self._ahead.get()) is not None:
            if isinstance(item, Exception):
                raise item
            self.left -= len(item["image"])
            yield item

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        try:
            batches = _columns(self._dataset)
            for batch in batches:
                # Copied, so that the object store gets its memory back before the rows are used.
                if not self._put({name: np.array(column) for name, column in batch.items()}):
                    batches.close()  # ends the executor
                    return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - raised again where the rows are consumed
            self._put(error)

    def _put(self, item: Columns | Exception | None) -> bool:
        """Whether the item was handed on; not so once the consumer stopped."""
        while not self._stopped.is_set():
            try:
                self._ahead.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _columns(dataset: ray.data.Dataset) -> Generator[Columns, None, None]:
    batches = dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=1)
    return cast("Generator[Columns, None, None]", iter(batches))


def _dataset(reader: BlockReader, tasks: Sequence[Task], read_tasks: int) -> ray.data.Dataset:
    """Quiet, ordered, and bounded in CPUs and object store."""
    _hush()
    dataset: ray.data.Dataset = ray.data.read_datasource(
        BlockSource(reader, tasks), override_num_blocks=len(tasks), num_cpus=1, concurrency=read_tasks
    )
    largest = max(_rows(task) for task in tasks) * reader.row_bytes
    context = dataset.context
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    context.execution_options.resource_limits = ExecutionResources(
        cpu=read_tasks, object_store_memory=max(_MIN_STORE, 4 * read_tasks * largest)
    )
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return dataset


def _hush() -> None:
    """Leave Ray Data's reports of every execution to its log file; the console gets its warnings."""
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler) and isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "Progress bars disabled"
