"""The common part of DeepSpeed's ZeRO strategies (Rajbhandari et al. 2020): one engine per trained network.

DeepSpeed is configured to leave alone what this package decides: precision (autocast around the loss), the
learning rate of a step, when gradients are reduced, and the update rule, which is torch's own on flat pieces
of the parameters. Losses call the plain network with DeepSpeed's hooks; `engine.forward` would only repeat
what is done here per micro-batch, and switch autocast off.

Stages 1 and 2 keep parameters whole on every rank, so a loss may differentiate twice. Stage 3 keeps 1/N of
every parameter, and an average is an engine without an optimizer, so that it can be called like its source.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.errors import with_extra
from sfumato.parallel import state_dict
from sfumato.parallel.capabilities import Feature
from sfumato.parallel.strategies.ddp import Ddp
from sfumato.parallel.strategies.single import set_rates
from sfumato.parallel.strategy import Placement, StrategyOptions
from sfumato.parallel.zero_engine import make_engine
from sfumato.parallel.zero_pieces import FlatPiece, flats, pieces


class Zero(Ddp):
    """The common part of the stages."""

    stage: ClassVar[int]
    features = (Ddp.features - {Feature.COMPILE, Feature.WHOLE_MATRICES, Feature.READ_WEIGHTS}) | {
        Feature.OFFLOAD,
        Feature.SHARDED_OPTIMIZER,
    }

    @classmethod
    def unavailable(cls) -> str | None:
        if importlib.util.find_spec("deepspeed") is None:
            return (
                f"parallel.strategy={cls.name} needs DeepSpeed: {with_extra('deepspeed')}, or use "
                "parallel.strategy=fsdp"
            )
        return None

    def __init__(self, placement: Placement, options: StrategyOptions | None = None) -> None:
        super().__init__(placement, options)
        self._engines: dict[str, Any] = {}
        self._shapes: dict[str, dict[str, torch.Size]] = {}
        """Whole shapes of the trained parameters."""

    def accumulate(
        self, trains: str, *, last: bool, second_order: bool = False
    ) -> AbstractContextManager[None]:
        engine = self._engines[trains]
        engine.set_gradient_accumulation_boundary(last)
        engine.optimizer.clear_backward_seen_flag()  # a new micro-batch adds to the existing gradient
        return nullcontext()

    def backward(self, trains: str, loss: Tensor) -> None:
        # DeepSpeed averages over ranks, as DDP does.
        self._engines[trains].backward(loss * self.placement.world_size)

    def step(self, trains: str, *, lr: float, max_norm: float | None, scale: Tensor | None = None) -> Tensor:
        engine = self._engines[trains]
        optimizer = engine.optimizer
        set_rates(optimizer.optimizer, lr)
        optimizer.clip_grad = max_norm or 0.0
        # DeepSpeed divides gradients and their norm by the scale of the losses. It is 1 in the backward
        # passes, whatever the scale of the update.
        optimizer.loss_scale = 1.0 if scale is None else 1.0 / float(scale)
        # DeepSpeed takes a norm that is not finite for an overflow, skips the update and reports infinity.
        engine.step()
        optimizer.loss_scale = 1.0
        return torch.as_tensor(engine.get_global_grad_norm(), device=self.placement.device).float()

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        state_dict.check(self._layout(), state)
        self._load_nets(state)
        for name in self._training:
            self._load_moments(name, state)

    def _load_nets(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._net_state().items():
            tensor.copy_(state[name])
        for name in self._training:
            self._engines[name].optimizer.refresh_fp32_params()

    def _load_moments(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Fill the flat moments from those of the parameters; without any, clear them."""
        optimizer = self._engines[name].optimizer
        flat_states = optimizer.optimizer.state
        flat_states.clear()
        stored = state_dict.moments(state, name)
        if not stored:
            return
        # Numbers, such as the step count, are the same for all parameters of a network.
        numbers = [
            state_dict.restored(kind, state[entry])
            for kind, entry in next(iter(stored.values())).items()
            if not state_dict.shape(state, entry)
        ]
        spread = [
            kind for kind, entry in next(iter(stored.values())).items() if state_dict.shape(state, entry)
        ]
        for flat in flats(optimizer, self.stage):
            flat_states[flat] = {kind: torch.zeros_like(flat) for kind in spread}
            for kind, value in numbers:
                own = value.to(flat.device, copy=True) if isinstance(value, Tensor) else value
                flat_states[flat][kind] = own
        mine = self._pieces(name)
        for key, entries in stored.items():
            whole = self._shapes[name].get(key)
            if whole is None:
                continue  # the parameter does not train; older versions stored its moments as zeros
            for kind, entry in entries.items():
                found = state_dict.shape(state, entry)
                if found and found != tuple(whole):
                    raise state_dict.misshapen(name, key, kind, found, self.name)
                if found and (piece := mine.get(key)) is not None:
                    piece.of(flat_states[piece.flat][kind]).copy_(piece.read(state, entry))

    def _lay_out(self, name: str) -> None:
        module, training = self._raw[name], self._training[name]
        learning = {key: p for key, p in module.named_parameters() if p.requires_grad}
        self._learning[name] = list(learning.values())
        self._shapes[name] = {key: p.shape for key, p in learning.items()}  # stage 3 empties the parameters
        optimizer = training.optimizer.build(learning)
        # The engine does not manage an adapter's base, since it needs all parameters to have one dtype.
        managed = module if training.base is None else nn.ParameterList(self._learning[name])
        self._engines[name] = make_engine(managed, optimizer, self.stage, offload=self.options.offload)
        self._settings[name] = state_dict.settings(self._engines[name].optimizer.optimizer)
        self._trained[name] = module

    def _pieces(self, name: str) -> dict[str, FlatPiece]:
        """The piece of each parameter of a trained network that this rank's optimizer holds."""
        return pieces(self._raw[name], self._engines[name].optimizer, self.stage, self.placement.rank)

    def _optimizer_state(self) -> dict[str, Tensor]:
        """Moments are assembled one by one; each is kept by the one rank that will write it."""
        state = {}
        for name in self._training:
            optimizer = self._engines[name].optimizer
            state_dict.check_settings(optimizer.optimizer, name, self._settings[name])
            mine, flat_states = self._pieces(name), optimizer.optimizer.state
            kinds = self._kinds(name)
            for turn, (key, shape) in enumerate(self._shapes[name].items()):
                owner = turn % self.placement.world_size
                for kind, value in kinds:
                    entry, number = state_dict.entry(name, key, kind, value)
                    if not number.dim():
                        state[entry] = number
                        continue
                    whole = torch.zeros(shape.numel(), device=self.placement.device)
                    if (piece := mine.get(key)) is not None:
                        piece.cut(whole).copy_(piece.of(flat_states[piece.flat][kind]))
                    dist.reduce(whole, dst=owner)
                    if owner == self.placement.rank:
                        state[entry] = whole.view(shape)
        return state

    def _kinds(self, name: str) -> list[tuple[str, Tensor | float]]:
        """What the optimizer keeps for a flat tensor, the same on every rank; numbers with their value."""
        optimizer = self._engines[name].optimizer
        flat = flats(optimizer, self.stage)[0]
        found = list(
            state_dict.kept(optimizer.optimizer, name, "(all)", optimizer.optimizer.state.get(flat, {}))
        )
        for kind, value in found:
            if isinstance(value, Tensor) and value.dim() and value.shape != flat.shape:
                raise state_dict.misshapen(name, "(all)", kind, value.shape, self.name)
        return found
