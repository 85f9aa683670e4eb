"""Initial weights of diffusers' transformers: those that the papers start from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sfumato.core.batch import DataSpec
from sfumato.core.rng import seeded
from sfumato.families.diffusion.networks import NETWORKS, TextNetworkConfig
from sfumato.text.states import States, TextShape

IMAGES = DataSpec(3, 8, 8)
TEXT = TextShape(5, 8, 8)


def fresh(kind: str) -> nn.Module:
    config = NETWORKS.find(kind).tiny()
    assert isinstance(config, TextNetworkConfig)
    with seeded(0, kind):
        return config.build_for_text(IMAGES, TEXT)


@pytest.mark.parametrize("kind", ["mmdit", "flux", "pixart"])
@torch.no_grad()
def test_a_fresh_network_answers_zero(kind: str) -> None:
    text = States(torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.bool), torch.randn(2, 8))
    (found,) = fresh(kind)(torch.randn(2, 3, 8, 8), torch.tensor(300.0), text, return_dict=False)
    assert not found.any()


@pytest.mark.parametrize("kind", ["mmdit", "flux"])
def test_fresh_blocks_are_the_identity(kind: str) -> None:
    """Every block's own layers: what enters its gates is zero, so only its input comes out."""
    network = fresh(kind)
    gates = [module for name, module in network.named_modules() if "norm" in name and hasattr(module, "silu")]
    assert len(gates) >= 3, "of each stream and of the last layer"
    for module in gates:
        assert not module.linear.weight.any() and not module.linear.bias.any()
    linear = next(module for name, module in network.named_modules() if name.endswith("to_q"))
    bound = math.sqrt(6 / sum(linear.weight.shape))  # Glorot & Bengio 2010, eq. 16
    assert 0.8 * bound < linear.weight.abs().max() <= bound


def test_pixart_starts_without_texts_but_with_open_gates() -> None:
    """Its authors' code: cross-attention adds nothing at first, self-attention does."""
    network = fresh("pixart")
    crossed = [module for name, module in network.named_modules() if name.endswith("attn2.to_out.0")]
    assert crossed and not any(module.weight.any() for module in crossed)
    assert network.transformer.transformer_blocks[0].scale_shift_table.any()
    assert 0.01 < network.transformer.adaln_single.linear.weight.std() < 0.03
