"""Every member of every family, at its smallest: loss, gradient and samples on the device against the CPU.

Noise is drawn on the CPU and moved, so that both see the same. In float32 (without TF32) they agree to 1e-4
of the largest value; in bf16 the loss agrees to 5 %. Samples do not depend on the size of the batch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from members import DATA, MEMBERS, ROWS, Nets, batch, build, given, progress_of, view
from torch import Tensor

from sfumato import families
from sfumato.core.batch import Batch, Piece
from sfumato.core.conditions import conditions_of
from sfumato.core.family import Family, FamilyConfig, Phase, SampleRequest
from sfumato.core.rng import SampleRng, StreamRng

FLOAT32, BF16 = 1e-4, 0.05
SMALL_MEMBERS = 3
"""How many members a tiny check runs."""


class Moved:
    """Noise of training, drawn on the CPU, on a device."""

    def __init__(self, phase: str, device: torch.device) -> None:
        self._rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=1, images=64, phase=phase)
        self._device = device
        self.rows = ROWS

    def __getattr__(self, name: str) -> Any:
        draw = getattr(self._rng, name)
        return lambda *size: draw(*size).to(self._device)


def run(check: Any) -> Iterator[tuple[str, bool | None, dict[str, Any]]]:
    """A line a member."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for family, member in MEMBERS[: SMALL_MEMBERS if check.tiny else None]:
        config = families.config_class(family).variants()[member]
        yield f"{family}/{member}", *_compare(config, check.device)


def _compare(config: FamilyConfig, device: torch.device) -> tuple[bool, dict[str, Any]]:
    family = config.build(DATA)
    host = build(family)
    away = {name: copy.deepcopy(net).to(device) for name, net in host.items()}
    worst = {"loss": 0.0, "gradient": 0.0, "bf16": 0.0}
    for phase in family.phases:
        loss, gradient = _loss(family, phase, host, torch.device("cpu"))
        there, change = _loss(family, phase, away, device)
        worst["loss"] = max(worst["loss"], _apart(loss, there))
        worst["gradient"] = max(worst["gradient"], *(_apart(gradient[n], change[n]) for n in gradient))
        low, _ = _loss(family, phase, away, device, bf16=not phase.float32)
        worst["bf16"] = max(worst["bf16"], abs(low.mean().item() / (loss.mean().item() or 1.0) - 1))
    figures: dict[str, Any] = {name: f"{value:.1e}" for name, value in worst.items()}
    passed = worst["loss"] < FLOAT32 and worst["gradient"] < FLOAT32 and worst["bf16"] < BF16
    if config.samples(DATA):
        whole, part = (_sample(family, config, away, device, rows) for rows in (ROWS, 1))
        apart = (whole[:1] - part).abs().max().item() * 127.5
        figures["batch_levels"] = round(apart, 2)
        passed = passed and apart < 1.0
    return passed, figures


def _loss(
    family: Family, phase: Phase, nets: Nets, device: torch.device, *, bf16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [B] and the gradient of every parameter that has one, on the CPU."""
    progress = progress_of(family, device)
    rows: Batch = {
        name: column.to(device) if isinstance(column, Tensor) else column for name, column in batch().items()
    }
    rng: Any = Moved(phase.name, device)
    seen = view(nets, phase.trains)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        with torch.no_grad():
            prepared = family.prepare(seen, rows, progress, rng)
        loss_B = phase.loss(seen, prepared, progress, rng).loss_B
    net = nets[phase.trains]
    net.zero_grad(set_to_none=True)
    loss_B.mean().backward()
    gradient = {name: p.grad.float().cpu() for name, p in net.named_parameters() if p.grad is not None}
    return loss_B.detach().float().cpu(), gradient


@torch.no_grad()
def _sample(family: Family, config: FamilyConfig, nets: Nets, device: torch.device, rows: int) -> Tensor:
    values = conditions_of(given(config), range(rows), config.conditions(DATA), DATA)
    moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in values.items()}
    request = SampleRequest(num=rows, options=config.sampling, conditions=moved)
    used = {name: nets[name].eval() for name in family.samplers}
    found = family.sample(used, request, progress_of(family, device), SampleRng(0, range(rows)))
    return found.float().cpu()


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).item()
