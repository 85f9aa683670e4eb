"""Overfitting of a discriminator: who is held out, that it learns nothing from them, and the figure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from members import build

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng, seeded
from sfumato.evaluation.decisions.collapse_limits import CollapseLimits, signs
from sfumato.evaluation.metrics import all_metrics
from sfumato.evaluation.metrics.metric import FeatureSet
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.remedies.overfitting import HeldOutConfig, Overfitting, figure, held_out

DATA = DataSpec(1, 8, 8)
PLAIN = {"kind": "dcgan", "channels": [8], "generator_norm": "group", "discriminator_norm": "none"}


def images(rows: int) -> torch.Tensor:
    with seeded("images"):
        return torch.randint(0, 256, (rows, 1, 8, 8)) / 127.5 - 1


def rng(rows: int) -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase="p")


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_so_many_images_are_held_out_whatever_their_batch_mirrored_or_not(share: float) -> None:
    image = images(4_000)
    found = held_out(image, share)
    assert abs(float(found.float().mean()) - share) < 0.03
    assert torch.equal(held_out(image.flip(3), share), found)
    assert torch.equal(held_out(image[7:9], share), found[7:9])
    dark = images(4_000) * 0.02 - 0.98  # sums of few values
    assert abs(float(held_out((dark * 127.5).round() / 127.5, share).float().mean()) - share) < 0.06


def test_the_discriminator_learns_nothing_from_them() -> None:
    """Phases give them no weight, and the sums hold each group's scores."""
    objective = {"held_out": {"share": 0.4}, "r1": {"every": 1}}
    family = GanConfig.model_validate({"latent": 4, "network": PLAIN, "objective": objective}).build(DATA)
    nets, rows = build(family), {"image": images(16)}
    at = Progress(step=0, images=0, total_images=64, batch=16, state=family.state)
    apart = held_out(rows["image"], 0.4)
    assert 0 < int(apart.sum()) < 16
    phases = {phase.name: phase for phase in family.phases}
    outs = {name: phases[name].loss(nets, rows, at, rng(16)) for name in ("discriminator", "r1")}
    for out in outs.values():
        assert torch.equal(out.weights_B, (~apart).float())
    assert phases["generator"].loss(nets, rows, at, rng(16)).weights_B is None
    out = outs["discriminator"]
    real = out.metrics["real_score"].double()
    assert float(out.sums["overfitting.sum.held_out"]) == pytest.approx(float(real[apart].sum()), rel=1e-5)
    assert float(out.sums["overfitting.sum.train"]) == pytest.approx(float(real[~apart].sum()), rel=1e-5)
    assert float(out.sums["overfitting.rows.generated"]) == 16
    assert float(out.metrics["overfitting"]) == 0, "nothing is known yet"
    state = family.advance(family.state, out.sums, at)
    fake = float(out.metrics["fake_score"].double().mean())
    expected = float(real[~apart].mean() - real[apart].mean()) / (float(real[~apart].mean()) - fake)
    after = Progress(step=1, images=16, total_images=64, batch=16, state=state)
    assert family.overfitting(after) == pytest.approx(expected, rel=1e-4)


def test_past_scores_count_by_their_half_life() -> None:
    follower = Overfitting(HeldOutConfig(share=0.5, halflife_images=8))
    at, state = Progress(step=0, images=8, total_images=64, batch=8), follower.first()
    held = torch.tensor([False, True])
    for real, fake in (([2.0, 1.0], [0.0, 0.0]), ([4.0, 0.0], [0.0, -2.0])):
        state = follower.advance(state, follower.sums(held, torch.tensor(real), torch.tensor(fake)), at)
    train, unseen, made = (0.5 * 2 + 4) / 1.5, (0.5 * 1 + 0) / 1.5, (0.5 * 0 - 2) / 3
    assert float(figure(state)) == pytest.approx((train - unseen) / (train - made))
    assert float(figure(follower.first())) == 0


def test_the_collapse_monitor_sees_it() -> None:
    metric: Any = all_metrics()["discriminator_overfitting"]
    (known,) = metric.inputs
    assert not known.given_by(SimpleNamespace(overfitting=None))
    source = SimpleNamespace(overfitting=0.9)
    assert known.given_by(source)
    prepared = known.prepare(SimpleNamespace(source=source), None)
    features = prepared.of_generated(FeatureSet(np.zeros((1, 1), np.float32)), "pixels", None)  # type: ignore[arg-type]
    value = metric.compute(features, features, None).value
    assert value == 0.9
    assert signs({metric.name: value}, CollapseLimits()) == ["discriminator_overfitting 0.9, over 0.8"]
    assert signs({metric.name: 0.7}, CollapseLimits()) == []
