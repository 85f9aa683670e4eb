"""DeepSpeed's ZeRO, stage 3: see `parallel/zero.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sfumato.parallel.capabilities import Feature
from sfumato.parallel.sharded import Sharded
from sfumato.parallel.strategies.single import Tensors
from sfumato.parallel.zero import Zero
from sfumato.parallel.zero_engine import make_engine
from sfumato.parallel.zero_pieces import stored_piece


class Zero3(Zero, Sharded):
    """Optimizer state, gradients, parameters and averages sharded."""

    name = "zero3"
    about = "1/N of parameters, gradients, optimizer state and averages"
    stage = 3
    masters = False  # its flat copies are the parameters' own memory
    features = (Zero.features | {Feature.SHARDED_PARAMETERS}) - {Feature.SECOND_ORDER, Feature.ADAPTERS}

    def _place(self, module: nn.Module) -> nn.Module:
        return module  # the engine moves it to the device, already cut

    def follow(self, ema: str, weight: float) -> None:
        # DeepSpeed may point its parameters at other memory with every update.
        self._followed[ema] = (self._held(ema), self._held(self._source[ema]))
        super().follow(ema, weight)

    def _wrap_ema(self, name: str) -> None:
        self._engines[name] = make_engine(self._raw[name], None, self.stage)

    def _held(self, name: str) -> Tensors:
        return [parameter.ds_tensor.data for parameter in self._raw[name].parameters()]  # type: ignore[attr-defined]

    def _load_nets(self, state: Mapping[str, Tensor]) -> None:
        for name, module in self._raw.items():
            if name in self._frozen:
                continue
            updated = self._pieces(name) if name in self._training else {}
            for key, parameter in module.named_parameters():
                parts: dict[tuple[int, int], Tensor] = {}  # usually both hold the same part, read once
                for piece in (stored_piece(parameter, self.placement.rank), updated.get(key)):
                    if piece is None:
                        continue
                    span = (piece.offset, piece.numel)
                    if span not in parts:
                        parts[span] = piece.read(state, f"nets/{name}/{key}")
                    piece.of(piece.flat.data).copy_(parts[span])
            for key, buffer in module.named_buffers():
                if f"nets/{name}/{key}" in state:
                    buffer.copy_(state[f"nets/{name}/{key}"])

    def _net_state(self) -> dict[str, Tensor]:
        """Whole tensors, assembled one by one, each kept by the one rank that will write it."""
        return {
            f"nets/{name}/{key}": tensor
            for name in self._plain
            for turn, (key, tensor) in enumerate(self._tensors(name))
            if turn % self.placement.world_size == self.placement.rank
        }

    @torch.no_grad()
    def _tensors(
        self, name: str, wanted: Callable[[str, str], bool] = lambda name, key: True
    ) -> Iterator[tuple[str, Tensor]]:
        parameters = dict(self._raw[name].named_parameters(remove_duplicate=False))
        for key, tensor in self._raw[name].state_dict().items():
            if not wanted(name, key):
                continue
            if key not in parameters or name in self._frozen:  # every rank has it whole
                yield key, tensor
                continue
            parameter: Any = parameters[key]
            whole = torch.zeros(parameter.ds_numel, device=self.placement.device)
            if (piece := stored_piece(parameter, self.placement.rank)) is not None:
                piece.cut(whole).copy_(piece.of(piece.flat))
            dist.all_reduce(whole)
            yield key, whole.view(parameter.ds_shape)


COMPONENT = Zero3
