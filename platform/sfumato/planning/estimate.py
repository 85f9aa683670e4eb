"""One layout of one recipe on one kind of GPU: memory, a step's time, checkpoints, data, failures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.core.family import Phase
from sfumato.planning import failures
from sfumato.planning.counting import Counted, Pass
from sfumato.planning.gpus import Gpu, Precision
from sfumato.planning.held import Held, Layout
from sfumato.planning.networks import Network
from sfumato.planning.traffic import Links, Traffic, total, traffic


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What a data sheet does not say. Bandwidths are bytes a second.

    `mfu` is the share of the peak that a pass reaches, recomputation counted; `usable` that of the memory
    that tensors may take (the rest: CUDA's context, fragments); `storage` is that of all ranks together.
    """

    mfu: float = 0.35
    usable: float = 0.9
    network: float = 50e9
    storage: float = 5e9
    host_efficiency: float = 0.5
    restart: float = 180.0


@dataclass(frozen=True, slots=True)
class Work:
    """A recipe, counted: its networks and its passes at the fewest and at the most rows of a micro-batch."""

    few: Counted
    many: Counted
    phases: Sequence[Phase]
    batch: int
    precision: Precision
    images: int
    checkpoint_every: int
    bytes_per_image: float

    @property
    def networks(self) -> tuple[Network, ...]:
        """All networks of the family."""
        return self.many.networks

    def passes(self, rows: int, *, recompute: bool) -> list[Pass]:
        """A pass of each phase over `rows` rows: operations grow evenly with rows. So does memory or, where
        something else is alive at its highest point, faster: between the two counts, a little too much."""
        few = self.few.recomputed if recompute else self.few.plain
        many = self.many.recomputed if recompute else self.many.plain
        return [_between(a, b, rows) for a, b in zip(few, many, strict=True)]


def _between(few: Pass, many: Pass, rows: int) -> Pass:
    if few.rows == many.rows:
        assert rows == few.rows, "counted at one number of rows"
        return few
    share = (rows - few.rows) / (many.rows - few.rows)

    def at(a: float, b: float) -> float:
        return a + share * (b - a)

    return Pass(
        few.phase,
        few.trains,
        rows,
        at(few.operations, many.operations),
        at(few.useful, many.useful),
        round(at(few.activations, many.activations)),
    )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one layout costs. Seconds and bytes; of a rank where not said otherwise."""

    strategy: str
    micro_batch: int
    recompute: bool
    held: Held
    activations: int
    memory: int
    room: float
    compute: float
    traffic: Traffic
    step: float
    mfu: float
    images_per_second: float
    checkpoint: int
    """Bytes of a whole checkpoint."""
    stall: float
    writing: float
    reading: float
    """Bytes a second that all ranks read."""
    bottleneck: str

    @property
    def fits(self) -> bool:
        """Whether a rank's memory suffices."""
        return self.memory <= self.room


def estimate(
    work: Work, layout: Layout, gpu: Gpu, assumed: Assumptions, micro_batch: int, *, recompute: bool
) -> Estimate:
    """The cost of a step of this layout, averaged over the phases' turns."""
    held = layout.held(work.networks)
    share = work.batch // layout.ranks
    count = max(1, share // micro_batch)
    links = Links.of(gpu, assumed.network)
    peak = gpu.peak(work.precision) * assumed.mfu
    trained = {n.name: n for n in work.networks}
    compute = useful = 0.0
    sent: list[Traffic] = []
    activations = 0
    for one, phase in zip(work.passes(micro_batch, recompute=recompute), work.phases, strict=True):
        seconds = count * one.operations / peak
        turns = phase.repeats / phase.every
        each = traffic(trained[phase.trains], layout, links, count, seconds)
        sent.append(Traffic(turns * each.size, turns * each.seconds, turns * each.exposed))
        compute += turns * seconds
        useful += turns * count * one.useful
        activations = max(activations, one.activations)
    sends = total(sent)
    step = compute + sends.exposed
    images = work.batch * max(phase.repeats for phase in work.phases)
    reading = images / step * work.bytes_per_image
    saved = held.parameters + held.optimizer + held.averages
    whole = sum(
        n.size + n.buffers + sum(p.state for p in n.parameters) for n in work.networks if n.role != "frozen"
    )
    stall = saved / (gpu.host * assumed.host_efficiency)
    writing = whole / assumed.storage
    memory = held.total + activations
    room = gpu.memory * assumed.usable
    return Estimate(
        strategy=layout.strategy.name,
        micro_batch=micro_batch,
        recompute=recompute,
        held=held,
        activations=activations,
        memory=memory,
        room=room,
        compute=compute,
        traffic=sends,
        step=step,
        mfu=useful / step / gpu.peak(work.precision),
        images_per_second=images / step,
        checkpoint=whole,
        stall=stall,
        writing=writing,
        reading=reading,
        bottleneck=_bottleneck(memory > room, compute, sends.exposed, reading, assumed.storage),
    )


def _bottleneck(full: bool, compute: float, exposed: float, reading: float, storage: float) -> str:
    if full:
        return "memory"
    if reading > storage:
        return "data"
    return "communication" if exposed > compute else "compute"


@dataclass(frozen=True, slots=True)
class Lasting:
    """Under a published failure rate: seconds between failures, goodput with the recipe's interval and with
    the best one, and that interval in images, at most the whole training."""

    source: str
    mean: float
    goodput: float
    best_goodput: float
    best_images: int


def lasting(work: Work, found: Estimate, gpus: int, assumed: Assumptions) -> list[Lasting]:
    """The goodput of a training under each published rate."""
    lines = []
    for source, rate in failures.RATES.items():
        mean = failures.mean_time(rate, gpus)
        # A checkpoint cannot begin before the one before it is written.
        least = max(found.writing, found.step)
        own = max(work.checkpoint_every / found.images_per_second, least)
        whole = work.images / found.images_per_second
        best = max(min(failures.best_interval(found.stall, mean), whole), least)
        lines.append(
            Lasting(
                source,
                mean,
                failures.goodput(own, found.stall, assumed.restart, mean),
                failures.goodput(best, found.stall, assumed.restart, mean),
                round(best * found.images_per_second),
            )
        )
    return lines
