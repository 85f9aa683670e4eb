"""Pooled texts where other models have classes: what follows from a text, in flows, VAEs and GANs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from members import DATA, ROWS, batch, build, progress_of, view
from torch import nn

from sfumato import families
from sfumato.core.batch import Piece, Texts
from sfumato.core.family import Family, FamilyConfig, HasLikelihood, SampleRequest
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.layers.vector_condition import VectorMap, take_vectors
from sfumato.text.network import TextConditioned

POOLED = [("flow", "text"), ("vae", "gaussian_text"), ("gan", "text")]
ALL = [*POOLED, ("autoregressive", "text_transformer"), ("diffusion", "unet_text"), ("diffusion", "mmdit")]


def member(family: str, variant: str) -> tuple[FamilyConfig, Family, dict[str, nn.Module]]:
    config = families.config_class(family).variants()[variant]
    made = config.build(DATA)
    nets = build(made)
    with seeded(3, family):  # maps of conditions may start at zero
        for net in nets.values():
            for weight in net.parameters():
                weight.data.add_(0.1 * torch.randn_like(weight))
    return config, made, {name: net.eval() for name, net in nets.items()}


@torch.no_grad()
def drawn(
    texts: list[str], family: Family, config: FamilyConfig, nets: Mapping[str, nn.Module]
) -> torch.Tensor:
    request = SampleRequest(num=len(texts), options=config.sampling, conditions={"text": Texts(texts)})
    used = {name: nets[name] for name in family.samplers}
    return family.sample(used, request, progress_of(family), SampleRng(1, range(len(texts))))


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_an_image_follows_its_own_text(name: str, variant: str) -> None:
    config, family, nets = member(name, variant)
    one = drawn(["the one", "the one", "other"], family, config, nets)
    two = drawn(["the one", "a b c", "other"], family, config, nets)
    torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(one[2], two[2], rtol=0, atol=1e-4)
    assert not torch.allclose(one[1], two[1], atol=1e-3)


@pytest.mark.parametrize(("name", "variant"), [*ALL])
def test_without_a_text_an_image_is_that_of_the_empty_one(name: str, variant: str) -> None:
    config, family, nets = member(name, variant)
    used = {key: nets[key] for key in family.samplers}
    request = SampleRequest(num=2, options=config.sampling)
    with torch.no_grad():
        without = family.sample(used, request, progress_of(family), SampleRng(1, range(2)))
    torch.testing.assert_close(without, drawn(["", ""], family, config, nets), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "variant"), [("flow", "text"), ("vae", "gaussian_text")])
@torch.no_grad()
def test_the_likelihood_is_that_of_the_text(name: str, variant: str) -> None:
    """A text changes the likelihood of its own image alone."""
    _, family, nets = member(name, variant)
    assert isinstance(family, HasLikelihood)
    rows = batch()
    used = {key: nets[key] for key in family.samplers}

    def bits(texts: list[str]) -> torch.Tensor:
        given = {**rows, "text": Texts(texts)}
        return family.bits_per_dim(used, given, progress_of(family), SampleRng(1, range(ROWS)))

    one, two = bits(["the one", "a", "", "b"]), bits(["the one", "b", "", "b"])
    torch.testing.assert_close(one[[0, 2, 3]], two[[0, 2, 3]])
    assert abs(float(one[1] - two[1])) > 1e-4


def test_discriminators_learn_whose_text_it_is() -> None:
    """Reed et al. 2016, algorithm 1, with the hinge loss: real with its own text above, with another's
    below.
    """
    config, family, nets = member("gan", "text")
    (matching,) = [phase for phase in family.phases if phase.name == "matching"]
    assert matching.trains == "discriminator"
    rng = StreamRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=5, images=0, phase="matching")
    prepared = family.prepare(view(nets, None), batch(), progress_of(family), rng)
    out = matching.loss(view(nets, "discriminator"), prepared, progress_of(family), rng)
    discriminator: Any = nets["discriminator"]
    assert isinstance(discriminator, TextConditioned)
    texts: Any = family._text.condition.of(prepared)  # type: ignore[attr-defined]
    pooled = discriminator.seen(discriminator.encoded(texts)).pooled
    x = prepared["image"]
    right = discriminator.network.score(x, pooled)
    wrong = discriminator.network.score(x, pooled.roll(1, dims=0))
    torch.testing.assert_close(out.loss_B, (1 - right).clamp(min=0) + (1 + wrong).clamp(min=0))
    without = config.model_copy(update={"matching": False}).build(DATA)
    assert [phase.name for phase in without.phases] == ["discriminator", "generator"]


def test_maps_of_vectors_spread_as_the_embeddings_did() -> None:
    with seeded(1, "maps"):
        network = nn.Sequential(nn.Embedding(50, 400), nn.Linear(400, 3))
        before = network[0].weight.detach().clone()
        take_vectors(network, 64)
        found = network[0](torch.randn(500, 64)).detach()
    assert isinstance(network[0], VectorMap) and isinstance(network[1], nn.Linear)
    assert float(found.std(dim=0).mean()) == pytest.approx(float(before.std(dim=0).mean()), rel=0.1)
    torch.testing.assert_close(network[0].bias.detach(), before.mean(dim=0))
    ones = VectorMap(nn.Embedding.from_pretrained(torch.ones(1, 4)), 8)
    assert not ones.weight.any(), "gains start at one"
    assert torch.equal(ones.bias, torch.ones(4))
