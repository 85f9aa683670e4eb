"""A denoiser whose middle others can read, such as a discriminator."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sfumato.families.diffusion.guidance.labels import Given


class Middle(nn.Module):
    """Called as its network; also returns the layer in its middle, as positions [B, T, C].

    `middle` is that of `NetworkConfig`; with None there is nothing to read, and positions are [B, 0, 1].
    """

    def __init__(self, build: Callable[[], nn.Module], middle: tuple[str, int] | None) -> None:
        super().__init__()
        self.network = build()
        self._read: list[Tensor] = []
        self._reads = middle is not None
        if middle is not None:
            inner = getattr(self.network, "network", self.network)  # latents have a wrapper
            inner.get_submodule(middle[0]).register_forward_hook(
                lambda module, inputs, output: self._read.append(output)
            )

    def forward(
        self, x_BCHW: Tensor, t_B: Tensor, given: Given | None = None, return_dict: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The network's output, and the positions."""
        output_BCHW = self.network(x_BCHW, t_B, given, return_dict=False)[0]
        if not self._reads:
            return output_BCHW, output_BCHW.new_zeros(len(x_BCHW), 0, 1)
        read = self._read.pop()
        return output_BCHW, read.flatten(2).transpose(1, 2) if read.dim() == 4 else read
