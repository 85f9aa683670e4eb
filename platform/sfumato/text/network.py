"""A network that sees texts, together with the text encoders that are trained with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from sfumato.text.encoders import TextEncoderConfig
from sfumato.text.states import States, combined


class TextConditioned(nn.Module):
    """Called with the inputs of texts (`text.condition`) as last argument; the network gets `States`.

    The encoders are a part of it, because a phase trains one network. With `pooled`, the network gets the
    pooled states alone, [B, P]. With `inside`, frozen encoders are a part of it too, so that something in
    them can train.
    """

    def __init__(
        self,
        network: nn.Module,
        encoders: Mapping[str, TextEncoderConfig],
        *,
        pooled: bool = False,
        inside: bool = False,
    ) -> None:
        super().__init__()
        self._pooled = pooled
        self.network = network
        self.encoders = nn.ModuleDict(
            {name: encoder.build() for name, encoder in encoders.items() if encoder.trained or inside}
        )
        self.configs = dict(encoders)
        self.beside: nn.Module | None = None
        """What sees the same as the network and gives it more arguments: (..., states, inputs) -> dict."""
        self.entering: nn.Module | None = None
        """What changes the first argument and the states: (first, states, inputs) -> (first, states)."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output for (..., inputs)."""
        *others, inputs = args
        states = self.seen(self.encoded(inputs))
        if self.entering is not None:
            first, states = self.entering(others[0], states, inputs)
            others = [first, *others[1:]]
        more = {} if self.beside is None else self.beside(*others, states, inputs)
        return self.network(*others, states.pooled if self._pooled else states, **kwargs, **more)

    def encoded(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with all tokens encoded: calls with these repeat no encoder's work."""
        found = dict(inputs)
        for name, encoder in self.encoders.items():
            if f"{name}_ids" in found:
                states = encoder(found.pop(f"{name}_ids"), found[f"{name}_mask"])
                found |= used(name, self.configs[name], states)
        return found

    def seen(self, inputs: Mapping[str, Tensor]) -> States:
        """What the network sees of encoded inputs."""
        parts = [States(*(inputs[f"{name}_{part}"] for part in States._fields)) for name in self.configs]
        return combined(parts, [config.beside for config in self.configs.values()])


def used(name: str, encoder: TextEncoderConfig, states: States) -> dict[str, Tensor]:
    """What the model uses of an encoder's states, named."""
    states = padded(encoder, states)
    tokens, pooled = encoder.uses != "pooled", encoder.uses != "states"
    return {
        f"{name}_states": states.states if tokens else states.states[:, :0, :0],
        f"{name}_mask": states.mask if tokens else states.mask[:, :0],
        f"{name}_pooled": states.pooled if pooled else states.pooled[:, :0],
    }


def padded(encoder: TextEncoderConfig, states: States) -> States:
    """With zeros for padding, if the encoder's settings say so."""
    if encoder.padding == "states":
        return states
    return states._replace(states=states.states.masked_fill(~states.mask.unsqueeze(-1), 0.0))


def named_inputs(name: str) -> list[str]:
    """The names of all inputs that an encoder may have."""
    return [f"{name}_ids", *(f"{name}_{part}" for part in States._fields)]
