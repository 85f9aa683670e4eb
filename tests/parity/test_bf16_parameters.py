"""Parameters gathered in bfloat16 (`parallel.fsdp.bf16_parameters`): inputs and gradients stay in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from members import DATA, batch
from torch import nn

from sfumato import families
from sfumato.core.batch import MicroBatch, Piece
from sfumato.families.gan import Config as GanConfig
from sfumato.parallel import ParallelSettings, Placement, make
from sfumato.parallel.strategies.fsdp import Fsdp
from sfumato.training.capabilities import phase_problems
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Trainer, install

ROWS = 8
FSDP = ParallelSettings(strategy="fsdp", fsdp={"bf16_parameters": True})  # type: ignore[arg-type]


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """A process group of one rank: FSDP casts alike for any number."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def trained(family: str, member: str, seen: list[torch.Tensor]) -> tuple[Trainer, Fsdp, list[float]]:
    """Two steps of a member; `seen` gets all that is handed to the first network."""
    built = families.config_class(family).variants()[member].build(DATA)
    strategy = make(FSDP, Placement())
    assert isinstance(strategy, Fsdp)
    micro = MicroBatch(batch(ROWS), (Piece(0, 0, ROWS),))
    install(built, strategy, seed=1, first=lambda: micro)
    losses: list[float] = []
    settings = TrainSettings(images=2 * ROWS, batch=ROWS, log_every=ROWS, preview_samples=0, precision="bf16")
    trainer = Trainer(
        built,
        strategy,
        settings,
        seed=1,
        streams=1,
        report=lambda progress, metrics: losses.extend(v for k, v in metrics.items() if k.endswith("/loss")),
    )
    first = strategy._raw[built.phases[0].trains]
    inner = next(module for module in first.modules() if module is not first)
    for module in (first, inner):
        module.forward = recording(module, seen)  # type: ignore[method-assign]
    trainer.run([micro] for _ in range(4))
    return trainer, strategy, losses


def recording(module: nn.Module, seen: list[torch.Tensor]) -> Any:
    forward = module.forward

    def call(*args: Any, **kwargs: Any) -> Any:
        seen.extend(arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor))
        return forward(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("family", "member"), [("diffusion", "dit"), ("diffusion", "edm"), ("flow", "tiny"), ("flow", "realnvp")]
)
def test_inputs_stay_in_float32(family: str, member: str) -> None:
    """Times, noise levels, noisy images and dequantised values: eight bits would merge neighbours."""
    seen: list[torch.Tensor] = []
    losses = trained(family, member, seen)[2]
    inputs = [tensor for tensor in seen if tensor.is_floating_point()]
    assert inputs and {tensor.dtype for tensor in inputs} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in inputs)
    assert all(torch.isfinite(torch.tensor(losses)))


@pytest.mark.parametrize(
    ("family", "member"), [("gan", "tiny"), ("vae", "vq"), ("vae", "fsq"), ("flow", "variational")]
)
def test_members_that_failed_train(family: str, member: str) -> None:
    """Networks used passively before they train, quantisers in float32, variational dequantisation."""
    _, strategy, losses = trained(family, member, [])
    assert losses and all(torch.isfinite(torch.tensor(losses)))
    assert all(p.dtype == torch.float32 for net in strategy._pieces.values() for p in net.values())


def test_a_phase_in_float32_is_refused() -> None:
    phases = GanConfig.variants()["r1-finite-difference"].build(DATA).phases
    (problem,) = phase_problems(phases, FSDP)
    assert problem == (
        "parallel.fsdp.bf16_parameters=true: phase 'r1' takes differences that bfloat16 rounds away; "
        "set it to false"
    )
    assert phase_problems(phases, ParallelSettings(strategy="fsdp")) == []
