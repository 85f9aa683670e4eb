"""All networks whole, in one process. Also the base class of the other strategies."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.core.optimizer import LR_FACTOR, OptimizerConfig
from sfumato.errors import CapabilityError
from sfumato.parallel import state_dict
from sfumato.parallel.adapters import Base
from sfumato.parallel.blocks import blocks_of
from sfumato.parallel.capabilities import Feature
from sfumato.parallel.recompute import recompute
from sfumato.parallel.strategy import Placement, Strategy, StrategyOptions

Tensors = list[Tensor]


@dataclass(frozen=True, slots=True)
class Training:
    """The arguments with which a trainable network was added."""

    optimizer: OptimizerConfig
    blocks: Sequence[str]
    base: Base | None


class Single(Strategy):
    """Every network whole in this process."""

    name = "single"
    about = "everything, in one process"
    features = frozenset(
        {
            Feature.ACCUMULATION,
            Feature.CLIPPING,
            Feature.BF16,
            Feature.RECOMPUTE,
            Feature.COMPILE,
            Feature.SECOND_ORDER,
            Feature.READ_WEIGHTS,
            Feature.ADAPTERS,
            Feature.WHOLE_MATRICES,
        }
    )

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        super().__init__(placement, options)
        self._raw: dict[str, nn.Module] = {}
        self._training: dict[str, Training] = {}
        self._trained: dict[str, nn.Module] = {}
        self._parameters: dict[str, dict[str, nn.Parameter]] = {}
        """The parameters that the optimizer updates, by name."""
        self._learning: dict[str, list[nn.Parameter]] = {}
        """The network's own parameters that its phases move."""
        self._adapted: dict[str, list[nn.Module]] = {}
        """The modules of an adapter that are in train mode while it trains."""
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._settings: dict[str, list[dict[str, Any]]] = {}
        """The initial settings of the optimizers' parameter groups."""
        self._source: dict[str, str] = {}
        self._followed: dict[str, tuple[Tensors, Tensors]] = {}
        self._copied: dict[str, tuple[Tensors, Tensors]] = {}
        self._paired: list[tuple[nn.Module, nn.Module]] = []
        """Modules of averages that are in the mode of their source's."""
        self._frozen: set[str] = set()
        self._active: str | None = None

    def add_trainable(
        self,
        name: str,
        module: nn.Module,
        optimizer: OptimizerConfig,
        blocks: Sequence[str] = (),
        base: Base | None = None,
    ) -> None:
        self._raw[name] = self._place(module).train(base is None)
        self._training[name] = Training(optimizer, blocks, base)
        if base is not None:
            if Feature.ADAPTERS not in self.features:
                raise CapabilityError(f"parallel.strategy={self.name} has no {Feature.ADAPTERS.value}")
            base.freeze(name, self._raw[name])
            self._adapted[name] = base.trained_parts(self._raw[name])

    def add_frozen(self, name: str, module: nn.Module, *, shard: bool = False) -> None:
        self._raw[name] = module.to(self.placement.device).eval().requires_grad_(False)
        self._frozen.add(name)

    def add_ema(self, name: str, source: str, *, train_mode: bool = False) -> None:
        # The source is copied without its wrapper, and before hooks are attached to its forward.
        base = self._training[source].base
        copied = copy.deepcopy(self._raw[source]) if base is None else base.copy(self._raw[source])
        self._raw[name] = copied.eval().requires_grad_(False)
        self._source[name] = source
        if train_mode:
            self._paired += zip(self._raw[name].modules(), self._raw[source].modules(), strict=True)

    def ready(self) -> None:
        for name, training in self._training.items():
            module = self._raw[name]
            if self.options.activation_checkpointing:
                for block in blocks_of(module, training.blocks):
                    recompute(block)
            if self.options.compile:
                for part in self._compiled_alone(name):
                    # In place: names in the state dict do not change. Dropout draws what it draws uncompiled.
                    part.compile(options={"fallback_random": True})
            self._lay_out(name)
        for ema, source in self._source.items():
            self._wrap_ema(ema)
            # Listed once: walking the modules costs as much as the update of a small network.
            self._followed[ema] = (self._held(ema), self._held(source))
            self._copied[ema] = (self._buffers(ema), self._buffers(source))

    def view(self, trains: str) -> Nets:
        if trains != self._active:
            self._activate(trains)
        return {**self._raw, trains: self._trained[trains]}

    @contextmanager
    def gathered(self, names: Iterable[str]) -> Iterator[Nets]:
        self._activate(None)
        yield self._raw

    def accumulate(
        self, trains: str, *, last: bool, second_order: bool = False
    ) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, trains: str, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, trains: str, *, lr: float, max_norm: float | None, scale: Tensor | None = None) -> Tensor:
        parameters, optimizer = self._parameters[trains].values(), self._optimizers[trains]
        self._before_step(trains)
        grads = [p.grad for p in parameters if p.grad is not None]
        if scale is not None and grads:
            torch._foreach_mul_(grads, scale.to(grads[0]))
        norm = self._norm(grads)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        set_rates(optimizer, lr)
        with skipping(optimizer, norm) as due:
            if due:
                optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._after_step(trains)
        return norm

    @torch.no_grad()
    def follow(self, ema: str, weight: float) -> None:
        torch._foreach_lerp_(*self._followed[ema], weight)
        mine, theirs = self._copied[ema]
        if mine:
            torch._foreach_copy_(mine, theirs)

    def state(self) -> dict[str, Tensor]:
        return {**self._net_state(), **self._optimizer_state()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        state_dict.check(self._layout(), state)
        for name, tensor in self._net_state().items():
            self._fill(tensor, state, name)
        for name, parameters in self._parameters.items():
            # A fresh optimizer: parameters without state in the checkpoint start as before the first step.
            self._optimizers[name] = self._optimizer(name)
            stored = state_dict.moments(state, name)
            for key, parameter in parameters.items():
                if key in stored:
                    self._optimizers[name].state[parameter] = dict(
                        state_dict.restored(kind, self._own(name, key, kind, state, entry))
                        for kind, entry in stored[key].items()
                    )

    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        return {
            name: {
                key: value.detach().cpu().clone()
                for key, value in self._raw[name].state_dict().items()
                if self._exports(name, key)
            }
            for name in names
        }

    def sum(self, values: Tensor) -> Tensor:
        return values

    def sum_in_order(self, values: Tensor) -> Tensor:
        return values

    def _compiled_alone(self, name: str) -> list[nn.Module]:
        """The parts of a trained network that are compiled, each on its own: all of it at once."""
        return [self._raw[name]]

    def _place(self, module: nn.Module) -> nn.Module:
        return module.to(self.placement.device)

    def _lay_out(self, name: str) -> None:
        """Make a network trainable: what phases call, and the optimizer of its parameters."""
        self._trained[name] = self._wrap(name, self._raw[name])
        self._learning[name] = [p for p in self._raw[name].parameters() if p.requires_grad]
        self._parameters[name] = self._updated(name)
        self._optimizers[name] = self._optimizer(name)
        self._settings[name] = state_dict.settings(self._optimizers[name])

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        return self._training[name].optimizer.build(self._parameters[name])

    def _wrap(self, name: str, module: nn.Module) -> nn.Module:
        """The module that a phase calls to train this one."""
        return module

    def _wrap_ema(self, name: str) -> None:
        """Lay out an average like its source."""

    def _updated(self, name: str) -> dict[str, nn.Parameter]:
        """The part of the network's parameters that this rank's optimizer updates."""
        return {key: p for key, p in self._raw[name].named_parameters() if p.requires_grad}

    def _held(self, name: str) -> Tensors:
        """This rank's part of the network's parameters that training changes."""
        return [p for key, p in self._raw[name].named_parameters() if self._changes(name, key)]

    def _buffers(self, name: str) -> Tensors:
        return [buffer for key, buffer in self._raw[name].named_buffers() if self._changes(name, key)]

    def _base(self, name: str) -> Base | None:
        """The base of an adapter or, for an average, that of its source."""
        training = self._training.get(self._source.get(name, name))
        return None if training is None else training.base

    def _changes(self, name: str, key: str) -> bool:
        """Whether training changes a tensor of a trained network or of an average."""
        base = self._base(name)
        return base is None or not base.has(key)

    def _exports(self, name: str, key: str) -> bool:
        """Whether a tensor belongs in an export: all except those that can be loaded from elsewhere."""
        base = self._base(name)
        return base is None or not base.stored or not base.has(key)

    def _before_step(self, trains: str) -> None:
        """Bring the gradient to the parameters that the optimizer updates."""

    def _after_step(self, trains: str) -> None:
        """Drop what the update has made stale."""

    def _norm(self, grads: Tensors) -> Tensor:
        """Norm of the whole gradient."""
        return nn.utils.get_total_norm(grads)

    def _fill(self, target: Tensor, state: Mapping[str, Tensor], entry: str) -> None:
        """Copy this rank's part of a stored tensor into a tensor of the state."""
        target.copy_(state[entry])

    def _own(self, name: str, key: str, kind: str, state: Mapping[str, Tensor], entry: str) -> Tensor:
        """A copy of this rank's part of a parameter's moment."""
        # The fused kernels need the step count on the parameter's device.
        return state[entry].to(self.placement.device, copy=True)

    def _spread(self, name: str, key: str, kind: str, moment: Tensor) -> Tensor:
        """A moment as `state` shows it."""
        return moment

    def _layout(self) -> dict[str, Tensor]:
        """Names and whole shapes of the network tensors that `load` expects."""
        return self._net_state()

    def _net_state(self) -> dict[str, Tensor]:
        return {
            f"nets/{name}/{key}": tensor
            for name, module in self._raw.items()
            if name not in self._frozen
            for key, tensor in module.state_dict().items()
            if self._changes(name, key)
        }

    def _optimizer_state(self) -> dict[str, Tensor]:
        state = {}
        for name, parameters in self._parameters.items():
            optimizer = self._optimizers[name]
            state_dict.check_settings(optimizer, name, self._settings[name])
            for key, parameter in parameters.items():
                found = optimizer.state.get(parameter, {})
                for kind, value in state_dict.kept(optimizer, name, key, found):
                    entry, tensor = state_dict.entry(name, key, kind, value)
                    state[entry] = self._spread(name, key, kind, tensor)
        return state

    def _activate(self, trains: str | None) -> None:
        """Gradients and train mode on for one network and off for all others."""
        for name, parameters in self._learning.items():
            for parameter in parameters:
                parameter.requires_grad_(name == trains)
            if name not in self._adapted:
                self._raw[name].train(name == trains)
            for part in self._adapted.get(name, ()):
                part.training = name == trains
        for average, source in self._paired:
            average.training = source.training
        self._active = trains


def set_rates(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of a step, times the factor of each group of parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(LR_FACTOR, 1.0)


@contextmanager
def skipping(optimizer: torch.optim.Optimizer, norm: Tensor) -> Iterator[bool]:
    """Wrap an optimizer's step so that it changes nothing if `norm` is not finite.

    The fused kernels decide on the device, by the flag that gradient scalers use, so the host does not wait.
    For an optimizer without that flag the host checks the norm, and yields False if no step is due.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        yield bool(torch.isfinite(norm))
        return
    skipped = torch.isfinite(norm).logical_not().float()
    fresh = not optimizer.state
    optimizer.grad_scale, optimizer.found_inf = None, skipped  # type: ignore[attr-defined]
    yield True
    if fresh:  # SGD's first momentum is the gradient itself, which a skipped step leaves unwritten
        for moments in optimizer.state.values():
            momentum = moments.get("momentum_buffer")
            if momentum is not None:
                momentum.copy_(torch.where(skipped.bool(), 0.0, momentum))


COMPONENT = Single
