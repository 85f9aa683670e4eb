"""Groups of parameters by name: who is in which, with what rate and decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfumato.core.muon import orthogonal
from sfumato.core.optimizer import OptimizerConfig, OptimizerGroup
from sfumato.core.schedules import LearningRate
from sfumato.errors import ConfigError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def config(*groups: dict, **settings: object) -> OptimizerConfig:
    return OptimizerConfig(
        lr=LearningRate(peak=0.1), groups=tuple(OptimizerGroup(**group) for group in groups), **settings
    )


def test_the_first_matching_group_counts_and_the_rest_comes_first() -> None:
    parameters = dict(network().named_parameters())
    chosen = config(
        {"pattern": "0.*", "lr_factor": 0.5}, {"pattern": "*.bias", "weight_decay": 0.0}, weight_decay=0.2
    )
    groups = chosen.build(parameters).param_groups
    assert [[id(p) for p in group["params"]] for group in groups] == [
        [id(parameters["2.weight"])],
        [id(parameters["0.weight"]), id(parameters["0.bias"])],
        [id(parameters["2.bias"])],
    ]
    assert [group["weight_decay"] for group in groups] == [0.2, 0.2, 0.0]


def test_without_groups_there_is_one() -> None:
    parameters = dict(network().named_parameters())
    (group,) = config().build(parameters).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in parameters.values()]


@pytest.mark.parametrize("name", ["adam", "adamw", "radam", "sgd"])
def test_a_step_equals_torch_with_the_same_groups(name: str) -> None:
    """Rates follow the schedule times the factor, under clipping over all groups together."""
    strategy, plain = Single(Placement()), network()
    chosen = config(
        {"pattern": "*.bias", "lr_factor": 0.25, "weight_decay": 0.0}, name=name, weight_decay=0.3
    )
    strategy.add_trainable("net", network(), chosen)
    strategy.ready()
    weights, biases = ([p for n, p in plain.named_parameters() if ("bias" in n) == bias] for bias in (0, 1))
    kinds = {"adam": "Adam", "adamw": "AdamW", "radam": "RAdam", "sgd": "SGD"}
    kind = getattr(torch.optim, kinds[name])
    settings = {"momentum": 0.9} if name == "sgd" else {"betas": (0.9, 0.99)}
    optimizer = kind(
        [{"params": weights, "weight_decay": 0.3}, {"params": biases, "weight_decay": 0.0}], **settings
    )
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    for lr in (0.1, 0.02, 0.05):
        strategy.backward("net", strategy.view("net")["net"](x).square().mean())
        strategy.step("net", lr=lr, max_norm=0.1)
        optimizer.zero_grad()
        plain(x).square().mean().backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = lr, lr * 0.25
        optimizer.step()
    for key, expected in plain.state_dict().items():
        torch.testing.assert_close(strategy.weights(["net"])["net"][key], expected, rtol=1e-6, atol=1e-7)


def test_a_pattern_without_parameters_is_an_error_in_one_line() -> None:
    parameters = dict(network().named_parameters())
    with pytest.raises(ConfigError, match=r"no parameter matches 'blocks\.\*'; names are like 0\.weight"):
        config({"pattern": "blocks.*"}).build(parameters)
    with pytest.raises(ConfigError, match=r"matches belongs to an earlier group") as caught:
        config({"pattern": "*"}, {"pattern": "*.bias"}).build(parameters)
    assert "\n" not in str(caught.value)


def test_muon_equals_torchs_for_matrices_and_adamw_for_the_rest() -> None:
    """Two steps, with a group that is left to AdamW; torch's Muon is an implementation of its own."""
    plain = network()
    chosen = config({"pattern": "2.*", "orthogonal": False}, name="muon", weight_decay=0.3)
    strategy = Single(Placement())
    strategy.add_trainable("net", network(), chosen)
    strategy.ready()
    left = [p for name, p in plain.named_parameters() if name != "0.weight"]
    muon = torch.optim.Muon(
        [plain.get_parameter("0.weight")], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(left, lr=0.1, betas=(0.9, 0.99), weight_decay=0.3)
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        strategy.backward("net", strategy.view("net")["net"](inputs).square().sum())
        strategy.step("net", lr=0.1, max_norm=None)
        for optimizer in (muon, adamw):
            optimizer.zero_grad()
        plain(inputs).square().sum().backward()
        for optimizer in (muon, adamw):
            optimizer.step()
    with strategy.gathered(["net"]) as nets:
        for name, parameter in nets["net"].named_parameters():
            torch.testing.assert_close(
                parameter, plain.get_parameter(name), rtol=0, atol=2.5e-3
            )  # torch's iterates in bfloat16


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_muons_update_has_singular_values_near_one(shape: tuple[int, int]) -> None:
    """U V^T by the singular value decomposition, within what Jordan et al. promise of five iterations."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_muon_takes_a_kernel_as_a_matrix() -> None:
    kernel = nn.Parameter(torch.zeros(4, 2, 3, 3))
    kernel.grad = torch.randn(kernel.shape, generator=torch.Generator().manual_seed(3))
    optimizer = OptimizerConfig(name="muon", momentum=0.0).build({"kernel": kernel})
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    expected = -0.2 * 18**0.5 * orthogonal(kernel.grad.view(4, 18)).float()
    torch.testing.assert_close(kernel.detach().view(4, 18), expected)


def test_muon_without_a_matrix_is_adamw() -> None:
    bias = nn.Parameter(torch.zeros(4))
    assert isinstance(OptimizerConfig(name="muon").build({"bias": bias}), torch.optim.AdamW)
