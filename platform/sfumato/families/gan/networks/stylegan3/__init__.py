"""StyleGAN3 (Karras, Aittala, Laine, Härkönen, Hellsten, Lehtinen, Aila 2021), configurations T and R.

- `filters.py`: low-pass filters, and nonlinearities between them.
- `generator.py`: Fourier features, layers, magnitudes of their inputs.

Cutoffs and stopbands of the layers grow geometrically from the first to the last but two, which use all the
image can hold (app. C.1, "layer specifications"). The discriminator is StyleGAN2's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.progress import Progress
from sfumato.core.rng import Rng
from sfumato.core.state import State
from sfumato.families.gan.networks import Generated, GeneratorNet
from sfumato.families.gan.sampling import SamplingConfig
from sfumato.families.gan.styles.styled import StyledConfig
from sfumato.families.gan.styles.styled_generator import MappingNetwork

MAGNITUDES = "stylegan3.magnitudes"
_ROWS = "stylegan3.rows"
_WIDER = {"t": 1, "r": 2}


class StyleGan3Config(StyledConfig):
    """Styles that modulate convolutions of signals without aliasing (Karras et al. 2021)."""

    kind: Literal["stylegan3"] = Field("stylegan3", description="Selects StyleGAN3.")
    noisy: ClassVar[bool] = False
    places: ClassVar[bool] = True
    measures: ClassVar[bool] = True
    configuration: Literal["t", "r"] = Field(
        "t",
        description="t: what an image shows moves with its Fourier features; r: it also turns with them, by "
        "1x1 convolutions of twice as many channels and radially symmetric filters.",
    )
    depth: int = Field(14, ge=2, description="Layers before that of the colours.")
    critical: int = Field(2, ge=1, description="Last layers whose signal fills the image's frequencies.")
    first_cutoff: float = Field(2.0, gt=0, description="Cutoff of the Fourier features, cycles per image.")
    first_stopband: float = Field(2**2.1, gt=0, description="Where their signal ends, cycles per image.")
    last_stopband: float = Field(2**0.3, gt=1, description="Where the last layers' ends, over their cutoff.")
    margin: int = Field(10, ge=0, description="Pixels by which maps reach beyond the image on every side.")
    filter_size: int = Field(6, ge=2, description="Taps of a filter for each pixel of the coarser side.")
    finer: int = Field(2, ge=1, description="How much finer than its layer the leaky ReLU is sampled.")
    magnitude_images: int = Field(
        20_000, ge=1, description="Half-life of the mean squares that inputs are divided by, in images."
    )
    channel_base: int = Field(32_768, ge=1, description="Channels times twice the layer's cutoff.")
    mapping_layers: int = Field(2, ge=1, description="Layers from the latent to the style.")
    mixing: float = Field(
        0.0, ge=0, le=1, description="Share of images whose later layers have the style of another latent."
    )

    def layers(self, data: DataSpec) -> tuple[int, ...]:
        """None takes noise."""
        return ()

    def style_layers(self, data: DataSpec) -> int:
        """The Fourier features, the layers, and the colours."""
        return self.depth + 2

    def build_generator(self, data: DataSpec, *, latent: int, classes: int) -> GeneratorNet:
        """See `generator.py`."""
        from sfumato.families.gan.networks.stylegan3.generator import Signal, StyleGan3Generator

        mapping = MappingNetwork(latent, self.style, classes, self.mapping_layers, self.mapping_rate)
        turns = self.configuration == "r"
        last = self.depth - self.critical
        return StyleGan3Generator(
            [Signal(*each) for each in self._signals(data)],
            mapping,
            style=self.style,
            kernel=1 if turns else 3,
            size=self.filter_size,
            finer=self.finer,
            radial=[turns and at < last for at in range(self.depth + 1)],
        )

    def _signals(self, data: DataSpec) -> list[tuple[int, float, float, int, int]]:
        """Of the Fourier features, of each layer and of the image; see `generator.Signal`."""
        side = data.height
        last_cutoff = side / 2
        wider = _WIDER[self.configuration]
        found = []
        for at in range(self.depth + 1):
            part = min(at / (self.depth - self.critical), 1) if self.depth > self.critical else 1.0
            cutoff = self.first_cutoff * (last_cutoff / self.first_cutoff) ** part
            stopband = self.first_stopband * (last_cutoff * self.last_stopband / self.first_stopband) ** part
            rate = 2 ** math.ceil(math.log2(min(2 * stopband, side)))
            half_width = max(stopband, rate / 2) - cutoff
            channels = round(min(wider * self.channel_base / 2 / cutoff, wider * self.channel_max))
            found.append((max(1, channels), cutoff, half_width, rate, rate + 2 * self.margin))
        # Layer i starts from signal i and ends in signal i of the list, whose first one the features share.
        signals = [found[0], *found]
        for at in (-1, -2):
            signals[at] = (*signals[at][:-1], side)
        signals[-1] = (data.channels, *signals[-1][1:])
        return signals

    def first_state(self) -> dict[str, Tensor]:
        """Mean squares of 1."""
        return {MAGNITUDES: torch.ones(self.depth + 1, dtype=torch.float64)}

    def sums(self, made: Generated) -> dict[str, Tensor]:
        """Those of a micro-batch, summed over its rows."""
        assert made.measured is not None, "it was asked for details"
        return {
            MAGNITUDES: made.measured.double().sum(0),
            _ROWS: torch.ones_like(made.measured[:, 0]).double().sum(),
        }

    def advance(self, state: State, sums: State, progress: Progress) -> dict[str, Tensor]:
        """The running means after a step; unchanged where no image was made."""
        mean_L, rows = state[MAGNITUDES], sums.get(_ROWS)
        if rows is None:
            return {MAGNITUDES: mean_L}
        kept = 0.5 ** (progress.batch / self.magnitude_images)
        moved_L = kept * mean_L + (1 - kept) * sums[MAGNITUDES] / rows.clamp_min(1)
        return {MAGNITUDES: torch.where(rows > 0, moved_L, mean_L)}

    def generator_inputs(
        self, data: DataSpec, latent: int, progress: Progress, rng: Rng
    ) -> Mapping[str, Any]:
        """The magnitudes; with `mixing`, a second latent and from which layer on its style counts."""
        return {
            "magnitudes": progress.state[MAGNITUDES].float(),
            **self.mixed(self.style_layers(data), latent, rng),
        }

    def sampling_inputs(
        self, generator: nn.Module, latent: int, classes: int, progress: Progress, options: SamplingConfig
    ) -> Mapping[str, Any]:
        """The magnitudes, and what the options ask of styles."""
        moved = super().sampling_inputs(generator, latent, classes, progress, options)
        return {**moved, "magnitudes": progress.state[MAGNITUDES].float()}

    @classmethod
    def tiny(cls) -> Self:
        """Four layers of at most four channels with narrow margins."""
        small = super().tiny().model_dump(exclude={"kind", "mixing"})
        return cls(**{**small, "depth": 3, "critical": 1, "margin": 4})

    def problems(self, data: DataSpec) -> list[str]:
        """Sides as those of StyleGAN2, and layers and frequencies that leave no room for one another."""
        found = super().problems(data)
        if self.critical >= self.depth:
            found.append(
                f"model.network.critical: {self.critical} of {self.depth} layers, which leaves none before "
                f"them; use at most {self.depth - 1}"
            )
        if self.first_stopband <= self.first_cutoff:
            found.append(
                f"model.network.first_stopband: {self.first_stopband:g} is not above first_cutoff="
                f"{self.first_cutoff:g}; the paper has 4.287 and 2"
            )
        if not found and self.first_cutoff >= data.height / 2:
            found.append(
                f"model.network.first_cutoff: {self.first_cutoff:g} cycles, and an image of side "
                f"{data.height} holds fewer than {data.height / 2:g}; use 2"
            )
        return found


COMPONENT = StyleGan3Config
