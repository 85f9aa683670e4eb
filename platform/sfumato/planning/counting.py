"""One update of every phase, counted on tensors without memory: operations, and bytes alive at once.

The networks, the losses and the optimizers are those of training (torch's `FakeTensorMode` runs them on
shapes and types alone), and so is what activation checkpointing does to their blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils.weak import WeakIdKeyDictionary

from sfumato.core.batch import Batch, DataSpec, MicroBatch, Piece, Tags, Texts
from sfumato.core.columns import Column
from sfumato.core.family import EmaOf, Family, Frozen, Phase, Trainable
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng
from sfumato.errors import ConfigError
from sfumato.parallel.adapters import Base
from sfumato.parallel.blocks import blocks_of
from sfumato.parallel.strategies.single import Single
from sfumato.parallel.strategy import Placement, StrategyOptions
from sfumato.planning.meter import Meter
from sfumato.planning.networks import Network, network_of, size_of
from sfumato.sampling.pretrained_files import cast_parameters
from sfumato.training.config import TrainSettings
from sfumato.training.family_state import FamilyState
from sfumato.training.loop import progress_at

_WORDS = "a photograph of what a caption may describe in so many words"


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward and backward pass of one phase over `rows` rows.

    `operations` are those that run, recomputation included; `useful` leaves it out. `activations` is the most
    bytes alive at once besides networks, gradients and optimizers.
    """

    phase: str
    trains: str
    rows: int
    operations: float
    useful: float
    activations: int


@dataclass(frozen=True, slots=True)
class Counted:
    """What was counted of a family: its networks, and a pass of each phase without and with recomputation."""

    networks: tuple[Network, ...]
    plain: tuple[Pass, ...]
    recomputed: tuple[Pass, ...]


class _Unmoved(Single):
    """Everything in this process, on its device already: tensors without memory cannot be moved."""

    def _place(self, module: nn.Module) -> nn.Module:
        return module

    def add_frozen(self, name: str, module: nn.Module, *, shard: bool = False) -> None:
        self._raw[name] = module.eval().requires_grad_(False)
        self._frozen.add(name)


def count(family: Family, data: DataSpec, train: TrainSettings, rows: int) -> Counted:
    """Count a family's networks and passes over `rows` rows of this data.

    Raises ConfigError for a loss that reads a value of its tensors, which cannot run without values.
    """
    plain, networks = _passes(family, data, train, rows, recompute=False)
    recomputed, _ = _passes(family, data, train, rows, recompute=True)
    useful = {one.phase: one.operations for one in plain}
    return Counted(
        networks,
        plain,
        tuple(
            Pass(one.phase, one.trains, rows, one.operations, useful[one.phase], one.activations)
            for one in recomputed
        ),
    )


def at_rest(family: Family) -> tuple[Network, ...]:
    """A family's networks with what their optimizers keep, without a pass: also of models whose losses read
    values of tensors.

    Raises ConfigError for a network that cannot be built without values.
    """
    with torch.device("meta"):
        try:
            strategy = _installed(family, recompute=False)
            for name, optimizer in strategy._optimizers.items():
                for parameter in strategy._learning[name]:
                    parameter.grad = torch.zeros_like(parameter)
                for group in optimizer.param_groups:  # whose kernels take no tensors without memory
                    group |= {name: False for name in ("fused", "foreach") if name in group}
                optimizer.step()
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigError(f"model: cannot be built without values ({error})") from error
        return _networks(family, strategy)


def _networks(family: Family, strategy: _Unmoved) -> tuple[Network, ...]:
    return tuple(
        network_of(name, spec, strategy, blocks_of(strategy._raw[name], _blocks(family, name)))
        for name, spec in family.nets.items()
    )


def _passes(
    family: Family, data: DataSpec, train: TrainSettings, rows: int, *, recompute: bool
) -> tuple[tuple[Pass, ...], tuple[Network, ...]]:
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        warnings.simplefilter("ignore")  # torch warns of the addresses that modules compare in copies
        try:
            strategy = _installed(family, recompute)
            passes = tuple(_pass(family, strategy, phase, data, train, rows) for phase in family.phases)
        except (
            DataDependentOutputException,
            DynamicOutputShapeException,
            UnsupportedOperatorException,
            RuntimeError,
        ) as error:
            raise ConfigError(
                f"model: building it or its loss needs the values of tensors ({error}), so it cannot be "
                "counted without running it; measure a step on one GPU instead (make gpu-check)"
            ) from error
        networks = _networks(family, strategy)
    return passes, networks


def _blocks(family: Family, name: str) -> tuple[str, ...]:
    spec = family.nets[name]
    source = family.nets[spec.source] if isinstance(spec, EmaOf) else spec
    return source.blocks if isinstance(source, Trainable) else ()


def _installed(family: Family, recompute: bool) -> _Unmoved:
    """The family's networks as `training.loop.install` lays them out, without stored weights."""
    strategy = _Unmoved(Placement(), StrategyOptions(activation_checkpointing=recompute))
    for name, spec in family.nets.items():
        if isinstance(spec, Trainable):
            base = Base(spec.adapter, stored=spec.weights is not None) if spec.adapter else None
            strategy.add_trainable(name, spec.build(), spec.optimizer, spec.blocks, base)
        elif isinstance(spec, Frozen):
            module = spec.build().eval()
            cast_parameters(module, spec.dtype)
            strategy.add_frozen(name, module, shard=spec.shard)
    for name, spec in family.nets.items():
        if isinstance(spec, EmaOf):
            strategy.add_ema(name, spec.source, train_mode=spec.train_mode)
    strategy.ready()
    return strategy


def _pass(
    family: Family, strategy: _Unmoved, phase: Phase, data: DataSpec, train: TrainSettings, rows: int
) -> Pass:
    micro = MicroBatch(_batch(data, rows), (Piece(0, 0, rows),))
    rng = StreamRng(micro.pieces, rows_per_stream=rows, seed=0, images=0, phase=phase.name)
    state = FamilyState(family, torch.device("cpu"), lambda values: values)
    progress = _at(family, train, phase, state.values)
    bf16 = train.precision == "bf16"
    nets = strategy.view(phase.trains)
    meter = Meter()
    with meter, _gradients(strategy, phase.trains, meter):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            batch = family.prepare(nets, micro.batch, progress, rng)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16 and not phase.float32):
            loss = phase.loss(nets, batch, progress, rng).loss_B
        strategy.backward(phase.trains, loss.float().mean())
    # The optimizer's own state: what its first step makes.
    strategy._optimizers[phase.trains].step()
    strategy._optimizers[phase.trains].zero_grad(set_to_none=True)
    return Pass(phase.name, phase.trains, rows, meter.operations, meter.operations, meter.most)


def _at(family: Family, train: TrainSettings, phase: Phase, state: Mapping[str, Tensor]) -> Progress:
    batch = progress_at(family, train).batch
    images = -(-phase.start_images // batch) * batch
    return replace(progress_at(family, train, images), state=state)


@contextmanager
def _gradients(strategy: _Unmoved, name: str, meter: Meter) -> Iterator[None]:
    """Tell `meter` of every gradient that is finished, which it leaves out."""

    def finished(parameter: Tensor) -> None:
        if parameter.grad is not None and parameter not in seen:
            seen[parameter] = True
            meter.without += size_of(parameter.grad)

    seen: Any = WeakIdKeyDictionary()
    handles = []
    for parameter in strategy._learning[name]:
        handle = parameter.register_post_accumulate_grad_hook(finished)  # type: ignore[no-untyped-call]
        handles.append(handle)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _batch(data: DataSpec, rows: int) -> Batch:
    """A batch of this data, as `core.batch.to_device` returns it."""
    return {name: _column(column, rows) for name, column in data.columns.items()}


def _column(column: Column, rows: int) -> Any:
    if column.kind == "image":
        return torch.zeros(rows, *column.shape)
    if column.kind == "text":
        return Texts([_WORDS] * rows)
    if column.kind == "tags":
        return Tags([_WORDS.split()] * rows)
    return torch.zeros(rows, *column.shape, dtype=getattr(torch, column.dtype))
