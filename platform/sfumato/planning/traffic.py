"""What ranks send to one another in an update: bytes and seconds.

Rings, in which each of n ranks sends (n - 1)/n of the data to gather it or to reduce and scatter it, and
twice that to reduce it for all. A ring that leaves its node is as fast as a rank's share of the network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sfumato.parallel.capabilities import Part
from sfumato.planning.gpus import Gpu
from sfumato.planning.held import Layout
from sfumato.planning.networks import Network

GPUS_PER_NODE = 8
BACKWARD = 2 / 3
"""The share of a pass that is its backward part, behind which replicas' gradients travel."""


@dataclass(frozen=True, slots=True)
class Links:
    """Bytes a second in one direction: to a node's other GPUs, to other nodes; the share that is reached."""

    peer: float
    network: float
    efficiency: float = 0.8

    @classmethod
    def of(cls, gpu: Gpu, network: float) -> Links:
        """The GPU's own link in its node, and this one between nodes."""
        return cls(gpu.peer, network)

    def seconds(self, size: float, *, outside: bool) -> float:
        """Of sending so many bytes."""
        return size / (self.efficiency * (self.network if outside else self.peer))


@dataclass(frozen=True, slots=True)
class Traffic:
    """One update of a network: what a rank sends, how long, and how long beyond what computing hides."""

    size: float
    seconds: float
    exposed: float


def traffic(network: Network, layout: Layout, links: Links, passes: int, compute: float) -> Traffic:
    """Of an update of this network in so many passes, which take `compute` seconds together."""
    gradients = float(sum(p.gradient for p in network.parameters))
    everything, over = layout.ranks, layout.over
    if Part.PARAMETERS not in layout.strategy.cut:
        times = passes if Part.GRADIENTS in layout.strategy.cut else 1
        size = times * 2 * _ring(everything) * gradients
        seconds = links.seconds(size, outside=everything > GPUS_PER_NODE)
        hidden = BACKWARD * compute * times / passes
        return Traffic(size, seconds, max(0.0, seconds - hidden))
    gathered = layout.strategy.gathers(layout.own) * network.size
    inside = passes * _ring(over) * (gathered + gradients)
    across = passes * 2 * _ring(everything // over) * gradients / over
    seconds = links.seconds(inside, outside=over > GPUS_PER_NODE) + links.seconds(
        across, outside=everything > GPUS_PER_NODE
    )
    return Traffic(inside + across, seconds, max(0.0, seconds - compute))


def total(parts: Iterable[Traffic]) -> Traffic:
    """Of several updates, one after another."""
    parts = tuple(parts)
    return Traffic(sum(p.size for p in parts), sum(p.seconds for p in parts), sum(p.exposed for p in parts))


def _ring(ranks: int) -> float:
    return (ranks - 1) / ranks
