"""A network as memory sees it: the bytes of its parameters and of what an optimizer keeps of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from sfumato.core.family import EmaOf, Frozen, NetSpec
from sfumato.parallel.strategies.single import Single

Role = Literal["trained", "average", "frozen"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its shape, its bytes, those of its gradient and those of its optimizer's state.

    `gradient` and `state` are 0 where it does not train.
    """

    shape: tuple[int, ...]
    size: int
    gradient: int = 0
    state: int = 0


@dataclass(frozen=True, slots=True)
class Network:
    """One network. `unit` is the bytes of its largest part that is gathered at once where it is sharded.

    `spread` says whether a strategy may shard it; `buffers` are bytes that every rank holds.
    """

    name: str
    role: Role
    parameters: tuple[Parameter, ...]
    buffers: int
    unit: int
    spread: bool = True

    @property
    def size(self) -> int:
        """Bytes of all parameters."""
        return sum(p.size for p in self.parameters)

    @property
    def numbers(self) -> int:
        """How many numbers train."""
        return sum(p.gradient // 4 for p in self.parameters)


def network_of(name: str, spec: NetSpec, strategy: Single, blocks: Sequence[nn.Module]) -> Network:
    """A network that the strategy has laid out, after one update of every phase."""
    module = strategy._raw[name]
    role: Role = "average" if isinstance(spec, EmaOf) else "frozen" if isinstance(spec, Frozen) else "trained"
    optimizer = strategy._optimizers.get(name)
    learning = {id(p) for p in strategy._learning.get(name, ())}
    own = _own(name, spec, strategy)
    parameters = tuple(
        Parameter(
            tuple(p.shape),
            size_of(p),
            size_of(p) if id(p) in learning else 0,
            sum(size_of(v) for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor))
            if optimizer is not None
            else 0,
        )
        for p in own
    )
    inside = [sum(size_of(p) for p in block.parameters()) for block in blocks]
    rest = sum(p.size for p in parameters) - sum(inside)
    return Network(
        name,
        role,
        parameters,
        sum(size_of(buffer) for buffer in module.buffers()),
        max([rest, *inside, 0]),
        spread=not isinstance(spec, Frozen) or spec.shard,
    )


def _own(name: str, spec: NetSpec, strategy: Single) -> list[nn.Parameter]:
    """The parameters whose memory is this network's own: each once, without what an average shares."""
    shared = (
        {p.untyped_storage()._cdata for p in strategy._raw[spec.source].parameters()}
        if isinstance(spec, EmaOf)
        else set()
    )
    return [p for p in strategy._raw[name].parameters() if p.untyped_storage()._cdata not in shared]


def size_of(tensor: Tensor) -> int:
    """Bytes of its numbers."""
    return tensor.numel() * tensor.element_size()
