"""Reads with Ray Data: the blocks of a rank in read tasks, anywhere in the cluster.

`RankStreams` goes to Ray Train as its `dataset_config`; inside the train function
`ray.train.get_dataset_shard("train")` then returns the rank's `RankReader`, and `batches` starts it at the
position of the checkpoint, which only the rank knows.

The blocks of a run have no end, so they are executed as Datasets of a bounded number of tasks (spans), each
started before its predecessor has ended. Concurrent tasks take turns at the blocks, and each chunk names its
block: the chunks come nearly in order, are put into order here, and few of them wait. If each task received
consecutive blocks, all of the second task's would wait for the first.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasource, ExecutionResources, ReadTask
from ray.data.block import Block as RayBlock
from ray.data.block import BlockMetadata
from ray.train import DataConfig

from sfumato.data.config import DataSettings
from sfumato.data.format.manifest import Manifest
from sfumato.data.order.epochs import Block
from sfumato.data.order.pools import pools_of
from sfumato.data.reading.batches import Collate, MicroBatches, ended_early
from sfumato.data.reading.block_reader import PoolReaders
from sfumato.data.reading.buffers import Slabs
from sfumato.data.reading.chunks import Chunk, from_table, to_table
from sfumato.data.reading.local_reader import LocalReader, RankPlan
from sfumato.data.reading.ray_throttle import Pace

DATASET = "train"
_SPAN_ROUNDS = 4
_FIRST_SPAN_ROWS = 1 << 13
_SPAN_SECONDS = 20.0
_GROWTH = 16  # a span is at most this many times the last: its first rows are taken at once, to fill windows
_MIN_TASK_ROWS, _MAX_TASK_ROWS = 1 << 10, 1 << 18
_TASK_BYTES = 256 << 20  # Ray Data looks for finished tasks ten times a second: they should take much longer
_HANDED_ON = 16 << 20  # bytes that a task gathers before it delivers them, or one larger image
_STORED = 8  # times that, for each running task
_AHEAD = 2
_LEAD = 0.25

Task = tuple[tuple[int, Block], ...]
"""Blocks and their places in the span."""


class RankStreams(DataConfig):
    """Gives each training worker the reader of its streams.

    `cpus_per_worker` is what a worker holds. If all workers together leave no CPU of the cluster for read
    tasks, as can happen when an elastic run grows, each reads in its own process: read tasks without a CPU
    would be awaited forever.
    """

    def __init__(
        self, settings: DataSettings, manifest: Manifest, seed: int, *, cpus_per_worker: float = 0.0
    ) -> None:
        super().__init__()
        self._settings, self._manifest, self._seed = settings, manifest, seed
        self._cpus_per_worker = cpus_per_worker
        # Here, in the driver: settings that do not fit together are reported before a worker starts.
        self._pools = pools_of(settings, manifest)

    @property
    def datasets(self) -> dict[str, Callable[[], ray.data.Dataset]]:
        """The value for the trainer's `datasets`: Ray Train needs the name, the content is not read.

        Empty if workers read on their own: Ray Train would start an actor for any data set.
        """
        return {DATASET: _never_read} if self._settings.read_tasks else {}

    def configure(  # type: ignore[override]  # Ray passes any value on, and needs no DataIterator
        self, datasets: dict[str, Any], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, RankReader | LocalReader]]:
        cpus = ray.cluster_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        kind = RankReader if cpus - world_size * self._cpus_per_worker >= 1 else LocalReader
        readers = [
            kind(RankPlan(self._settings, self._manifest, self._seed, rank, world_size, self._pools))
            for rank in range(world_size)
        ]
        return [dict.fromkeys(datasets, reader) for reader in readers]


def _never_read() -> ray.data.Dataset:
    return ray.data.range(1)


@dataclass(frozen=True, slots=True)
class RankReader:
    """The micro-batches of one rank, read by Ray Data; the counterpart of `local_reader.LocalReader`."""

    plan: RankPlan

    def batches(
        self, *, images: int, batch: int, micro_batch: int | None = None, collate: Collate | None = None
    ) -> MicroBatches:
        """One list of micro-batches per global batch, without end, from the one at `images` on.

        Call `close` on it to stop the read tasks.
        """
        blocks = self.plan.blocks(images, batch)
        chunks = _chunks(self.plan.readers(), blocks, self.plan.settings.read_tasks)
        return self.plan.assemble(
            chunks, images=images, batch=batch, micro_batch=micro_batch, collate=collate
        )


class BlockSource(Datasource):
    """A Ray Data source whose read tasks receive blocks."""

    def __init__(self, readers: PoolReaders, tasks: Sequence[Task]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._readers, self._tasks = readers, tasks

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int:
        return sum(_bytes(self._readers, task) for task in self._tasks)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        return [self._read_task(task) for task in self._tasks]

    def _read_task(self, task: Task) -> ReadTask:
        metadata = BlockMetadata(
            num_rows=len(task), size_bytes=_bytes(self._readers, task), exec_stats=None, input_files=None
        )
        readers = self._readers.only([block for _, block in task])
        return ReadTask(partial(_read, readers, task), metadata)


def _read(readers: PoolReaders, task: Task) -> Iterator[RayBlock]:
    """Runs in a Ray task. Errors travel as values: Ray would bury an exception in its own text."""
    for place, block in task:
        for chunk in readers.chunks_or_error(block):
            yield to_table(chunk, place)


def _bytes(readers: PoolReaders, task: Task) -> int:
    return sum(readers.bytes_of(block) for _, block in task)


def _tasks(readers: PoolReaders, blocks: Iterator[Block], rows: int, at_once: int) -> list[Task]:
    """The next blocks, at least `rows` rows of them, dealt to rounds of `at_once` tasks worth their start."""
    tasks: list[Task] = []
    wanted = at_once * min(max(rows // (_SPAN_ROUNDS * at_once), _MIN_TASK_ROWS), _MAX_TASK_ROWS)
    places = enumerate(blocks)
    for _ in range(_SPAN_ROUNDS):
        dealt: list[tuple[int, Block]] = []
        gathered = size = 0
        while gathered < wanted and size < at_once * _TASK_BYTES and (item := next(places, None)):
            dealt.append(item)
            gathered, size = gathered + item[1].rows, size + readers.bytes_of(item[1])
        tasks += [tuple(hand) for turn in range(at_once) if (hand := dealt[turn::at_once])]
        rows -= gathered
        if rows <= 0:
            break
    return tasks


def _in_order(arriving: Iterator[tuple[int, Chunk]], tasks: Sequence[Task]) -> Iterator[Chunk]:
    """The chunks in the order of their blocks. Keeps early ones: as many as tasks differ in speed."""
    early: defaultdict[int, deque[Chunk]] = defaultdict(deque)
    for place, block in sorted((item for task in tasks for item in task), key=itemgetter(0)):
        missing = block.rows
        while missing:
            while not early[place]:
                item = next(arriving, None)
                if item is None:
                    raise ended_early(block, missing)
                early[item[0]].append(item[1])
            chunk = early[place].popleft()
            yield chunk
            if chunk.error:
                return
            missing -= chunk.rows
        del early[place]


def _chunks(readers: PoolReaders, blocks: Iterator[Block], read_tasks: int) -> Generator[Chunk, None, None]:
    """The chunks of all blocks; reading begins at once, and `close` ends it."""
    chunks = _spans(readers, blocks, read_tasks)
    next(chunks)
    return cast("Generator[Chunk, None, None]", chunks)


def _spans(
    readers: PoolReaders, blocks: Iterator[Block], read_tasks: int
) -> Generator[Chunk | None, None, None]:
    """None once reading has begun, then the chunks of all blocks, span after span.

    A span holds what the consumer takes in some seconds. It is executed whether or not its rows are needed
    yet: a longer span would decode what a slow trainer needs in an hour, on the CPUs that it trains on.
    """

    slabs = Slabs()

    def start(rows: int) -> _Span:
        return _Span(readers, _tasks(readers, blocks, rows, read_tasks), read_tasks, slabs)

    span, following = start(_FIRST_SPAN_ROWS), None
    try:
        yield None
        while True:
            began = 0.0
            for chunk in span:
                began = began or time.monotonic()  # starting the tasks says nothing about the consumer
                if following is None and span.left <= _LEAD * span.rows:
                    a_second = (span.rows - span.left) / max(time.monotonic() - began, 1e-3)
                    rows = min(int(_SPAN_SECONDS * a_second), _GROWTH * span.rows)
                    following = start(max(rows, _FIRST_SPAN_ROWS))
                yield chunk
            span, following = following or start(span.rows), None
    finally:
        for running in (span, following):
            if running is not None:
                running.stop()


class _Span:
    """A Dataset of some tasks, executing in a thread that stays a few chunks ahead of the consumer."""

    def __init__(self, readers: PoolReaders, tasks: Sequence[Task], read_tasks: int, slabs: Slabs) -> None:
        self._slabs, self._tasks = slabs, tasks
        self.rows = self.left = sum(block.rows for task in tasks for _, block in task)
        self._dataset = _dataset(readers, tasks, read_tasks)
        self._ahead: queue.Queue[Chunk | Exception | None] = queue.Queue(maxsize=_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sfumato-read", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Chunk]:
        while (item := self._ahead.get()) is not None:
            if isinstance(item, Exception):
                raise item
            if not item.error:
                self.left -= item.rows
            yield item

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        try:
            with closing(_tables(self._dataset)) as tables:  # which ends the executor
                arriving = (item for table in tables for item in from_table(table))
                for chunk in _in_order(arriving, self._tasks):
                    if not self._put(self._own(chunk)):
                        return
            self._put(None)
        except Exception as error:  # noqa: BLE001 - raised again where the rows are consumed
            self._put(error)

    def _own(self, chunk: Chunk) -> Chunk:
        """Copies the chunk, so that the object store gets its memory back before the rows are used."""
        return replace(chunk, columns={name: self._slabs.copy(c) for name, c in chunk.columns.items()})

    def _put(self, item: Chunk | Exception | None) -> bool:
        """Whether the item was delivered; false once the consumer has stopped."""
        while not self._stopped.is_set():
            try:
                self._ahead.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False


def _tables(dataset: ray.data.Dataset) -> Generator[pa.Table, None, None]:
    batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
    return cast("Generator[pa.Table, None, None]", iter(batches))


def _dataset(readers: PoolReaders, tasks: Sequence[Task], read_tasks: int) -> ray.data.Dataset:
    """Quiet, and bounded in CPUs and object store."""
    _hush()
    dataset: ray.data.Dataset = ray.data.read_datasource(
        BlockSource(readers, tasks), override_num_blocks=len(tasks), num_cpus=1, concurrency=read_tasks
    )
    handed_on = max(_HANDED_ON, *(reader.row_bytes for reader in readers.readers.values()))
    context = dataset.context
    context.execution_options.verbose_progress = False
    context.execution_options.resource_limits = ExecutionResources(
        cpu=read_tasks, object_store_memory=_STORED * read_tasks * handed_on
    )
    context.target_max_block_size = handed_on
    context.custom_execution_callback_classes = [Pace]
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    return dataset


def _hush() -> None:
    """Keep Ray Data's reports of every execution in its log file; the console gets only warnings."""
    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler) and isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # "Progress bars disabled"
