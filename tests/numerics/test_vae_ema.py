"""The codebook of moving averages against the authors' formula, and its revival against a search by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.rng import StreamRng
from sfumato.families.vae.config import VaeConfig
from sfumato.families.vae.latents.vq import VqLatent
from sfumato.families.vae.quantizers.ema import EmaCodebook

K, C = 8, 3


def latents(seed: int, rows: int = 16, spread: float = 1.0) -> Tensor:
    return spread * torch.randn(rows, C, 2, 2, generator=torch.Generator().manual_seed(seed))


def rng(images: int, *pieces: Piece) -> StreamRng:
    return StreamRng(pieces, rows_per_stream=16, seed=5, images=images, phase="p")


def test_averages_follow_the_formula_of_the_paper() -> None:
    """van den Oord et al. 2017, eqs. 6 to 8, one latent after another in plain numbers."""
    config = EmaCodebook(size=K, decay=0.9, revive_below=0.0)
    state, quantizer = config.state(C), config.build(C)
    count = [1.0] * K
    total = [row.clone() for row in state["codes.sum"]]
    for step in range(5):
        z = latents(step)
        quantizer.use(config.codebook(state))
        codes = quantizer(z).codes_Bhw
        n, sums = [0.0] * K, [torch.zeros(C, dtype=torch.float64) for _ in range(K)]
        for b in range(len(z)):
            for i in range(2):
                for j in range(2):
                    books = [total[k] / count[k] for k in range(K)]
                    distances = [float((z[b, :, i, j].double() - book).square().sum()) for book in books]
                    chosen = distances.index(min(distances))
                    assert chosen == codes[b, i, j]
                    n[chosen] += 1
                    sums[chosen] = sums[chosen] + z[b, :, i, j].double()
        count = [0.9 * count[k] + 0.1 * n[k] for k in range(K)]
        total = [0.9 * total[k] + 0.1 * sums[k] for k in range(K)]
        draws = config.draws(rng(step, Piece(0, 0, 16)), (2, 2), 16)
        state = config.advance(state, config.sums(z, codes, draws))
        torch.testing.assert_close(
            state["codes.count"], torch.tensor(count, dtype=torch.float64), rtol=1e-12, atol=0
        )
        torch.testing.assert_close(state["codes.sum"], torch.stack(total), rtol=1e-12, atol=1e-12)
    shares = torch.tensor(count) / sum(count)
    expected = float((-(shares * shares.log()).sum()).exp())
    assert abs(float(config.metrics(state)["perplexity"]) - expected) < 1e-5


def test_dead_codes_become_latents_of_the_batch_and_all_come_alive() -> None:
    """Latents far from the codes, of which one takes them all, until the others are revived."""
    config = EmaCodebook(size=K, decay=0.9)
    state, quantizer = config.state(C), config.build(C)
    for step in range(30):
        z = latents(step, spread=0.05) + 30
        quantizer.use(config.codebook(state))
        codes = quantizer(z).codes_Bhw
        if step == 0:
            assert len(codes.unique()) == 1
        before = state
        draws = config.draws(rng(step, Piece(0, 0, 16)), (2, 2), 16)
        state = config.advance(before, config.sums(z, codes, draws))
        vectors = config.codebook(state).vectors_KC
        used = torch.bincount(codes.flatten(), minlength=K)
        for k in range(K):
            places = (draws == k).nonzero()
            if 0.9 * before["codes.count"][k] + 0.1 * used[k] < 1 and len(places) == 1:
                b, i, j = places[0]
                assert torch.equal(vectors[k], z[b, :, i, j]), "a revived code is the latent that drew it"
                assert state["codes.count"][k] == 1
    assert len(codes.unique()) == K
    assert config.metrics(state)["codes_in_use"] == 1


def test_a_cut_into_micro_batches_gives_the_same_sums() -> None:
    config = EmaCodebook(size=K)
    z, quantizer = latents(0), config.build(C)

    def sums(rows: slice, piece: Piece) -> dict[str, Tensor]:
        draws = config.draws(rng(0, piece), (2, 2), 16)
        return config.sums(z[rows], quantizer(z[rows]).codes_Bhw, draws)

    whole = sums(slice(0, 16), Piece(0, 0, 16))
    parts = [sums(slice(at, at + 4), Piece(0, at, 4)) for at in range(0, 16, 4)]
    for name, expected in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), expected, rtol=1e-13, atol=1e-13)
    assert whole["codes.count"].sum() == 64


def test_an_unused_code_keeps_its_vector_and_an_empty_step_changes_nothing() -> None:
    config = EmaCodebook(size=K, decay=0.5, revive_below=0.0)
    state, quantizer = config.state(C), config.build(C)
    first = config.codebook(state).vectors_KC
    z = first[:1].view(1, C, 1, 1).expand(4, C, 2, 2)
    sums = config.sums(z, quantizer(z).codes_Bhw, torch.full((4, 2, 2), K))
    for _ in range(2_000):
        state = config.advance(state, sums)
    torch.testing.assert_close(config.codebook(state).vectors_KC, first, rtol=1e-6, atol=1e-6)
    nothing = {name: torch.zeros_like(value) for name, value in sums.items()}
    for after in (config.advance(state, nothing), config.advance(state, {})):
        assert all(torch.equal(after[name], value) for name, value in state.items())


def test_gradients_pass_the_codes_and_the_codebook_has_none() -> None:
    config = EmaCodebook(size=K, commitment=0.5)
    quantizer = config.build(C)
    assert not list(quantizer.parameters())
    z = latents(1).requires_grad_()
    out = quantizer(z)
    e = quantizer.vectors(out.codes_Bhw)
    torch.testing.assert_close(out.straight_through, e)
    weights = torch.randn(e.shape, generator=torch.Generator().manual_seed(2))
    (out.straight_through * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)
    torch.testing.assert_close(out.loss_B, 0.5 * (z - e).square().flatten(1).mean(1))


def test_the_network_keeps_the_codebook_that_it_was_trained_with() -> None:
    data = DataSpec(1, 8, 8)
    latent = VqLatent(channels=4, quantizer=EmaCodebook.tiny())
    config = VaeConfig.tiny().model_copy(update={"latent": latent, "condition": "none"})
    stage = config.as_first_stage(data)
    assert stage is not None and stage.num_codes == 16
    network = config.build(data).nets["network"].build()
    other = EmaCodebook.tiny().state(4)
    shifted = EmaCodebook.tiny().codebook({**other, "codes.sum": other["codes.sum"] + 1})
    network(torch.zeros(1, 1, 8, 8), shifted)
    again = stage.build()
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.quantizer.codebook, shifted.vectors_KC)
