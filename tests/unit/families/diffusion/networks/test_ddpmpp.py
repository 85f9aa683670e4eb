"""DDPM++ and NCSN++ against the authors' network, run on the same weights, and its published size."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.families.diffusion.augmentation import CHANGES
from sfumato.families.diffusion.networks.ddpmpp import DdpmppConfig

Variant = Literal["ddpm++", "ncsn++"]
CIFAR10 = DataSpec(3, 32, 32, tuple("0123456789"))


@pytest.mark.parametrize(
    ("variant", "conditional", "parameters"),
    [("ddpm++", False, 55_733_891), ("ddpm++", True, 55_735_299), ("ncsn++", False, 56_397_827)],
)
def test_it_has_the_authors_parameters(variant: Variant, conditional: bool, parameters: int) -> None:
    with torch.device("meta"):
        net = DdpmppConfig(variant=variant).build(CIFAR10, conditional=conditional, changes=CHANGES)
    assert sum(p.numel() for p in net.parameters()) == parameters


def tiny(variant: Variant) -> Any:
    config = DdpmppConfig(variant=variant, width=32, levels=(1, 2), blocks=1, attention=(1,), dropout=0)
    net: Any = config.build(DataSpec(3, 8, 8, ("a", "b")), conditional=True, changes=CHANGES)
    with torch.no_grad():
        for number, p in enumerate(net.parameters()):
            p.copy_((torch.arange(p.numel()).double() * 0.37 + number).sin().mul(0.1).view_as(p))
        if variant == "ncsn++":
            net.waves.frequencies.copy_(torch.linspace(-2, 2, 32))
    return net


# What the authors' `SongUNet` (github.com/NVlabs/edm) returns for these weights and inputs.
AUTHORS: dict[Variant, list[float]] = {
    "ddpm++": [-0.031971, -0.075421, -0.06119, -0.040438, -0.082274, -0.066226, -0.032662],
    "ncsn++": [0.092612, 0.085541, 0.077278, 0.061918, 0.075248, 0.073276, 0.059447],
}


@pytest.mark.parametrize("variant", ["ddpm++", "ncsn++"])
def test_it_returns_what_the_authors_network_does(variant: Variant) -> None:
    x = (torch.arange(2 * 3 * 64) * 0.1).cos().view(2, 3, 8, 8)
    changes = (torch.arange(2 * CHANGES) * 0.3).sin().view(2, CHANGES)
    net, t, label = tiny(variant), torch.tensor([-0.5, 0.3]), torch.tensor([1, 2])  # 2 stands for none
    with torch.no_grad():
        (found,) = net(x, t, label, changes=changes)
        torch.testing.assert_close(found.flatten()[::55], torch.tensor(AUTHORS[variant]), atol=2e-6, rtol=0)
        (unchanged,) = net(x, t, label)
        assert torch.equal(unchanged, net(x, t, label, changes=torch.zeros_like(changes))[0])
        assert not torch.equal(unchanged, found)


def test_a_fresh_network_predicts_almost_nothing_of_unit_input() -> None:
    net = DdpmppConfig.tiny().build(DataSpec(3, 8, 8), conditional=False)
    with torch.no_grad():
        (found,) = net(torch.randn(4, 3, 8, 8), torch.zeros(4))
    assert float(found.abs().max()) < 1e-3


def test_the_length_of_a_step_is_seen() -> None:
    torch.manual_seed(0)
    net: nn.Module = DdpmppConfig.tiny().build(DataSpec(3, 8, 8), conditional=False, spans=True)
    x, t = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with torch.no_grad():
        (one,), (other,) = (net(x, t, span=torch.full((2,), span)) for span in (0.0, 1.0))
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"attention": (3,)}, "attention: there is no level 3; levels give 0 to 2"),
        ({"width": 30}, "width: must be a multiple of 4, got 30"),
        ({"width": 132, "levels": (1, 3)}, "levels: 132 channels do not divide into 32 groups"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DdpmppConfig(**settings)
