"""Guidance by texts in every objective: away from the negative text, in its interval, encoded once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from members import DATA, ROWS, batch, build, progress_of
from torch import nn

from sfumato.core.batch import Texts
from sfumato.core.conditions import NEGATIVE
from sfumato.core.family import Family, SampleRequest
from sfumato.core.pretrained import ModelCard
from sfumato.core.rng import SampleRng, seeded
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.distillation.teacher import TaughtConfig
from sfumato.families.diffusion.objectives import OBJECTIVES

GUIDED = ["ddpm", "edm", "rectified_flow"]
SPANNED = {"mean_flow", "shortcut"}
JUDGED = {"adversarial_distillation"}
"""They need networks that see the length of a step, which those of texts do not."""
TEXTS = ["the one", "", "a", "the"]


def member(objective: str, **options: Any) -> tuple[DiffusionConfig, Family, dict[str, nn.Module]]:
    """A tiny cross-attention U-Net under an objective, in three steps."""
    chosen, plain = OBJECTIVES.find(objective), DiffusionConfig.variants()["unet_text"].model_dump()
    content = {
        **plain,
        "objective": chosen.tiny().model_dump(),
        "sampling": {**chosen.tiny_sampling().model_dump(), **options},
    }
    if issubclass(chosen, TaughtConfig):
        card = ModelCard(family="diffusion", config=plain, data=DATA)
        content["objective"]["teacher"] = {"network": "ema", "model": card.model_dump()}
    if "adversarial" in content["objective"]:
        content["objective"]["adversarial"] = 0.0  # the network has no middle that a head could read
    config = DiffusionConfig.model_validate(content)
    assert config.problems(DATA) == []
    family = config.build(DATA)
    nets = build(family)
    with seeded(2, objective):
        for weight in nets["ema"].parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))
    return config, family, {name: net.eval() for name, net in nets.items()}


@torch.no_grad()
def drawn(made: tuple[DiffusionConfig, Family, Mapping[str, nn.Module]], **texts: list[str]) -> torch.Tensor:
    config, family, nets = made
    conditions = {name: Texts(value) for name, value in texts.items()}
    request = SampleRequest(num=ROWS, options=config.sampling, conditions=conditions)
    return family.sample(nets, request, progress_of(family), SampleRng(3, range(ROWS)))


@pytest.mark.parametrize("objective", sorted(set(OBJECTIVES.names()) - SPANNED - JUDGED))
def test_every_objective_trains_and_draws(objective: str) -> None:
    made = member(objective)
    _, family, nets = made
    rng: Any = SampleRng(1, range(ROWS))
    with torch.no_grad():
        prepared = family.prepare(nets, batch(), progress_of(family), rng)
        loss_B = family.phases[0].loss(nets, prepared, progress_of(family), rng).loss_B
    assert loss_B.shape == (ROWS,) and loss_B.isfinite().all()
    images = drawn(made, text=TEXTS)
    assert not torch.allclose(images[0], drawn(made, text=["b", *TEXTS[1:]])[0], atol=1e-3)


@pytest.mark.parametrize("objective", sorted(JUDGED))
def test_networks_of_texts_have_no_layer_for_a_discriminator(objective: str) -> None:
    plain = DiffusionConfig.variants()["unet_text"].model_dump()
    card = ModelCard(family="diffusion", config=plain, data=DATA)
    teacher = {"network": "ema", "model": card.model_dump()}
    content = plain | {"objective": {"kind": objective, "teacher": teacher}, "sampling": {}}
    (problem,) = DiffusionConfig.model_validate(content).problems(DATA)
    assert problem.endswith("unet_text has no layer for a discriminator to read; use unet, ddpmpp or dit")


@pytest.mark.parametrize("objective", sorted(SPANNED))
def test_networks_of_texts_do_not_see_the_length_of_a_step(objective: str) -> None:
    content = DiffusionConfig.variants()["unet_text"].model_dump()
    content |= {"objective": {"kind": objective}, "sampling": {}}
    (problem,) = DiffusionConfig.model_validate(content).problems(DATA)
    assert problem.endswith(f"which objective {objective} needs; use unet, ddpmpp or dit")


@pytest.mark.parametrize("objective", GUIDED)
def test_a_negative_text_that_is_the_text_leaves_the_plain_model(objective: str) -> None:
    """D + w (D - D) = D; and the negative text counts where it is another."""
    plain = drawn(member(objective, guidance=1.0), text=TEXTS)
    guided = member(objective, guidance=3.0)
    same = drawn(guided, text=TEXTS, **{NEGATIVE + "text": TEXTS})
    torch.testing.assert_close(same, plain, rtol=0, atol=2e-4)
    other = drawn(guided, text=TEXTS, **{NEGATIVE + "text": ["b"] * ROWS})
    assert not torch.allclose(other, same, atol=1e-3)
    empty = drawn(guided, text=TEXTS)
    torch.testing.assert_close(empty, drawn(guided, text=TEXTS, **{NEGATIVE + "text": [""] * ROWS}))


@pytest.mark.parametrize("objective", GUIDED)
def test_outside_its_interval_guidance_is_off(objective: str) -> None:
    plain = drawn(member(objective, guidance=1.0), text=TEXTS)
    never = drawn(member(objective, guidance=3.0, guidance_interval=(1e6, 1e7)), text=TEXTS)
    within = drawn(member(objective, guidance=3.0, guidance_interval=(0.0, 1e5)), text=TEXTS)
    torch.testing.assert_close(never, plain, rtol=0, atol=1e-5)
    assert not torch.allclose(within, plain, atol=1e-3)
    always = drawn(member(objective, guidance=3.0), text=TEXTS)
    rescaled = drawn(member(objective, guidance=3.0, guidance_rescale=0.7), text=TEXTS)
    assert not torch.allclose(rescaled, always, atol=1e-4)


def test_a_text_is_encoded_once_for_all_steps() -> None:
    made = member("rectified_flow", guidance=3.0)
    calls: list[int] = []
    encoder = made[2]["ema"].encoders["text_encoder"]  # type: ignore[index, union-attr]
    encoder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    drawn(made, text=TEXTS)
    assert calls == [ROWS, ROWS], "the texts, and the empty one"


def test_a_negative_text_without_guidance_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative: has no effect with guidance=1"):
        drawn(member("ddpm", guidance=1.0), text=TEXTS, **{NEGATIVE + "text": TEXTS})
