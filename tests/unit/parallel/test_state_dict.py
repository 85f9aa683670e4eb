"""An optimizer's state is carried whatever it is called, and what cannot be carried is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.optimizer import OptimizerConfig
from sfumato.errors import CheckpointError
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Foo(torch.optim.Optimizer):
    """Heavy-ball momentum under a name of its own, with counts that are Python's."""

    def __init__(self, parameters: list[nn.Parameter], extra: object = None) -> None:
        super().__init__(parameters, {"lr": 0.1, "moves": 0})
        self._extra = extra

    @torch.no_grad()
    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state.update(foo=torch.zeros_like(parameter), turns=0, weight=1.0, odd=False)
                if self._extra is not None:
                    state["extra"] = self._extra
                state["turns"] += 1
                state["weight"] *= 0.5
                state["odd"] = not state["odd"]
                state["foo"].mul_(0.5 + state["weight"]).add_(parameter.grad)
                parameter.sub_(state["foo"], alpha=group["lr"] / state["turns"] * (2 if state["odd"] else 1))


class MovesItsSetting(Foo):
    def step(self, closure: object = None) -> None:
        super().step()
        self.param_groups[0]["moves"] += 1


def strategy(make: Make) -> Single:
    class Chosen(OptimizerConfig):
        def build(self, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
            return make(list(parameters.values()))

    made = Single(Placement())
    torch.manual_seed(0)
    made.add_trainable("net", nn.Linear(3, 2), Chosen())
    made.ready()
    return made


def steps(trained: Single, seeds: range) -> Tensor:
    for seed in seeds:
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        trained.backward("net", trained.view("net")["net"](x).square().mean())
        trained.step("net", lr=0.05, max_norm=None)
    return trained.weights(["net"])["net"]["weight"]


OPTIMIZERS: dict[str, Make] = {
    "foo": Foo,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "adagrad": torch.optim.Adagrad,
    "rprop": torch.optim.Rprop,
    "amsgrad": lambda parameters: torch.optim.AdamW(parameters, amsgrad=True, fused=True),
    "adafactor": torch.optim.Adafactor,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_optimizer_has_all_that_it_kept(name: str) -> None:
    calm = strategy(OPTIMIZERS[name])
    steps(calm, range(3))
    state = {key: value.clone() for key, value in calm.state().items()}
    expected = steps(calm, range(3, 6))
    resumed = strategy(OPTIMIZERS[name])
    steps(resumed, range(7, 9))  # what it had kept before does not count
    resumed.load(state)
    assert torch.equal(steps(resumed, range(3, 6)), expected)
    forgetful = strategy(OPTIMIZERS[name])
    forgetful.load({key: value for key, value in state.items() if key.startswith("nets/")})
    assert not torch.equal(steps(forgetful, range(3, 6)), expected), "its state makes no difference here"


def test_what_is_neither_tensor_nor_number_is_refused() -> None:
    trained = strategy(lambda parameters: Foo(parameters, extra=[1, 2]))
    steps(trained, range(1))
    with pytest.raises(CheckpointError, match="Foo of network 'net' keeps 'extra' for parameter weight") as e:
        trained.state()
    assert "\n" not in str(e.value)


def test_so_is_a_setting_that_the_optimizer_changes() -> None:
    trained = strategy(MovesItsSetting)
    trained.state()
    steps(trained, range(1))
    with pytest.raises(CheckpointError, match="changes its setting 'moves' while it trains"):
        trained.state()


def test_a_gradient_that_is_not_finite_changes_nothing_under_an_optimizer_without_a_flag() -> None:
    trained = strategy(torch.optim.RAdam)
    steps(trained, range(2))
    before = {key: value.clone() for key, value in trained.state().items()}
    trained.backward("net", trained.view("net")["net"](torch.full((1, 3), torch.inf)).sum())
    assert not trained.step("net", lr=0.05, max_norm=None).isfinite()
    assert all(torch.equal(value, before[key]) for key, value in trained.state().items())
