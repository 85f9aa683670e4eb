"""unCLIP: a prior that learns which embedding belongs to a text, and a decoder that draws its variations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sfumato.core.batch import Batch, DataSpec, Piece, Texts
from sfumato.core.columns import Column
from sfumato.core.family import Family, Nets, SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.prior import rates, unit
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder
from sfumato.text.encoders.joint import JointConfig

EXTRA = {"text": Column("text", "str"), "features": Column("vector", "float32", (3,))}
DATA = DataSpec(1, 8, 8, (), EXTRA)
PROGRESS = Progress.at(0)
WORDS = ["the one", "he"]
OF_WORDS = torch.tensor([[3.0, 0.0, 0.0], [0.0, -1.0, 1.0]])


def config(prior: dict[str, Any] | None = None, **more: Any) -> DiffusionConfig:
    text = {"dropout": 0.1, "encoders": [JointConfig.tiny().model_dump()]}
    network = {
        "kind": "unet_text",
        "channels": [8, 8],
        "layers_per_block": 1,
        "head_dim": 8,
        "norm_groups": 4,
    }
    adapter = {"kind": "embedding", "length": 3, "tokens": 2, "prior": prior, **more}
    optimizer = {"name": "adam", "lr": {"peak": 3e-3}}
    return DiffusionConfig.model_validate(
        {
            "family": "diffusion",
            "text": text,
            "network": network,
            "adapter": adapter,
            "optimizer": optimizer,
            "sampling": {"steps": 2, "guidance": 2.0},
        }
    )


PRIOR = {"width": 32, "depth": 1, "heads": 2, "steps": 10}


def built(made: DiffusionConfig) -> tuple[Family, Nets]:
    """With averages that are the networks themselves."""
    family, nets = made.build(DATA), {}
    for name in ("network", "prior"):
        spec: Any = family.nets.get(name)
        if spec is not None:
            with seeded(0, name):
                nets[name] = spec.build()
    torch.nn.init.normal_(nets["network"].network.unet.conv_out.weight, std=0.1)
    nets["ema"] = nets["network"]
    if "prior" in nets:
        nets["prior_ema"] = nets["prior"]
    return family, nets


def drawn(family: Family, nets: Nets, texts: list[str], embedding: Tensor | None = None) -> Tensor:
    given: dict[str, Any] = {"text": Texts(texts)} | ({} if embedding is None else {"embedding": embedding})
    options = family._config.sampling  # type: ignore[attr-defined]
    request = SampleRequest(num=len(texts), options=options, conditions=given)
    with torch.no_grad():
        return family.sample(nets, request, PROGRESS, SampleRng(7, range(len(texts))))


def test_the_prior_learns_whose_embedding_it_is() -> None:
    """Two texts with one embedding each: what it draws is that of its own text, up to its length."""
    family, nets = built(config(PRIOR))
    (phase,) = [phase for phase in family.phases if phase.name == "prior"]
    optimizer = torch.optim.Adam(nets["prior"].parameters(), 3e-3)
    batch: Batch = {
        "image": torch.zeros(32, 1, 8, 8),
        "text": Texts(WORDS * 16),
        "features": OF_WORDS.repeat(16, 1),
    }  # type: ignore[dict-item]
    for step in range(100):
        rng = StreamRng([Piece(0, 0, 32)], rows_per_stream=32, seed=1, images=32 * step, phase="prior")
        prepared = family.prepare(nets, batch, PROGRESS, rng)
        optimizer.zero_grad()
        loss_B = phase.loss(nets, prepared, PROGRESS, rng).loss_B
        loss_B.mean().backward()
        optimizer.step()
    prior = family._drawing.prior  # type: ignore[attr-defined]
    request = SampleRequest(num=8, options=None, conditions={"text": Texts(WORDS * 4)})
    with torch.no_grad():
        found = prior.draw(nets, request, SampleRng(3, range(8)))
    near = torch.nn.functional.cosine_similarity(found, unit(OF_WORDS).repeat(4, 1))
    assert float(near.min()) > 0.9
    one = drawn(family, nets, WORDS)
    assert not torch.equal(one, drawn(family, nets, WORDS, -OF_WORDS))
    by_hand = prior.draw(
        nets, SampleRequest(num=2, options=None, conditions={"text": Texts(WORDS)}), SampleRng(7, range(2))
    )
    torch.testing.assert_close(one, drawn(family, nets, WORDS, by_hand), rtol=1e-4, atol=1e-4)


def test_each_phase_trains_all_of_its_network(tmp_path: Path) -> None:
    """And a model folder holds decoder and prior."""
    made = config(PRIOR)
    family, nets = built(made)
    batch: Any = {
        "image": torch.rand(4, 1, 8, 8),
        "text": Texts(WORDS * 2),
        "features": OF_WORDS.repeat(2, 1),
    }
    for phase in family.phases:
        rng = StreamRng([Piece(0, 0, 4)], rows_per_stream=4, seed=1, images=0, phase=phase.name)
        prepared = family.prepare(nets, batch, PROGRESS, rng)
        loss_B = phase.loss(nets, prepared, PROGRESS, rng).loss_B
        assert loss_B.shape == (4,)
        loss_B.mean().backward()
        assert all(value.grad is not None for value in nets[phase.trains].parameters())
    assert {phase.trains for phase in family.phases} == {"network", "prior"}
    states = {name: nets[name].state_dict() for name in family.samplers}
    save_model_folder(tmp_path / "m", made, DATA, states, name="m", progress=PROGRESS)
    loaded = Generator.load(tmp_path / "m")
    assert set(loaded.nets) == {"ema", "prior_ema"}
    images = loaded.sample(2, seed=7, prompts=WORDS)
    assert images.shape == (2, 8, 8, 1)
    assert (images == loaded.sample(2, seed=7, prompts=WORDS)).all()


def test_samples_are_variations_of_the_embedding() -> None:
    """Its direction counts alone; without one, or with it dropped, learnt tokens stand in its place."""
    family, nets = built(config())
    one = drawn(family, nets, WORDS, OF_WORDS)
    torch.testing.assert_close(one, drawn(family, nets, WORDS, 5 * OF_WORDS))
    assert not torch.allclose(one, drawn(family, nets, WORDS, OF_WORDS.flip(0)), atol=1e-4)
    assert not torch.allclose(one, drawn(family, nets, WORDS), atol=1e-4)
    guided = config().model_copy(
        update={"sampling": config().sampling.model_copy(update={"image_guidance": 3.0})}
    )
    assert not torch.allclose(one, drawn(guided.build(DATA), nets, WORDS, OF_WORDS), atol=1e-4)


@pytest.mark.parametrize("kind", ["pixart", "mmdit"])
def test_transformers_see_it_too(kind: str) -> None:
    """Whose texts are of another width than their own channels."""
    content = config().model_dump(mode="json")
    network = {"kind": kind, "patch": 4, "heads": 2, "head_dim": 8, "depth": 1}
    objective = {"kind": "rectified_flow"}
    made = DiffusionConfig.model_validate(
        {**content, "network": network, "objective": objective, "sampling": {"steps": 1}}
    )
    assert made.problems(DATA) == []
    family = made.build(DATA)
    nets: Any = {"network": family.nets["network"].build()}  # type: ignore[union-attr]
    batch: Any = {"image": torch.rand(2, 1, 8, 8), "text": Texts(WORDS), "features": OF_WORDS}
    rng = StreamRng([Piece(0, 0, 2)], rows_per_stream=2, seed=1, images=0, phase="p")
    prepared = family.prepare(nets, batch, PROGRESS, rng)
    assert family.phases[0].loss(nets, prepared, PROGRESS, rng).loss_B.shape == (2,)


def test_units_and_rates() -> None:
    assert float(unit(torch.randn(5, 64)).square().mean()) == pytest.approx(1)
    signal, noise = rates(torch.linspace(0, 1, 11))
    torch.testing.assert_close(signal**2 + noise**2, torch.ones(11))
    assert float(signal[0]) == pytest.approx(1)
    assert float(signal[-1]) < 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": 4}, "model.adapter.length: 4, but 'features' has 3 numbers"),
        ({"column": "clip"}, "the data has no vectors 'clip', only image, text, features"),
        ({"prior": {**PRIOR, "heads": 3}}, "model.adapter.prior.heads: 3 does not divide width=32"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], message: str) -> None:
    (problem,) = config(**{"prior": None, **changes}).problems(DATA)
    assert message in problem
