"""MAR: its head's sampler against known distributions, what masked positions see, and its rounds."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import InitialisesFromData, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.autoregressive.config import AutoregressiveConfig
from sfumato.families.autoregressive.layers.diffusion_head import alphas_bar, denoised, noisy
from sfumato.families.autoregressive.networks.mar import Mar, MarConfig, MarNetwork, truncated
from sfumato.families.autoregressive.sampling import SamplingConfig

DATA = DataSpec(1, 8, 8, classes=("a", "b"))


def test_the_schedule_is_diffusers_cosine() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1_000, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    torch.testing.assert_close(alphas_bar().float(), theirs, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("steps", [100, 1_000])
def test_the_sampler_finds_a_normal_distribution(steps: int) -> None:
    """With the exact noise prediction for x ~ N(2, 0.5^2), draws have that mean and spread."""
    alpha = alphas_bar()

    def predict(x: Tensor, t: Tensor) -> Tensor:
        a = alpha[t][:, None].float()
        return (1 - a).sqrt() * (x - 2 * a.sqrt()) / (0.25 * a + 1 - a)

    noise = torch.randn(steps + 1, 4_000, 1, generator=torch.Generator().manual_seed(0))
    found = denoised(predict, noise, 1.0)
    assert found.mean().item() == pytest.approx(2, abs=0.04)
    assert found.std().item() == pytest.approx(0.5, abs=0.03)
    cold = denoised(predict, noise, 0.5)
    assert cold.std().item() < found.std().item()


def test_noise_is_added_by_the_schedule() -> None:
    x, eps = torch.ones(2, 3), torch.full((2, 3), 2.0)
    a = alphas_bar()[[0, 500]].float()[:, None]
    torch.testing.assert_close(noisy(x, torch.tensor([0, 500]), eps), a.sqrt() + 2 * (1 - a).sqrt() + 0 * x)


def test_the_masked_share_is_a_truncated_normal() -> None:
    uniform = torch.linspace(0, 1, 1_001)[1:-1]
    expected = stats.truncnorm((0.7 - 1) / 0.25, 0, 1, 0.25).ppf(uniform)
    torch.testing.assert_close(truncated(uniform).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def family() -> tuple[Mar, dict[str, torch.nn.Module]]:
    found = AutoregressiveConfig.variants()["mar"].build(DATA)
    assert isinstance(found, Mar)
    with seeded(1):
        nets = {name: found.nets[name].build().eval() for name in ("network", "first_stage")}
    return found, {"ema": nets["network"], **nets}


@torch.no_grad()
def test_a_masked_latent_is_not_seen_and_the_others_are() -> None:
    _, nets = family()
    network = nets["network"]
    assert isinstance(network, MarNetwork)
    x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(2))
    masked = (torch.arange(16) % 2 == 0)[None]
    before = network.vectors(x, masked, torch.tensor([0]))
    for place in range(16):
        other = x.clone()
        other[0, place] += 1
        after = network.vectors(other, masked, torch.tensor([0]))
        assert torch.equal(after, before) == bool(masked[0, place])


def test_the_loss_is_the_error_of_the_noise_at_masked_positions() -> None:
    mar, nets = family()
    rows = 8

    def rng() -> StreamRng:
        return StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=1, images=0, phase="p")

    given = []
    nets["network"].register_forward_pre_hook(lambda _, args: given.append(args))
    x = torch.randn(rows, 16, 4, generator=torch.Generator().manual_seed(3))
    out = mar.phases[0].loss(nets, {"tokens": x, "label": torch.zeros(rows).long()}, Progress.at(0), rng())
    tokens, masked, label, noise, t = given[0]
    assert torch.equal(tokens, x) and (masked.sum(1) >= 12).all()
    network = nets["network"]
    z = network.vectors(x, masked, label)
    for row in range(rows):
        errors = []
        for place in masked[row].nonzero().flatten().tolist():
            eps, at = noise[0, row, place], t[0, row, place]
            a = alphas_bar()[at].float()
            seen = a.sqrt() * x[row, place] + (1 - a).sqrt() * eps
            found = network.head(seen[None], at[None], z[row, place][None])[0]
            errors.append((found - eps).square().mean())
        torch.testing.assert_close(out.loss_B[row], torch.stack(errors).mean(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_every_latent_is_drawn_once(steps: int) -> None:
    mar, nets = family()
    network, masks = nets["ema"], []
    assert isinstance(network, MarNetwork)
    inner = network.vectors
    network.vectors = lambda x, masked, label: (masks.append(masked), inner(x, masked, label))[1]  # type: ignore[method-assign]
    request = SampleRequest(
        num=2, options=SamplingConfig(steps=steps), conditions={"label": torch.tensor([0, 1])}
    )
    mar.sample(nets, request, Progress.at(0), SampleRng(0, range(2)))
    counts = [int(mask[0].sum()) for mask in masks]
    assert counts[0] == 16 and len(counts) == min(steps, 16)
    assert all(one > two for one, two in itertools.pairwise(counts))
    if steps == 3:
        assert counts == [16, 13, 8]


def test_what_does_not_fit_is_said() -> None:
    config = AutoregressiveConfig.variants()["mar"]
    assert config.problems(DATA) == []
    for options in (SamplingConfig(top_k=3), SamplingConfig(decoding="jacobi")):
        (line,) = config.model_copy(update={"sampling": options}).problems(DATA)
        assert "no effect on mar" in line
    (line,) = config.model_copy(update={"first_stage": None}).problems(DATA)
    assert "required: a trained run" in line
    with pytest.raises(ValueError, match="the nearest is 9"):
        MarConfig(width=10, heads=3)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["whole", "channel"])
def test_the_scale_of_latents_is_measured_and_undone(norm: str) -> None:
    config = AutoregressiveConfig.variants()["mar"]
    network = config.network.model_copy(update={"latent_norm": norm})
    config = config.model_copy(update={"network": network})
    found = config.build(DATA)
    with seeded(1):
        nets = {name: found.nets[name].build().eval() for name in ("network", "first_stage")}
    nets["ema"] = nets["network"]
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def rng() -> StreamRng:
        return StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=0, images=0, phase="p")

    assert isinstance(found, InitialisesFromData)
    found.initialise(nets, {"image": image}, rng())
    batch = found.prepare(nets, {"image": image}, Progress.at(0), rng())
    tokens = batch["tokens"]
    if norm == "channel":
        std, mean = torch.std_mean(tokens, (0, 1))
        torch.testing.assert_close(std, torch.ones_like(std))
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)
    assert tokens.std().item() == pytest.approx(1, rel=0.02)
    latent = nets["ema"].outward(tokens.transpose(1, 2).reshape(4, 4, 4, 4))
    expected = nets["first_stage"].encode(image).sample(rng().normal(4, 4, 4))
    torch.testing.assert_close(latent, expected, rtol=1e-4, atol=1e-5)
    both = config.network.model_copy(update={"latent_scale": 2.0})
    assert "leave one out" in config.model_copy(update={"network": both}).problems(DATA)[0]
    assert not isinstance(AutoregressiveConfig.variants()["mar"].build(DATA), InitialisesFromData)
