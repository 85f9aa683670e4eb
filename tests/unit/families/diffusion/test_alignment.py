"""Representation alignment against the formula, on a network of transformers with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import ConvNextConfig, ConvNextModel, Dinov2Config, Dinov2Model

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.families.diffusion.alignment import COLUMN, features
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.variants import variants

DATA = DataSpec(1, 8, 8, ("a", "b"))
ROWS = 4


def model(**changes: Any) -> DiffusionConfig:
    return DiffusionConfig.model_validate({"family": "diffusion", **variants()["aligned"], **changes})


def run(config: DiffusionConfig) -> tuple[Any, Any, Any]:
    family: Any = config.build(DATA)
    nets = {}
    for name in ("encoder", "network"):
        if name in family.nets:
            with seeded(0, name):
                nets[name] = family.nets[name].build()
    with seeded(1), torch.no_grad():
        for value in nets["network"].parameters():
            value.add_(torch.randn_like(value) * 0.2)
    nets["network"].train()
    with seeded(2):
        image = torch.rand(ROWS, *DATA.shape) * 2 - 1
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="flow")
    batch = family.prepare(nets, {"image": image, "label": torch.tensor([0, 1, 0, 1])}, Progress.at(0), rng)
    return family.phases[0].loss(nets, batch, Progress.at(0), rng), nets, image


def test_tokens_are_drawn_to_the_features_of_the_clean_image() -> None:
    tokens: list[torch.Tensor] = []
    config = model()
    out, nets, image = run(config)
    _, bare, _ = run(model(alignment=None))
    bare["network"].load_state_dict(
        {k: v for k, v in nets["network"].state_dict().items() if "projector" not in k}
    )
    nets["network"].blocks[0].register_forward_hook(lambda m, i, o: tokens.append(o))
    family: Any = config.build(DATA)
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="flow")
    batch = family.prepare(nets, {"image": image, "label": torch.tensor([0, 1, 0, 1])}, Progress.at(0), rng)
    again = family.phases[0].loss(nets, batch, Progress.at(0), rng)
    torch.testing.assert_close(again.loss_B, out.loss_B)
    h = tokens[0]
    first, second, last = (nets["network"].projector[i] for i in (0, 2, 4))
    for layer in (first, second):
        h = h @ layer.weight.T + layer.bias
        h = h / (1 + torch.exp(-h))
    h = h @ last.weight.T + last.bias
    shown = F.interpolate(image.expand(-1, 3, -1, -1), (8, 8), mode="bicubic", antialias=True) / 2 + 0.5
    shown = (shown - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    with torch.no_grad():
        y = nets["encoder"](shown).last_hidden_state[:, 1:]
    cosine = (h * y).sum(-1) / (h.norm(dim=-1) * y.norm(dim=-1))
    torch.testing.assert_close(out.metrics["alignment"], cosine.mean(1).detach(), rtol=1e-4, atol=1e-5)
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="flow")
    bare_family: Any = model(alignment=None).build(DATA)
    objective = bare_family.phases[0].loss(
        bare, {"image": image, "label": torch.tensor([0, 1, 0, 1])}, Progress.at(0), rng
    )
    torch.testing.assert_close(
        out.loss_B, objective.loss_B + 0.5 * (1 - cosine.mean(1)), rtol=1e-4, atol=1e-4
    )
    out.loss_B.sum().backward()
    assert nets["network"].blocks[0].qkv.weight.grad.abs().sum() > 0
    assert COLUMN in batch


def test_features_lie_on_the_grid_whatever_the_network() -> None:
    image = torch.rand(2, 3, 12, 8) * 2 - 1
    with seeded(0):
        patches = Dinov2Model(
            Dinov2Config(
                hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=2
            )
        ).eval()
        map_ = ConvNextModel(ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2)).eval()
    assert features(patches, image, (6, 4)).shape == (2, 24, 8)
    found = features(map_, image, (6, 4))
    assert found.shape == (2, 24, 6)
    # Row-major: turning the image upside down turns the rows.
    assert not found.requires_grad


def test_sampling_and_exports_know_nothing_of_it() -> None:
    family: Any = model().build(DATA)
    assert "encoder" not in family.samplers
    network = family.nets["network"].build().eval()
    assert len(network(torch.zeros(1, 1, 8, 8), torch.tensor(1.0), torch.tensor([0]))) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"alignment": {**variants()["aligned"]["alignment"], "depth": 3}},
            "depth: 3, but the network has 2",
        ),
        (
            {"network": {"kind": "unet", "channels": [8, 16], "norm_groups": 4, "head_dim": 8}},
            "unet has no blocks of tokens",
        ),
    ],
)
def test_what_cannot_be_aligned_is_said(changes: dict[str, Any], says: str) -> None:
    assert any(says in problem for problem in model(**changes).problems(DATA))


def test_a_convolution_of_tokens_meets_features_without_their_mean() -> None:
    """iREPA: the convolution written as a product with unfolded tokens, the normalisation as its formula."""
    aligned = {**variants()["aligned"]["alignment"], "projector": "convolution", "spatial_norm": 0.6}
    config = model(alignment=aligned)
    tokens: list[torch.Tensor] = []
    out, nets, image = run(config)
    nets["network"].blocks[0].register_forward_hook(lambda m, i, o: tokens.append(o))
    family: Any = config.build(DATA)
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=0, images=0, phase="flow")
    batch = family.prepare(nets, {"image": image, "label": torch.tensor([0, 1, 0, 1])}, Progress.at(0), rng)
    family.phases[0].loss(nets, batch, Progress.at(0), rng)
    conv = nets["network"].projector.conv
    side = int(tokens[0].shape[1] ** 0.5)
    around = F.unfold(tokens[0].transpose(1, 2).reshape(ROWS, -1, side, side), 3, padding=1)
    h = (conv.weight.flatten(1) @ around).transpose(1, 2) + conv.bias
    y = features(nets["encoder"], image, (side, side))
    y = (y - 0.6 * y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    cosine = (h * y).sum(-1) / (h.norm(dim=-1) * y.norm(dim=-1))
    torch.testing.assert_close(out.metrics["alignment"], cosine.mean(1).detach(), rtol=1e-4, atol=1e-5)
