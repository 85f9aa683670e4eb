"""Autoencoders of DC-AE's kind: what their weightless paths do, written out, and what does not fit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.errors import ConfigError
from sfumato.families.vae.coders import NetworkConfig, decoder, encoder
from sfumato.families.vae.latents.kl import KlAutoencoder, KlLatent

DEEP = NetworkConfig(channels=(4, 8), residual=True)


def without_weights(network: nn.Module) -> nn.Module:
    """All weights zero, but for a first convolution that copies."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        first = network.conv_in
        assert isinstance(first, nn.Conv2d)
        if first.in_channels == first.out_channels == 4:
            first.weight[range(4), range(4), 1, 1] = 1.0
    return network


def test_pixels_become_channels_and_back_beside_the_convolutions() -> None:
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = without_weights(encoder(DEEP, 4, 8))(x)
    wanted = torch.empty(2, 8, 4, 4)
    for channel in range(4):
        for dy in range(2):
            wanted[:, 2 * channel + dy] = (x[:, channel, dy::2, 0::2] + x[:, channel, dy::2, 1::2]) / 2
    torch.testing.assert_close(z, wanted)

    back, seen = without_weights(decoder(DEEP, 8, 4)), list[Tensor]()
    norm = back.norm_out
    assert isinstance(norm, nn.Module)
    norm.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        back(z)
    rows = x.unflatten(3, (4, 2)).mean(4).repeat_interleave(2, dim=3)
    torch.testing.assert_close(seen[0].movedim(-1, 1), rows)  # its channels are last


def test_any_number_of_latent_channels() -> None:
    """Those that do not divide the last level's are reached by the convolution alone."""
    network = NetworkConfig(channels=(8, 16, 32), residual=True, mid_attention=True)
    model = KlAutoencoder(network, KlLatent(channels=3), DataSpec(3, 16, 16))
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        assert model.decode(model.encode(image).mean).shape == image.shape
    assert model.encode(image).mean.shape == (2, 3, 4, 4)
    with pytest.raises(ConfigError, match="diffusers has no autoencoder like one with"):
        model.in_diffusers(1.0)


@pytest.mark.parametrize(
    ("channels", "more", "reason"),
    [
        ((8, 6), {}, "channels: residual turns 4 x 8 channels of a level into the next one's"),
        ((4, 32), {}, "must be a multiple of 4 and divide 16; got 32"),
        ((8, 16), {"norm_groups": 4}, "norm_groups: has no effect with residual=true"),
    ],
)
def test_what_does_not_fit_is_refused(channels: tuple[int, ...], more: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        NetworkConfig.model_validate({"channels": channels, "residual": True, **more})
