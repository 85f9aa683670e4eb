"""The loss: what the network is shown, what it is compared with, and what the metrics mean."""

from __future__ import annotations

import pytest
import torch

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.families.diffusion.config import DiffusionConfig
from sfumato.families.diffusion.guidance.labels import LabelDropout
from sfumato.families.diffusion.networks import predict
from sfumato.families.diffusion.networks.unet import UNetConfig, build_unet
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig
from sfumato.families.diffusion.objectives.ddpm.schedule import NoiseSchedule
from sfumato.families.diffusion.trajectory.quartiles import quartiles

DATA = DataSpec(1, 8, 8, ("a", "b"))
ROWS = 4096
START = Progress(step=0, images=0, total_images=1, batch=1)


def rng(rows: int = ROWS) -> StreamRng:
    return StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=0, images=0, phase="denoise")


class Recorder(torch.nn.Module):
    """Answers with a constant and keeps what it was shown."""

    def __init__(self, answer: float = 0.0) -> None:
        super().__init__()
        self.answer = answer
        self.seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        self.seen.append((x, t, labels))
        return (torch.full_like(x, self.answer),)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_loss_is_the_squared_error_against_an_independent_target(prediction: str) -> None:
    schedule, model = NoiseSchedule("cosine", 1000), Recorder(0.25)
    x0 = torch.rand(ROWS, 1, 2, 2) * 2 - 1
    config = DDPMConfig.model_validate({"prediction": prediction})
    out = DDPM(config).loss({"network": model}, {"image": x0}, LabelDropout(None, 0.0), START, rng())
    xt, t, labels = model.seen[0]
    assert labels is None
    abar = schedule.alpha_bar[t].view(-1, 1, 1, 1)
    eps = (xt - abar.sqrt() * x0) / (1 - abar).sqrt()  # the noise that x_t really holds
    target = eps if prediction == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * x0
    torch.testing.assert_close(
        out.loss_B.double(), ((target - 0.25) ** 2).mean(dim=(1, 2, 3)), rtol=1e-3, atol=1e-4
    )
    assert t.min() == 0
    assert t.max() == 999
    assert t.float().mean().item() == pytest.approx(499.5, abs=5 * 289 / ROWS**0.5)


def test_labels_are_dropped_at_the_given_rate() -> None:
    labels = torch.arange(ROWS) % 2
    dropped = LabelDropout(2, 0.1).draw({"label": labels}, rng())
    assert dropped is not None
    lost = dropped == 2
    assert lost.float().mean().item() == pytest.approx(0.1, abs=5 * 0.3 / ROWS**0.5)
    assert torch.equal(dropped[~lost], labels[~lost])
    assert torch.equal(LabelDropout(2, 0.0).draw({"label": labels}, rng()), labels)
    assert LabelDropout(None, 0.1).draw({"image": labels}, rng()) is None


@pytest.mark.parametrize("timesteps", [1000, 10, 3])
def test_quartile_metrics_average_to_the_mean_of_the_quarter(timesteps: int) -> None:
    t = torch.arange(timesteps)
    loss = torch.rand(timesteps)
    found = quartiles(loss, t, timesteps)
    for quarter in range(4):
        inside = [i for i in range(timesteps) if quarter * timesteps <= 4 * i < (quarter + 1) * timesteps]
        name = f"loss_q{quarter + 1}"
        assert (name in found) == bool(inside)
        if inside:
            assert found[name].mean().item() == pytest.approx(loss[inside].mean().item(), rel=1e-5)


def test_a_model_without_condition_ignores_labels() -> None:
    config = DiffusionConfig.tiny().model_copy(update={"condition": "none"})
    family = config.build(DATA)
    assert not any("class_embedding" in name for name, _ in family.nets["network"].build().named_parameters())


def test_the_network_computes_under_bfloat16_autocast() -> None:
    with seeded(0):
        net = build_unet(UNetConfig(channels=(8, 16), head_dim=8, norm_groups=4), DATA, conditional=True)
    x = SampleRng(0, range(2)).normal(*DATA.shape)
    t, labels = torch.tensor([0, 10]), torch.tensor([0, 2])
    exact = predict(net, x, t, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predict(net, x, t, labels)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)
    assert not torch.equal(rough, exact)
    rough.mean().backward()


@pytest.mark.parametrize("time_conditioning", ["add", "scale_shift"])
def test_every_size_setting_changes_the_network(time_conditioning: str) -> None:
    def parameters(**changes: object) -> int:
        base = {"channels": (8, 16), "head_dim": 8, "norm_groups": 4, "time_conditioning": time_conditioning}
        net = build_unet(UNetConfig.model_validate({**base, **changes}), DATA, conditional=True)
        net(torch.zeros(1, 1, 8, 8), torch.tensor([0]), torch.tensor([2]))
        return sum(value.numel() for value in net.parameters())

    counts = [
        parameters(),
        parameters(channels=(8, 16, 16)),
        parameters(layers_per_block=2),
        parameters(attention=(0,)),
        parameters(attention=(0, 1)),
        parameters(mid_attention=False),
    ]
    assert len(set(counts)) == len(counts)


def test_a_short_training_run_learns() -> None:
    """Two fixed images, 60 steps: the loss falls well below that of the best constant."""
    family = DiffusionConfig.tiny().build(DATA)
    with seeded(0, "init", "network"):
        net = family.nets["network"].build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    image = torch.ones(16, 1, 8, 8)
    image[::2, :, :4] = -1
    objective = DDPM(DDPMConfig.tiny())
    losses = []
    for step in range(60):
        noise = StreamRng([Piece(0, 0, 16)], rows_per_stream=16, seed=0, images=16 * step, phase="denoise")
        batch = {"image": image, "label": torch.arange(16) % 2}
        loss = objective.loss({"network": net}, batch, LabelDropout(2, 0.1), START, noise).loss_B.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5
    assert losses[0] > 0.7
