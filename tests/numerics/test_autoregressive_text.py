"""The transformer of codes given texts: what it sees, its cache, its guidance."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.rng import seeded
from sfumato.families.autoregressive.drawing.draws import draw
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.families.autoregressive.text_codes import Cache, TextCodeNetwork, drawn
from sfumato.text.states import States, TextShape

CODES, LENGTH = 7, 6
TEXT = TextShape(tokens=5, width=4, pooled=0)


@pytest.fixture
def network() -> TextCodeNetwork:
    with seeded(0, "codes"):
        made = TextCodeNetwork(CODES, LENGTH, TEXT, width=8, layers=2, heads=2).eval()
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return made.requires_grad_(False)


def text(rows: int, seed: int = 0) -> States:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(TEXT.tokens) < torch.arange(2, rows + 2)[:, None]
    states = torch.randn(rows, TEXT.tokens, TEXT.width, generator=generator)
    return States(states, mask, torch.zeros(rows, 0))


def codes(rows: int, length: int = LENGTH - 1) -> torch.Tensor:
    return torch.randint(CODES, (rows, length), generator=torch.Generator().manual_seed(1))


def test_a_code_is_predicted_from_those_before_it_and_the_text(network: TextCodeNetwork) -> None:
    plain, _ = network(codes(3), None, text(3))
    assert plain.shape == (3, LENGTH, CODES)
    changed = codes(3)
    changed[:, 2] = (changed[:, 2] + 1) % CODES
    other, _ = network(changed, None, text(3))
    torch.testing.assert_close(other[:, :3], plain[:, :3])
    assert not torch.allclose(other[:, 3:], plain[:, 3:], atol=1e-3)
    elsewhere, _ = network(codes(3), None, text(3, seed=5))
    assert not torch.allclose(elsewhere[:, 0], plain[:, 0], atol=1e-3)


def test_padding_is_not_seen(network: TextCodeNetwork) -> None:
    seen = text(3)
    padded = seen._replace(states=torch.where(seen.mask[..., None], seen.states, torch.tensor(9.0)))
    newest = torch.cat([codes(3), codes(3)[:, :1]], dim=1)
    (one, cache), (two, other) = (network(codes(3), None, each) for each in (seen, padded))
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(network(newest, cache, seen)[0], network(newest, other, padded)[0])


def test_the_cache_gives_the_same_logits(network: TextCodeNetwork) -> None:
    whole, _ = network(codes(3), None, text(3))
    caches: list[Cache] | None = None
    for t in range(LENGTH):
        logits, caches = network(codes(3)[:, :t], caches, text(3))
        torch.testing.assert_close(logits[:, -1], whole[:, t], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_guided_draws_without_a_cache_and_one_by_one(network: TextCodeNetwork, weight: float) -> None:
    wanted, unwanted = text(3), text(3, seed=4)
    uniform = torch.rand(3, LENGTH, generator=torch.Generator().manual_seed(2))
    limits = {"temperature": 0.8, "top_p": 0.7}
    options = SamplingConfig(guidance=weight, guidance_schedule="linear", **limits)
    both = States(*(torch.cat(parts) for parts in zip(wanted, unwanted, strict=True)))
    given = both if weight != 1 else wanted
    found = drawn(lambda c, k: network(c, k, given), uniform, options, guided=weight != 1)
    for row in range(3):
        so_far = torch.zeros(1, 0, dtype=torch.int64)
        for t in range(LENGTH):
            ones = (States(*(part[row : row + 1] for part in each)) for each in (wanted, unwanted))
            yes, no = (network(so_far, None, each)[0][:, -1] for each in ones)
            rising = 1 + (weight - 1) * t / (LENGTH - 1)
            chosen = draw(no + rising * (yes - no), uniform[row : row + 1, t], **limits)
            so_far = torch.cat([so_far, chosen[:, None]], dim=1)
        assert torch.equal(found[row], so_far[0])
