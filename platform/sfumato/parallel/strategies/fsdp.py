"""Parameters, gradients, optimizer state and averages sharded: torch's `fully_shard` (FSDP2).

Every parameter is cut along its first dimension into one piece per rank; pieces may be unequal or empty. A
block's parameters are gathered for its forward and its backward pass. The optimizer and the averages work
only on each rank's own pieces, which are plain tensors: no communication, and the kernels are those of a
single process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, Replicate, Shard

from sfumato.core.config import Config
from sfumato.core.muon import Rows
from sfumato.errors import CapabilityError
from sfumato.parallel import state_dict
from sfumato.parallel.blocks import blocks_of
from sfumato.parallel.capabilities import Feature
from sfumato.parallel.config import FsdpSettings, ParallelSettings
from sfumato.parallel.gathering import gather_for_methods
from sfumato.parallel.sharded import Sharded, empty
from sfumato.parallel.strategies.ddp import Ddp
from sfumato.parallel.strategies.single import Tensors
from sfumato.parallel.strategy import Placement, StrategyOptions

_REPLICA, _SHARD = "replica", "shard"


class Fsdp(Sharded):
    """1/N of everything that training changes on each of N ranks."""

    name = "fsdp"
    Settings = FsdpSettings
    about = "1/N of parameters, gradients, optimizer state and averages"
    features = (Ddp.features - {Feature.READ_WEIGHTS}) | {
        Feature.BF16_PARAMETERS,
        Feature.OFFLOAD,
        Feature.RESHARD,
        Feature.HYBRID,
        Feature.SHARDED_OPTIMIZER,
        Feature.SHARDED_PARAMETERS,
    }

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        super().__init__(placement, options)
        own = self.options.own
        self._own_settings = own if isinstance(own, FsdpSettings) else FsdpSettings()
        self._mesh = _mesh(placement, self._own_settings.shard)
        self._group = self._mesh[_SHARD] if self._mesh.ndim > 1 else self._mesh
        """The ranks over which this one's parameters are cut."""
        self._units: dict[str, list[FSDPModule]] = {}
        """What is gathered and freed as one: the blocks of a network and the network itself, last."""
        self._pieces: dict[str, dict[str, nn.Parameter]] = {}
        """This rank's part of each parameter, in the same memory."""
        self._twice = False
        self._begun: set[str] = set()
        """The networks that have trained."""
        self._spread_out: list[str] = []
        """Frozen networks that are sharded."""

    def add_frozen(self, name: str, module: nn.Module, *, shard: bool = False) -> None:
        if not shard:
            super().add_frozen(name, module)
            return
        self._raw[name] = self._place(module).eval().requires_grad_(False)
        self._plain[name] = empty(module)
        self._frozen.add(name)
        self._spread_out.append(name)

    def ready(self) -> None:
        super().ready()
        for name in self._spread_out:
            # Nothing stays gathered for a backward pass, which may never come.
            self._shard(name, blocks_of(self._raw[name]), True, root=True)
            gather_for_methods(self._raw[name])

    @classmethod
    def settings(cls, parallel: ParallelSettings) -> FsdpSettings:
        """The settings in `parallel.fsdp`, the section for this strategy, and in `parallel.options`."""
        return FsdpSettings.model_validate({**parallel.fsdp.model_dump(), **parallel.options})

    @classmethod
    def problems(cls, parallel: ParallelSettings) -> list[str]:
        """Groups that do not come out even."""
        shard, workers = cls.settings(parallel).shard, parallel.workers
        if shard is None:
            return []
        if parallel.elastic:
            why = (
                "an elastic run may have any number of workers, which groups of that size do not divide; "
                "leave out one of parallel.min_workers and parallel.fsdp.shard"
            )
            return [f"parallel.fsdp.shard={shard}: {why}"]
        if workers % shard:
            cure = "use a divisor of it, or null"
            return [f"parallel.fsdp.shard={shard} does not divide parallel.workers={workers}: {cure}"]
        return []

    @classmethod
    def cut_over(cls, world_size: int, own: Config) -> int:
        """A group's ranks, or all."""
        return own.shard or world_size if isinstance(own, FsdpSettings) else world_size

    @classmethod
    def further(cls, world_size: int) -> tuple[Mapping[str, Any], ...]:
        """Groups of one node's eight ranks."""
        return ({"shard": 8},) if world_size > 8 and world_size % 8 == 0 else ()

    @classmethod
    def gathers(cls, own: Config) -> float:
        """Parameters twice, or once if they stay gathered; half of it in bfloat16."""
        assert isinstance(own, FsdpSettings)
        return (2.0 if own.reshard_after_forward else 1.0) / (2 if own.bf16_parameters else 1)

    @classmethod
    def keeps_gathered(cls, own: Config) -> bool:
        """With `reshard_after_forward=false`."""
        return isinstance(own, FsdpSettings) and not own.reshard_after_forward

    @classmethod
    def piece(cls, shape: tuple[int, ...], ranks: int) -> int:
        """Whole rows of the first dimension."""
        return -(-shape[0] // ranks) * math.prod(shape[1:]) if shape else 1

    def accumulate(
        self, trains: str, *, last: bool, second_order: bool = False
    ) -> AbstractContextManager[None]:
        # Gradients are reduced in every micro-batch, so that none is ever whole on a rank.
        return self._kept_whole(trains) if second_order else nullcontext()

    def backward(self, trains: str, loss: Tensor) -> None:
        if self._twice:
            root = self._units[trains][-1]
            root.set_is_last_backward(True)
            root.set_reshard_after_backward(True)
            root.set_requires_gradient_sync(True)
        super().backward(trains, loss)

    def _before_step(self, trains: str) -> None:
        sharded = dict(self._raw[trains].named_parameters())
        for key, piece in self._parameters[trains].items():
            grad = sharded[key].grad
            piece.grad = None if grad is None else _local(grad)
            sharded[key].grad = None

    def _after_step(self, trains: str) -> None:
        self._free(trains)

    def follow(self, ema: str, weight: float) -> None:
        super().follow(ema, weight)
        self._free(ema)

    @contextmanager
    def _kept_whole(self, trains: str) -> Iterator[None]:
        """Keep parameters gathered from the first pass on, so that gradients of gradients find them.

        Only the gradient of `backward` is reduced, not one that a loss computes inside.
        """
        root = self._units[trains][-1]
        root.set_is_last_backward(False)
        root.set_reshard_after_forward(False)
        root.set_reshard_after_backward(False)
        root.set_requires_gradient_sync(False)
        self._twice = True
        try:
            yield
        finally:
            self._twice = False
            for unit in self._units[trains][:-1]:
                unit.set_reshard_after_forward(self._own_settings.reshard_after_forward, recurse=False)

    def _activate(self, trains: str | None) -> None:
        # Parameters left gathered after a forward pass would keep their `requires_grad` from then: a network
        # that another phase used passively would get no gradient.
        for name in self._trained:
            self._free(name)
        super()._activate(trains)
        if self._own_settings.bf16_parameters and trains is not None and trains not in self._begun:
            # FSDP derives the dtype of gradients from the parameters that train at a network's first pass. If
            # that was a passive one there were none, and gradients would stay in bfloat16.
            self._begun.add(trains)
            for unit in self._units[trains]:
                unit.unshard()
            self._free(trains)

    def _compiled_alone(self, name: str) -> list[nn.Module]:
        """Its blocks: what gathers and frees parameters around them is not compiled."""
        return blocks_of(self._raw[name], self._training[name].blocks)

    def _place(self, module: nn.Module) -> nn.Module:
        return module  # sharding moves it to the device block by block, so that it is never whole there

    def _wrap(self, name: str, module: nn.Module) -> nn.Module:
        self._shard(
            name, blocks_of(module, self._training[name].blocks), self._own_settings.reshard_after_forward
        )
        return module

    def _wrap_ema(self, name: str) -> None:
        blocks = blocks_of(self._raw[name], self._training[self._source[name]].blocks)
        # No backward pass follows for an average, so its root is freed at once as well.
        self._shard(name, blocks, True, root=True)
        if self._base(name) is not None:
            self._share_base(name)

    def _share_base(self, ema: str) -> None:
        """Make an adapter's average use its source's pieces of the base.

        FSDP adopts exchanged parameters when the network is first called. If the ranks' pieces of a parameter
        are unequal, it pads this rank's then; only such pieces exist twice.
        """
        theirs = dict(self._raw[self._source[ema]].named_parameters(remove_duplicate=False))
        for key, _ in list(self._raw[ema].named_parameters(remove_duplicate=False)):
            if not self._changes(ema, key):
                owner, _, leaf = key.rpartition(".")
                setattr(self._raw[ema].get_submodule(owner), leaf, theirs[key])

    def _shard(self, name: str, blocks: list[nn.Module], reshard: bool, root: bool | None = None) -> None:
        module = self._raw[name]
        if scalar := next((key for key, p in module.named_parameters() if p.dim() == 0), None):
            raise CapabilityError(
                f"parameter {scalar} of network {name!r} has no dimension to shard; give it the shape [1], "
                "or use parallel.strategy=ddp"
            )
        precision = torch.bfloat16 if self._own_settings.bf16_parameters else None
        # Inputs are not cast: times, noise levels and dequantised values do not survive eight bits.
        policy = MixedPrecisionPolicy(
            param_dtype=precision, reduce_dtype=torch.float32, cast_forward_inputs=False
        )
        offload = (
            CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
            if self.options.offload
            else OffloadPolicy()
        )
        for block in blocks:
            fully_shard(
                block,
                mesh=self._mesh,
                reshard_after_forward=reshard,
                mp_policy=policy,
                offload_policy=offload,
            )
        fully_shard(
            module, mesh=self._mesh, reshard_after_forward=root, mp_policy=policy, offload_policy=offload
        )
        self._units[name] = [part for part in (*blocks, module) if isinstance(part, FSDPModule)]
        self._pieces[name] = {
            key: nn.Parameter(_local(p), requires_grad=p.requires_grad)
            for key, p in module.named_parameters()
        }

    def _updated(self, name: str) -> dict[str, nn.Parameter]:
        return {key: piece for key, piece in self._pieces[name].items() if piece.requires_grad}

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        pieces = self._parameters[name]
        names = {piece: key for key, piece in pieces.items()}

        def whole(piece: nn.Parameter, rows: Tensor) -> Tensor:
            spread = self._as_rows(name, names[piece], rows.to(self.placement.device))
            return spread.full_tensor().to(rows.device)

        def mine(piece: nn.Parameter, tensor: Tensor) -> Tensor:
            first = self._group.get_local_rank() * self._rows_of(tensor.shape[0])
            return tensor[first : first + len(piece)]

        return self._training[name].optimizer.build(pieces, Rows(whole, mine))

    def _held(self, name: str) -> Tensors:
        return [piece.detach() for key, piece in self._pieces[name].items() if self._changes(name, key)]

    def _norm(self, grads: Tensors) -> Tensor:
        square = nn.utils.get_total_norm(grads).square()
        square = square.to(self.placement.device)  # gradients may be offloaded, communication is not
        dist.all_reduce(square, group=self._group.get_group())
        return square.sqrt()

    def _fill(self, target: Tensor, state: Mapping[str, Tensor], entry: str) -> None:
        if isinstance(target, DTensor):
            _local(target).copy_(self._cut(state, entry))
        else:
            target.copy_(state[entry])

    def _own(self, name: str, key: str, kind: str, state: Mapping[str, Tensor], entry: str) -> Tensor:
        whole, found = self._raw[name].get_parameter(key).shape, state_dict.shape(state, entry)
        if found and found != tuple(whole):
            raise state_dict.misshapen(name, key, kind, found, self.name)
        part = self._cut(state, entry) if found else state[entry]
        return part.to(self._pieces[name][key].device, copy=True)

    def _cut(self, state: Mapping[str, Tensor], entry: str) -> Tensor:
        """This rank's part of a tensor, which is cut along its first dimension; empty beyond the last row."""
        rows = self._rows_of(state_dict.shape(state, entry)[0])
        start = self._group.get_local_rank() * rows
        return state_dict.rows(state, entry, start, start + rows)

    def _rows_of(self, rows: int) -> int:
        """How many of a tensor's rows a rank holds; the last ranks hold fewer, or none."""
        return -(-rows // self._group.size())

    def _as_rows(self, name: str, key: str, rows: Tensor) -> DTensor:
        """The parameter-shaped tensor of which this rank has these rows."""
        parameter = self._raw[name].get_parameter(key)
        return DTensor.from_local(
            rows,
            self._mesh,
            [*[Replicate()] * (self._mesh.ndim - 1), Shard(0)],
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )

    def _spread(self, name: str, key: str, kind: str, moment: Tensor) -> Tensor:
        if not moment.dim():  # a step count
            return moment
        if moment.shape != self._pieces[name][key].shape:
            raise state_dict.misshapen(name, key, kind, moment.shape, self.name)
        return self._as_rows(name, key, moment)

    def _tensors(
        self, name: str, wanted: Callable[[str, str], bool] = lambda name, key: True
    ) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in self._raw[name].state_dict().items():
            if not wanted(name, key):
                continue
            if isinstance(tensor, DTensor):
                yield key, cast(DTensor, tensor.to(self.placement.device)).full_tensor()
            else:
                yield key, tensor

    def _free(self, name: str) -> None:
        """Free gathered copies, so that the next forward pass does not find old parameters."""
        for unit in self._units[name]:
            unit.reshard()


def _mesh(placement: Placement, shard: int | None) -> DeviceMesh:
    """All ranks in a row or, in groups of `shard` neighbours, replicas by members of a group.

    Raises CapabilityError if the groups do not come out even.
    """
    device, ranks = placement.device.type, placement.world_size
    if shard is None or shard == ranks:
        return init_device_mesh(device, (ranks,))
    if ranks % shard:
        raise CapabilityError(
            f"parallel.fsdp.shard={shard} does not divide {ranks} workers: use a divisor of it, or null"
        )
    return init_device_mesh(device, (ranks // shard, shard), mesh_dim_names=(_REPLICA, _SHARD))


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    return cast(DTensor, tensor.detach()).to_local()


COMPONENT = Fsdp
