"""The parts of parameters that this rank holds under ZeRO, and their places in DeepSpeed's flat tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sfumato.parallel import state_dict


@dataclass(frozen=True, slots=True)
class FlatPiece:
    """Elements `offset .. offset + numel - 1` of a parameter, at `start` in the flat tensor `flat`."""

    flat: Tensor
    start: int
    numel: int
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """The piece in a tensor that is laid out like `flat`."""
        return flat.narrow(0, self.start, self.numel)

    def cut(self, whole: Tensor) -> Tensor:
        """The piece of a whole parameter or of one of its moments."""
        return whole.reshape(-1).narrow(0, self.offset, self.numel)

    def read(self, state: Mapping[str, Tensor], entry: str) -> Tensor:
        """The piece of a tensor of the state; reads only the rows that hold it."""
        return state_dict.elements(state, entry, self.offset, self.numel)


def flats(optimizer: Any, stage: int) -> list[Tensor]:
    """The flat tensors that the optimizer updates on this rank."""
    return list(
        optimizer.fp32_partitioned_groups_flat if stage == 3 else optimizer.single_partition_of_fp32_groups
    )


def pieces(module: nn.Module, optimizer: Any, stage: int, rank: int) -> dict[str, FlatPiece]:
    """This rank's pieces of a trained network, by parameter; absent if it holds no part of one."""
    where = flats(optimizer, stage)
    found = {}
    for key, parameter in module.named_parameters():
        piece = (
            _of_stage_3(parameter, optimizer, where, rank) if stage == 3 else _of_stages_1_2(parameter, where)
        )
        if piece is not None:
            found[key] = piece
    return found


def stored_piece(parameter: nn.Parameter, rank: int) -> FlatPiece | None:
    """A rank's piece of the parameter itself under stage 3; None if it has only padding."""
    flat: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
    offset = rank * flat.numel()
    numel = min(flat.numel(), parameter.ds_numel - offset)  # type: ignore[attr-defined]
    return FlatPiece(flat.data, 0, numel, offset) if numel > 0 else None


def _of_stages_1_2(parameter: Any, where: list[Tensor]) -> FlatPiece | None:
    mapping = getattr(parameter, "_hp_mapping", None)  # absent if the optimizer does not update it
    if mapping is None:
        return None
    there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
    return FlatPiece(where[mapping.param_group_index], there.start, there.numel, here.start)


def _of_stage_3(parameter: Any, optimizer: Any, where: list[Tensor], rank: int) -> FlatPiece | None:
    position = optimizer.grad_position.get(optimizer.get_param_id(parameter))
    if position is None:
        return None
    group, start, share = position  # the last rank's share may be padded
    offset = rank * share
    numel = min(share, parameter.ds_numel - offset)
    return FlatPiece(where[group], start, numel, offset) if numel > 0 else None
