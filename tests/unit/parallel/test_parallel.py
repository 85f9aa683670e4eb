"""Blocks, recomputation, refusals: the parts of strategies that need no second rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.family import LossOut, Phase
from sfumato.core.optimizer import OptimizerConfig
from sfumato.errors import CapabilityError, CheckpointError
from sfumato.parallel import STRATEGIES, ParallelSettings, Placement, StrategyOptions, make
from sfumato.parallel.blocks import blocks_of
from sfumato.parallel.recompute import recompute
from sfumato.parallel.strategies.single import Single
from sfumato.training import capabilities
from sfumato.training.config import TrainSettings


class Stack(nn.Module):
    """Two blocks with batch statistics and dropout between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3)) for _ in range(2)
        )
        self.last = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


def test_blocks_are_the_outermost_lists_or_what_is_named() -> None:
    stack = Stack()
    assert blocks_of(stack) == list(stack.blocks)
    assert blocks_of(nn.Sequential(stack, nn.ModuleList([nn.Tanh()]))) == list(stack.blocks)
    assert blocks_of(stack, ("last", "blocks.1", "blocks.1.*")) == [stack.last, stack.blocks[1]]
    with pytest.raises(CapabilityError, match=r"Stack has no part 'layers\.\*'.*first, blocks, last"):
        blocks_of(stack, ("layers.*",))


def test_recomputation_changes_neither_gradients_nor_buffers() -> None:
    torch.manual_seed(0)
    plain = Stack()
    saving = Stack()
    saving.load_state_dict(plain.state_dict())
    calls = []
    saving.blocks[0][0].register_forward_hook(lambda *_: calls.append(1))
    for block in saving.blocks:
        recompute(block)
    x = torch.randn(16, 3)
    for net in (plain, saving):
        for _ in range(2):
            torch.manual_seed(7)
            net(x).square().mean().backward()
    assert len(calls) == 4, "computed twice for each pass"
    for (key, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=key)
    assert saving.state_dict().keys() == plain.state_dict().keys()
    for key, buffer in plain.named_buffers():
        assert torch.equal(buffer, saving.get_buffer(key)), key


def test_an_average_is_not_tied_to_its_source_by_recomputation() -> None:
    strategy = Single(Placement(), StrategyOptions(activation_checkpointing=True))
    strategy.add_trainable("net", Stack(), OptimizerConfig())
    strategy.add_ema("ema", "net")
    strategy.ready()
    nets = strategy.view("net")
    with torch.no_grad():
        nets["net"].blocks[0][0].weight.zero_()
    x = torch.ones(2, 3)
    assert not torch.equal(nets["ema"](x), nets["net"].eval()(x))


@pytest.mark.parametrize(
    ("parallel", "train", "expected"),
    [
        ({"strategy": "single", "workers": 2}, {}, "parallel.workers=2: .*strategy=ddp or fsdp or zero1"),
        ({"strategy": "ddp", "offload": True}, {}, "parallel.offload=true: .*strategy=fsdp or zero1"),
        ({"strategy": "zero2", "fsdp": {"reshard_after_forward": False}}, {}, "reshard.*strategy=fsdp"),
        ({"strategy": "fsdp", "fsdp": {"bf16_parameters": True}}, {}, "needs train.precision=bf16"),
    ],
)
def test_what_a_strategy_cannot_do_is_refused_with_the_field(
    parallel: dict, train: dict, expected: str
) -> None:
    found = capabilities.problems(TrainSettings(images=1, **train), ParallelSettings(**parallel))
    assert len(found) == 1
    with pytest.raises(CapabilityError, match=expected):
        raise CapabilityError(*found)


@pytest.mark.parametrize(("float32", "rounds"), [(True, True), (True, False), (False, True)])
def test_weights_that_a_phase_needs_in_float32_are_not_rounded(float32: bool, rounds: bool) -> None:
    phase = Phase(name="gap", trains="g", loss=lambda *_: LossOut(torch.zeros(1)), float32=float32)
    parallel = ParallelSettings(strategy="fsdp", fsdp={"bf16_parameters": rounds})
    found = capabilities.phase_problems([phase], parallel)
    assert len(found) == (float32 and rounds)
    assert all("bf16_parameters=true: phase 'gap'" in line for line in found)


def test_second_order_is_refused_under_zero3_alone() -> None:
    phase = Phase(name="r1", trains="d", loss=lambda *_: LossOut(torch.zeros(1)), second_order=True)
    refused = [
        name for name in STRATEGIES if capabilities.phase_problems([phase], ParallelSettings(strategy=name))
    ]
    assert refused == ["zero3"]


def test_a_process_group_is_asked_for() -> None:
    for name in ("ddp", "fsdp"):
        with pytest.raises(CapabilityError, match=f"strategy={name} needs a process group"):
            make(ParallelSettings(strategy=name), Placement())


def loaded(change: dict[str, Tensor | None]) -> None:
    strategy = Single(Placement())
    strategy.add_trainable("net", nn.Linear(2, 3), OptimizerConfig())
    strategy.ready()
    state: dict[str, Tensor | None] = {**strategy.state(), **change}
    strategy.load({name: tensor for name, tensor in state.items() if tensor is not None})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nets/net/bias": None}, "bias is missing from it"),
        ({"nets/net/extra": torch.zeros(1)}, "extra is in it, but not in the network"),
        ({"nets/net/weight": torch.zeros(2, 2)}, r"weight has shape \[2, 2\] there, and \[3, 2\] here"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(change: dict[str, Tensor | None], expected: str) -> None:
    loaded({})
    with pytest.raises(CheckpointError, match=f"network 'net' does not fit the checkpoint: {expected}"):
        loaded(change)


def test_loading_a_state_without_moments_forgets_those_there_are() -> None:
    """Rolling back to before the first update."""
    strategy = Single(Placement())
    strategy.add_trainable("net", nn.Linear(2, 1), OptimizerConfig())
    strategy.ready()
    fresh = {name: tensor.clone() for name, tensor in strategy.state().items()}
    net = strategy.view("net")["net"]
    strategy.backward("net", net(torch.ones(1, 2)).sum())
    strategy.step("net", lr=0.1, max_norm=None)
    assert any(name.startswith("optim/") for name in strategy.state())
    strategy.load(fresh)
    assert strategy.state().keys() == fresh.keys()
