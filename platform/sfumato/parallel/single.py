"""All networks whole, in one process. Also the ground on which replicating strategies stand."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sfumato.core.family import Nets
from sfumato.core.optimizer import OptimizerConfig
from sfumato.errors import CheckpointError
from sfumato.parallel.strategy import Placement, Strategy


class Single(Strategy):
    """Every network whole in this process."""

    name = "single"
    second_order = True

    def __init__(self, placement: Placement) -> None:
        super().__init__(placement)
        self._raw: dict[str, nn.Module] = {}
        self._trained: dict[str, nn.Module] = {}
        self._parameters: dict[str, list[nn.Parameter]] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}
        self._source: dict[str, str] = {}
        self._followed: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
        self._frozen: set[str] = set()
        self._active: str | None = None

    def add_trainable(self, name: str, module: nn.Module, optimizer: OptimizerConfig) -> None:
        module.to(self.placement.device).train()
        self._raw[name] = module
        self._parameters[name] = [p for p in module.parameters() if p.requires_grad]
        self._trained[name] = self._wrap(module)
        self._optimizers[name] = optimizer.build(self._parameters[name])

    def add_frozen(self, name: str, module: nn.Module) -> None:
        self._raw[name] = module.to(self.placement.device).eval().requires_grad_(False)
        self._frozen.add(name)

    def add_shadow(self, name: str, source: str) -> None:
        # The source is copied without its wrapper, and before any compiled forward hangs on it.
        self._raw[name] = copy.deepcopy(self._raw[source]).eval().requires_grad_(False)
        self._source[name] = source
        # Listed once: walking the modules costs as much as the update of a small network.
        self._followed[name] = (list(self._raw[name].parameters()), list(self._raw[source].parameters()))

    def view(self, trains: str | None) -> Nets:
        if trains != self._active or trains is None:
            self._activate(trains)
        return self._raw if trains is None else {**self._raw, trains: self._trained[trains]}

    def accumulate(self, trains: str, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def backward(self, trains: str, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, trains: str, *, lr: float, max_norm: float | None) -> Tensor:
        parameters, optimizer = self._parameters[trains], self._optimizers[trains]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    @torch.no_grad()
    def follow(self, shadow: str, weight: float) -> None:
        torch._foreach_lerp_(*self._followed[shadow], weight)
        target, source = self._raw[shadow], self._raw[self._source[shadow]]
        for mine, theirs in zip(target.buffers(), source.buffers(), strict=True):
            mine.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        state = {
            f"nets/{name}/{key}": tensor
            for name, module in self._raw.items()
            if name not in self._frozen
            for key, tensor in module.state_dict().items()
        }
        for name, optimizer in self._optimizers.items():
            for key, parameter in self._raw[name].named_parameters():
                for kind, value in optimizer.state.get(parameter, {}).items():
                    if isinstance(value, Tensor):  # SGD without momentum keeps a None
                        state[f"optim/{name}/{key}/{kind}"] = value
        return state

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, module in self._raw.items():
            if name in self._frozen:
                continue
            prefix = f"nets/{name}/"
            part = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
            try:
                module.load_state_dict(part)
            except RuntimeError as error:
                detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
                raise CheckpointError(f"network {name!r} does not fit the checkpoint: {detail}") from error
        for name, optimizer in self._optimizers.items():
            for key, parameter in self._raw[name].named_parameters():
                prefix = f"optim/{name}/{key}/"
                moments = {k[len(prefix) :]: v.clone() for k, v in state.items() if k.startswith(prefix)}
                if moments:
                    optimizer.state[parameter] = moments

    def weights(self, names: Iterable[str]) -> dict[str, dict[str, Tensor]]:
        return {
            name: {key: value.detach().cpu().clone() for key, value in self._raw[name].state_dict().items()}
            for name in names
        }

    def sum(self, values: Tensor) -> Tensor:
        return values

    def _wrap(self, module: nn.Module) -> nn.Module:
        """What a phase calls to train the module."""
        return module

    def _activate(self, trains: str | None) -> None:
        """Gradients and train mode on for one network and off for all others."""
        for name, parameters in self._parameters.items():
            for parameter in parameters:
                parameter.requires_grad_(name == trains)
            self._raw[name].train(name == trains)
        self._active = trains
