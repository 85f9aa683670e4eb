"""Latent diffusion: what the model is shown and the scale of its latents; every member learns something."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sfumato import families
from sfumato.core.batch import Batch, DataSpec, MicroBatch, Piece, Texts
from sfumato.core.family import SampleRequest
from sfumato.core.optimizer import OptimizerConfig
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.core.schedules import LearningRate
from sfumato.errors import ConfigError
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.distillation.teacher import TaughtConfig
from sfumato.families.diffusion.latent import LatentNetwork
from sfumato.parallel import Placement
from sfumato.parallel.strategies.single import Single
from sfumato.sampling.model_folder import save_model_folder
from sfumato.training.config import TrainSettings
from sfumato.training.loop import Trainer, install

DATA = DataSpec(1, 8, 8, ("a", "b"))
ROWS = 64
PROGRESS = Progress(step=0, images=64, total_images=1_000, batch=4)


def config(**changes: object) -> DiffusionConfig:
    content = DiffusionConfig.variants()["latent"].model_dump(mode="json")
    return DiffusionConfig.model_validate({**content, **changes})


def rng(rows: int = ROWS) -> StreamRng:
    return StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=0, images=0, phase="p")


def images(rows: int = ROWS) -> Tensor:
    return torch.rand(rows, *DATA.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def installed(chosen: DiffusionConfig, *, first: Batch | None = None) -> dict[str, nn.Module]:
    strategy = Single(Placement())
    rows = None if first is None else MicroBatch(first, (Piece(0, 0, ROWS),))
    install(chosen.build(DATA), strategy, seed=3, first=None if rows is None else lambda: rows)
    return dict(strategy.view("network"))


def test_the_scale_is_measured_on_the_first_rows_and_travels_with_the_average() -> None:
    chosen, batch = config(), {"image": images(), "label": torch.arange(ROWS) % 2}
    nets = installed(chosen, first=batch)
    scale = nets["ema"].latent_scale
    assert torch.equal(scale, nets["network"].latent_scale)
    assert "latent_scale" in nets["ema"].state_dict()
    latents = chosen.build(DATA).prepare(nets, batch, PROGRESS, rng())["image"]
    assert latents.shape == (ROWS, 2, 4, 4)
    raw = nets["first_stage"].encode(batch["image"]).sample(rng().normal(2, 4, 4))
    torch.testing.assert_close(latents, raw * scale)
    assert latents.std().item() == pytest.approx(1, rel=0.05)
    assert scale.item() != 1


def test_each_channel_may_have_a_scale_and_a_shift_of_its_own() -> None:
    chosen, batch = config(latent_norm="channel"), {"image": images(), "label": torch.arange(ROWS) % 2}
    nets = installed(chosen, first=batch)
    family = chosen.build(DATA)
    raw = nets["first_stage"].encode(batch["image"]).sample(rng().normal(2, 4, 4))
    latents = family.prepare(nets, batch, PROGRESS, rng())["image"]
    scale, shift = nets["ema"].latent_scale, nets["ema"].latent_shift
    assert scale.shape == shift.shape == (2, 1, 1) and scale[0] != scale[1]
    assert {"latent_scale", "latent_shift"} <= nets["ema"].state_dict().keys()
    torch.testing.assert_close(latents, (raw - shift) * scale)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(2), rtol=0, atol=0.1)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(2), rtol=0, atol=0.1)
    request = SampleRequest(num=3, conditions={"label": torch.tensor([0, 1, 0])}, options=chosen.sampling)
    with torch.no_grad():
        found = family.sample(nets, request, PROGRESS, SampleRng(5, range(3)))
        expected = nets["first_stage"].decode(SampleRng(5, range(3)).normal(2, 4, 4) / scale + shift)
    torch.testing.assert_close(found, expected)


def test_a_scale_that_is_given_is_kept() -> None:
    nets = installed(config(latent_scale=0.25), first={"image": images(), "label": torch.zeros(ROWS).long()})
    assert nets["ema"].latent_scale == 0.25
    assert isinstance(nets["network"], LatentNetwork)


def test_samples_are_decoded_latents() -> None:
    """A network of zero velocity leaves the noise as it is: the image is what the decoder makes of it."""
    chosen = config(latent_scale=0.5)
    nets = installed(chosen)  # a fresh transformer answers zero
    request = SampleRequest(num=3, conditions={"label": torch.tensor([0, 1, 0])}, options=chosen.sampling)
    with torch.no_grad():
        found = chosen.build(DATA).sample(nets, request, PROGRESS, SampleRng(5, range(3)))
        expected = nets["first_stage"].decode(SampleRng(5, range(3)).normal(2, 4, 4) / 0.5)
    assert found.shape == (3, 1, 8, 8)
    torch.testing.assert_close(found, expected)


def test_the_first_stage_is_the_stored_one(tmp_path: Path) -> None:
    """Weights come from the model folder before the scale is measured, and are not those of a fresh build."""
    chosen = config()
    assert chosen.first_stage is not None
    stage = chosen.first_stage
    assert stage.model is not None
    autoencoder = families.config_class("vae").model_validate(stage.model.config)
    spec = autoencoder.as_first_stage(stage.model.data)
    assert spec is not None
    with seeded(99):
        stored = spec.build()
    save_model_folder(
        tmp_path / "stage",
        autoencoder,
        stage.model.data,
        {"ema": stored.state_dict()},
        name="stage",
        progress=Progress.at(1),
    )
    from sfumato.runtime.runs.first_stage import named  # the command's own way from a folder to a recipe

    recorded = named(str(tmp_path / "stage"), tmp_path)
    batch = {"image": images(), "label": torch.zeros(ROWS).long()}
    nets = installed(config(first_stage=recorded.model_dump(mode="json")), first=batch)
    for key, value in nets["first_stage"].state_dict().items():
        assert torch.equal(value, stored.state_dict()[key])
    assert nets["ema"].latent_scale != installed(chosen, first=batch)["ema"].latent_scale
    assert not any(value.requires_grad for value in nets["first_stage"].parameters())


def test_without_labels_a_model_draws_from_its_null_class_if_it_has_one() -> None:
    chosen = config(latent_scale=0.5)
    nets = installed(chosen)
    with seeded(1), torch.no_grad():
        for value in nets["ema"].parameters():
            value.add_(torch.randn_like(value) * 0.2)  # so that the class matters
    drawn = []
    for labels in (None, torch.tensor([2, 2]), torch.tensor([0, 1])):
        options = chosen.sampling.model_copy(update={"guidance": 1.0})
        request = SampleRequest(
            num=2, conditions={} if labels is None else {"label": labels}, options=options
        )
        with torch.no_grad():
            drawn.append(chosen.build(DATA).sample(nets, request, PROGRESS, SampleRng(5, range(2))))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])

    consistency = DiffusionConfig.variants()["consistency"]
    request = SampleRequest(num=2, options=consistency.sampling)
    with pytest.raises(ConfigError, match="knows no null class"):
        consistency.build(DATA).sample(installed(consistency), request, PROGRESS, SampleRng(5, range(2)))


@pytest.mark.parametrize(
    ("changes", "data", "says"),
    [
        ({}, DataSpec(3, 8, 8), "was trained on images of 1x8x8"),
        ({"first_stage": {}}, DATA, "model.first_stage.run: required"),
        ({"first_stage": {"run": "some-run"}}, DATA, "'some-run' has not been looked up"),
        ({"sampling": {"clip": True}}, DATA, "model.sampling.clip: latents are not bound"),
        (
            {"network": {"kind": "dit", "patch": 3}},
            DATA,
            "model.network.patch: 3 does not divide the latent height of 4",
        ),
        (
            {"network": {"channels": [8, 8, 8, 8], "norm_groups": 4, "head_dim": 8}},
            DATA,
            "4 levels halve the latent 3 times",
        ),
        ({"first_stage": None, "latent_scale": 0.5}, DATA, "model.latent_scale: has no effect"),
        ({"first_stage": None, "latent_norm": "channel"}, DATA, "model.latent_norm: has no effect"),
        ({"latent_norm": "channel", "latent_scale": 0.5}, DATA, "latent_norm=channel measures a factor"),
    ],
)
def test_latent_models_that_cannot_be(changes: dict[str, object], data: DataSpec, says: str) -> None:
    found = config(**changes).problems(data)
    assert says in found[0]


WHOLE = sorted(
    name
    for name, member in DiffusionConfig.variants().items()
    if member.adapter is None
    and not isinstance(member.objective, TaughtConfig)
    and member.objective.kind != "mean_flow"
)
"""Members of which all weights train, on a loss that falls with learning: little can be learnt on a base that
never was or of a teacher that knows nothing, and the loss of mean_flow is weighted by itself."""


@pytest.mark.parametrize("name", WHOLE)
def test_every_member_learns_in_the_real_loop(name: str) -> None:
    """Two kinds of image: forty steps bring the loss well below that of the start."""
    variant = DiffusionConfig.variants()[name]
    optimizer = OptimizerConfig(name="adam", lr=LearningRate(peak=5e-3))
    family = variant.model_copy(update={"optimizer": optimizer}).build(DATA)
    image = torch.ones(ROWS, *DATA.shape)
    image[::2, :, :4] = -1
    texts = Texts(["below", "everywhere"] * (ROWS // 2))
    batch = {"image": image, "label": torch.arange(ROWS) % 2, "text": texts}
    micro = MicroBatch(batch, (Piece(0, 0, ROWS),))
    strategy = Single(Placement())
    install(family, strategy, seed=3, first=lambda: micro)
    losses: list[float] = []
    settings = TrainSettings(images=40 * ROWS, batch=ROWS, log_every=ROWS, preview_samples=0)
    phase = family.phases[0].name
    trainer = Trainer(
        family,
        strategy,
        settings,
        seed=3,
        streams=1,
        report=lambda progress, metrics: losses.append(metrics[f"train/{phase}/loss"]),
    )
    trainer.run(iter(lambda: [micro], None))
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    # Latents of an autoencoder that was never trained are mostly noise of their own: less is there to learn.
    assert last < (0.95 if name == "latent" else 0.75) * first, losses


@pytest.mark.parametrize(
    "objective", [{"kind": "edm"}, {"kind": "consistency", "curriculum": {"first": 4, "last": 8}}]
)
def test_sigma_data_is_that_of_the_space_unless_it_is_given(objective: dict[str, object]) -> None:
    """0.5 is for images: latents are scaled to a standard deviation of one."""
    batch = {"image": images(4), "label": torch.arange(4) % 2}

    def loss(base: DiffusionConfig, sigma_data: float | None) -> Tensor:
        content = base.model_dump(mode="json") | {"objective": {**objective, "sigma_data": sigma_data}}
        chosen = DiffusionConfig.model_validate({**content, "sampling": {}})
        family, nets = chosen.build(DATA), installed(chosen)
        with torch.no_grad():
            prepared = family.prepare(nets, batch, PROGRESS, rng(4))
            return family.phases[0].loss({**nets, "teacher": nets["ema"]}, prepared, PROGRESS, rng(4)).loss_B

    pixels = DiffusionConfig.tiny()
    assert torch.equal(loss(config(), None), loss(config(), 1.0))
    assert torch.equal(loss(pixels, None), loss(pixels, 0.5))
    for base in (config(), pixels):
        assert not torch.equal(loss(base, 0.5), loss(base, 1.0))
