"""Layers that follow training: running averages of batch normalisation, power iterations of spectral norm.

Both are state of the family (`core.state`). They follow the papers; the alternatives depend on the
weights alone. State and sums are named by the layer's place in its network.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.state import State
from sfumato.layers.batch_norm import layers_of, running_after
from sfumato.layers.spectral import Spectral, first_carried

PASSES = "passes"


class RunningStatistics:
    """Running averages of a generator's batch normalisation over the passes that train it."""

    prefix = "batch_norm"

    def first(self, generator: nn.Module) -> dict[str, Tensor]:
        """Mean 0 and variance 1, as in torch."""
        found = {}
        for at, layer in enumerate(layers_of(generator)):
            found[f"{self.prefix}.{at}.mean"] = torch.zeros(layer.channels, dtype=torch.float64)
            found[f"{self.prefix}.{at}.variance"] = torch.ones(layer.channels, dtype=torch.float64)
        return found

    def watch(self, generator: nn.Module) -> None:
        """Prepare for a pass whose statistics count."""
        for layer in layers_of(generator):
            layer.watch()

    def sums(self, generator: nn.Module) -> dict[str, Tensor]:
        """The statistics of the pass since `watch`."""
        found: dict[str, Tensor] = {}
        for at, layer in enumerate(layers_of(generator)):
            mean_C, variance_C = layer.taken()
            found[f"{self.prefix}.{at}.mean"], found[f"{self.prefix}.{at}.variance"] = mean_C, variance_C
            found[f"{self.prefix}.{PASSES}"] = torch.ones_like(mean_C[0])
        return found

    def advance(self, state: State, sums: State) -> dict[str, Tensor]:
        """The averages after a step."""
        passes = sums.get(f"{self.prefix}.{PASSES}")
        return {
            name: value if passes is None else running_after(value, sums[name], passes)
            for name, value in state.items()
            if name.startswith(self.prefix)
        }

    def stand(self, generator: nn.Module, state: State) -> None:
        """Sample with the averages."""
        for at, layer in enumerate(layers_of(generator)):
            layer.stand(state[f"{self.prefix}.{at}.mean"], state[f"{self.prefix}.{at}.variance"])


class PowerIterations:
    """The vectors that a discriminator's spectral normalisation carries from step to step."""

    prefix = "spectral"

    def first(self, discriminator: nn.Module) -> dict[str, Tensor]:
        """A fixed random direction for each layer."""
        return {
            f"{self.prefix}.{at}": first_carried(len(layer.weight))
            for at, layer in enumerate(_spectral(discriminator))
        }

    def follow(self, discriminator: nn.Module) -> None:
        """Make the layers of a freshly built network carry vectors between passes."""
        for layer in _spectral(discriminator):
            layer.follow()

    def carry(self, discriminator: nn.Module, state: State) -> None:
        """Set the vectors before the passes of a phase."""
        for at, layer in enumerate(_spectral(discriminator)):
            layer.carry(state[f"{self.prefix}.{at}"])

    def sums(self, discriminator: nn.Module) -> dict[str, Tensor]:
        """The vectors after the iteration of the last pass: the same from every micro-batch of a step."""
        found: dict[str, Tensor] = {}
        for at, layer in enumerate(_spectral(discriminator)):
            assert layer.improved is not None, "no pass has reached this layer"
            found[f"{self.prefix}.{at}"] = layer.improved
        return found

    def advance(self, state: State, sums: State) -> dict[str, Tensor]:
        """The vectors after a step; unchanged if none of its updates counts."""
        found = {}
        for name, value in state.items():
            if name.startswith(self.prefix):
                summed = sums.get(name)
                found[name] = (
                    value
                    if summed is None
                    else torch.where(summed.any(), F.normalize(summed, dim=0).to(value.dtype), value)
                )
        return found


def _spectral(network: nn.Module) -> Iterator[Spectral]:
    return (module for module in network.modules() if isinstance(module, Spectral))
