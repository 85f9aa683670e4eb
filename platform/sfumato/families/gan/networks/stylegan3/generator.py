"""StyleGAN3's generator (Karras et al. 2021, fig. 4b): every map is a sampled continuous signal.

    Fourier features -> modulated convolutions, each followed by a filtered nonlinearity -> image

No layer knows where a pixel lies, maps reach beyond the image by a margin, and there is no noise: what an
image shows moves with the Fourier features, by any fraction of a pixel, and in configuration R turns with
them. A layer's input is divided by its typical magnitude, which is measured in training and a state of the
family (app. B, "normalisation").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfumato.core.rng import seeded
from sfumato.families.gan.layers.equalised import EqualLinear
from sfumato.families.gan.networks import Generated
from sfumato.families.gan.networks.stylegan2.generator import ModulatedConv2d
from sfumato.families.gan.networks.stylegan3.filters import FilteredActivation, low_pass
from sfumato.families.gan.styles.styled_generator import MappingNetwork, StyledGenerator

OUTPUT_SCALE = 0.25
"""Of the last layer, so that the first images have about the values of real ones."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A layer's output as a signal; frequencies in cycles per image, the side in pixels."""

    channels: int
    cutoff: float
    half_width: float
    """Of the transition band: what lies above cutoff + half_width is gone."""
    rate: int
    """Pixels an image's side, without the margins."""
    side: int


class FourierFeatures(nn.Module):
    """Fixed waves of a disc of frequencies, turned and moved as the style says, and mixed (app. C.2)."""

    frequency_C2: Tensor
    phase_C: Tensor

    def __init__(self, signal: Signal, style: int) -> None:
        super().__init__()
        channels = signal.channels
        self.signal = signal
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = EqualLinear(style, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            assert self.affine.bias is not None, "an affine map has one"
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        with seeded("fourier features", channels, signal.side):
            radius_C, angle_C, phase_C = torch.rand(3, channels)
        # Uniform in the disc: its area within a radius grows with the square.
        radius_C, angle_C = signal.cutoff * radius_C.sqrt(), 2 * math.pi * angle_C
        frequency_C2 = torch.stack([radius_C * angle_C.cos(), radius_C * angle_C.sin()], 1)
        self.register_buffer("frequency_C2", frequency_C2, persistent=False)
        self.register_buffer("phase_C", phase_C - 0.5, persistent=False)

    def forward(self, w_BS: Tensor, placed: Tensor | None) -> Tensor:
        """`placed` [3, 3] or [B, 3, 3] maps a place in the image to the one whose content appears there,
        in image sides from the centre."""
        with torch.autocast(w_BS.device.type, enabled=False):  # phases need all their digits
            return self._mixed(w_BS.float(), placed)

    def _mixed(self, w_BS: Tensor, placed: Tensor | None) -> Tensor:
        signal = self.signal
        cosine, sine, right, down = self.affine(w_BS).float().unbind(1)
        length = torch.hypot(cosine, sine)
        turn_B22 = _stacked([[cosine, -sine], [sine, cosine]]) / length[:, None, None]
        shift_B2 = turn_B22 @ (-torch.stack([right, down], 1) / length[:, None])[:, :, None]
        if placed is not None:
            placed = placed.to(turn_B22)
            shift_B2 = shift_B2 + turn_B22 @ placed[..., :2, 2:]
            turn_B22 = turn_B22 @ placed[..., :2, :2]
        frequency_BC2 = self.frequency_C2 @ turn_B22
        phase_BC = self.phase_C + (self.frequency_C2 @ shift_B2).squeeze(2)
        # Waves that no longer fit into the signal are faded out.
        beyond_BC = (frequency_BC2.norm(dim=2) - signal.cutoff) / (signal.rate / 2 - signal.cutoff)
        amplitude_BC = (1 - beyond_BC).clamp(0, 1)
        at_H = (torch.arange(signal.side, device=w_BS.device) - (signal.side - 1) / 2) / signal.rate
        turns_BCHW = (
            phase_BC[:, :, None, None]
            + frequency_BC2[:, :, 0, None, None] * at_H
            + frequency_BC2[:, :, 1, None, None] * at_H[:, None]
        )
        waves_BCHW = (2 * math.pi * turns_BCHW).sin() * amplitude_BC[:, :, None, None]
        weight = self.weight.float() / math.sqrt(signal.channels)
        mixed_BCHW: Tensor = nn.functional.conv2d(waves_BCHW, weight[:, :, None, None])
        return mixed_BCHW


class AliasFreeLayer(nn.Module):
    """A modulated convolution, a bias, and a nonlinearity between filters; the last one makes colours."""

    def __init__(
        self,
        before: Signal,
        after: Signal,
        *,
        style: int,
        kernel: int,
        size: int,
        finer: int,
        radial: bool,
        colours: bool,
    ) -> None:
        """`size`: taps of a filter for each pixel of the coarser side; `finer`: how many times the leaky
        ReLU is sampled as finely as the finer side."""
        super().__init__()
        rate = max(before.rate, after.rate) * (1 if colours else finer)
        up, down = rate // before.rate, rate // after.rate
        taps = [1 if colours or factor == 1 else size * factor for factor in (up, down)]
        self.conv = ModulatedConv2d(
            before.channels,
            after.channels,
            1 if colours else kernel,
            style,
            demodulate=not colours,
            padding=0 if colours else kernel - 1,
        )
        self.bias = nn.Parameter(torch.zeros(after.channels))
        self.activation = FilteredActivation(
            low_pass(taps[0], before.cutoff, 2 * before.half_width, rate),
            low_pass(taps[1], after.cutoff, 2 * after.half_width, rate, radial=radial),
            up=up,
            down_by=down,
            side=after.side,
            bends=not colours,
        )

    def forward(self, x_BCHW: Tensor, w_BS: Tensor, magnitude: Tensor) -> Tensor:
        """`magnitude`: the typical mean square of inputs."""
        x_BCHW = self.conv(x_BCHW, w_BS) * magnitude.rsqrt().to(x_BCHW.dtype)
        out_BCHW: Tensor = self.activation(x_BCHW + self.bias[:, None, None].to(x_BCHW.dtype))
        return out_BCHW


class StyleGan3Generator(StyledGenerator):
    """See the top of the file. Styles are those of the Fourier features and of each layer."""

    def __init__(
        self,
        signals: Sequence[Signal],
        mapping: MappingNetwork,
        *,
        style: int,
        kernel: int,
        size: int,
        finer: int,
        radial: Sequence[bool],
    ) -> None:
        """`signals`: those of the Fourier features and after each layer, the last one the image's; `radial`:
        whether the filter after each layer is radially symmetric."""
        super().__init__(mapping, len(signals))
        self.waves = FourierFeatures(signals[0], style)
        pairs = zip(signals[:-1], signals[1:], radial, strict=True)
        self.layers = nn.ModuleList(
            AliasFreeLayer(
                before,
                after,
                style=style,
                kernel=kernel,
                size=size,
                finer=finer,
                radial=symmetric,
                colours=at == len(radial) - 1,
            )
            for at, (before, after, symmetric) in enumerate(pairs)
        )

    def forward(
        self,
        z_BD: Tensor,
        label_B: Tensor,
        *,
        magnitudes: Tensor | None = None,
        placed: Tensor | None = None,
        only_styles: bool = False,
        details: bool = False,
        **inputs: Any,
    ) -> Any:
        """As the base; `details` also gives the mean squares of every layer's input [B, layers].

        `magnitudes` [layers] are the typical ones, None for 1; `placed` see `FourierFeatures`.
        """
        if only_styles:
            return self.mapping(z_BD, label_B)
        styles_BLS = self.styles_of(z_BD, label_B, **inputs)
        image_BCHW, measured_BL = self._made(styles_BLS, magnitudes, placed)
        return Generated(image_BCHW, styles_BLS, measured=measured_BL) if details else image_BCHW

    def synthesise(self, styles_BLS: Tensor, noise: Sequence[Tensor] | None) -> Tensor:
        """See the base; for inputs of magnitude 1. There is no noise."""
        return self._made(styles_BLS, None, None)[0]

    def _made(
        self, styles_BLS: Tensor, magnitudes: Tensor | None, placed: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if magnitudes is None:
            magnitudes = torch.ones(len(self.layers))
        magnitudes = magnitudes.to(styles_BLS.device, torch.float32)
        x_BCHW, squares = self.waves(styles_BLS[:, 0], placed), []
        for at, layer in enumerate(self.layers):
            squares.append(x_BCHW.detach().float().square().mean((1, 2, 3)))
            x_BCHW = layer(x_BCHW, styles_BLS[:, at + 1], magnitudes[at])
        return OUTPUT_SCALE * x_BCHW.float(), torch.stack(squares, 1)

    def affine_weights(self) -> list[Tensor]:
        """See the base; of every modulated convolution."""
        return [
            module.affine.weight * module.affine.scale
            for module in self.modules()
            if isinstance(module, ModulatedConv2d)
        ]


def _stacked(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
