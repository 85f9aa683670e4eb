"""Running averages and power iterations against torch's own layers, over steps of one and several passes."""

from __future__ import annotations

import torch
from torch import nn

from sfumato.families.gan.layers.following import PowerIterations, RunningStatistics
from sfumato.layers.batch_norm import BatchNorm
from sfumato.layers.spectral import SpectralConv2d, SpectralLinear


def batches(steps: int, rows: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 + 2 * torch.randn(rows, 4, 3, 3, generator=generator) for _ in range(steps)]


def test_running_averages_equal_those_of_torch() -> None:
    """Two layers in a row; averages and what is sampled with them."""
    ours, running = nn.Sequential(BatchNorm(4), nn.Tanh(), BatchNorm(4)), RunningStatistics()
    theirs = nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Tanh(), nn.BatchNorm2d(4, affine=False))
    state = running.first(ours)
    for x in batches(5):
        running.watch(ours)
        torch.testing.assert_close(ours(x), theirs(x))
        state = running.advance(state, running.sums(ours))
    for at, layer in enumerate((theirs[0], theirs[2])):
        mean, variance = state[f"batch_norm.{at}.mean"], state[f"batch_norm.{at}.variance"]
        torch.testing.assert_close(mean, layer.running_mean.double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(variance, layer.running_var.double(), rtol=1e-5, atol=1e-6)
    running.stand(ours, state)
    x = batches(1)[0]
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


def test_a_step_of_several_passes_takes_their_mean_and_one_without_changes_nothing() -> None:
    layer, running = nn.Sequential(BatchNorm(4)), RunningStatistics()
    first, parts = running.first(layer), []
    x = batches(1)[0]
    for part in x.split(3):
        running.watch(layer)
        layer(part)
        parts.append(running.sums(layer))
    state = running.advance(first, {name: parts[0][name] + parts[1][name] for name in parts[0]})
    expected = 0.1 * x.double().mean((0, 2, 3))
    torch.testing.assert_close(state["batch_norm.0.mean"], expected, rtol=1e-6, atol=1e-6)
    variances = torch.stack([part.double().var((0, 2, 3)) for part in x.split(3)]).mean(0)
    torch.testing.assert_close(state["batch_norm.0.variance"], 0.9 + 0.1 * variances, rtol=1e-6, atol=1e-6)
    nothing = {name: torch.zeros_like(value) for name, value in parts[0].items()}
    for sums in (nothing, {}):
        after = running.advance(state, sums)
        assert all(torch.equal(after[name], value) for name, value in state.items())


def pair() -> tuple[nn.Module, nn.Module]:
    """A convolution and a linear map of ours, and torch's, with the same weights."""
    torch.manual_seed(1)
    ours = nn.Sequential(SpectralConv2d(4, 6, 3), nn.Flatten(), SpectralLinear(6, 5))
    theirs = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 5))
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_power_iterations_equal_those_of_torch_step_by_step() -> None:
    """torch.nn.utils.spectral_norm takes one iteration a pass in training: outputs, gradients and vectors."""
    ours, theirs = pair()
    iterations = PowerIterations()
    iterations.follow(ours)
    state = iterations.first(ours)
    for at, index in enumerate((0, 2)):
        nn.utils.spectral_norm(theirs[index], eps=1e-12)
        theirs[index].weight_u.copy_(state[f"spectral.{at}"])
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (ours, theirs)]
    for x in batches(4):
        iterations.carry(ours, state)
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
        twice = {name: 2 * value for name, value in iterations.sums(ours).items()}  # as of two micro-batches
        state = iterations.advance(state, twice)
        for at, index in enumerate((0, 2)):
            torch.testing.assert_close(state[f"spectral.{at}"], theirs[index].weight_u)
            torch.testing.assert_close(ours[index].weight, theirs[index].weight_orig)
    nothing = {name: torch.zeros_like(value) for name, value in state.items()}
    assert all(torch.equal(iterations.advance(state, nothing)[name], value) for name, value in state.items())


def test_they_converge_to_what_the_parametrization_and_the_weight_alone_give() -> None:
    ours, theirs = pair()
    x = batches(1)[0]
    from_weight = ours(x)
    iterations = PowerIterations()
    iterations.follow(ours)
    state = iterations.first(ours)
    for index in (0, 2):
        nn.utils.parametrizations.spectral_norm(theirs[index])
    for _ in range(300):
        iterations.carry(ours, state)
        out = ours(x)
        state = iterations.advance(state, iterations.sums(ours))
        expected = theirs(x)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out, from_weight, rtol=1e-3, atol=1e-4)


def test_the_vectors_are_no_part_of_the_weights() -> None:
    ours, _ = pair()
    before = list(ours.state_dict())
    PowerIterations().follow(ours)
    assert list(ours.state_dict()) == before
