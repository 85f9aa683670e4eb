"""Stratified noise levels: one in each interval of the global batch, whatever the ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy import stats

from sfumato.core.batch import Piece
from sfumato.core.progress import Progress
from sfumato.core.rng import StreamRng
from sfumato.families.diffusion.guidance.labels import LabelDropout
from sfumato.families.diffusion.objectives.consistency import Consistency, ConsistencyConfig
from sfumato.families.diffusion.objectives.ddpm import DDPM, DDPMConfig
from sfumato.families.diffusion.objectives.edm import EDM, EDMConfig
from sfumato.families.diffusion.objectives.rectified_flow import RectifiedFlow, RectifiedFlowConfig
from sfumato.families.diffusion.trajectory.noise_draws import NoiseDraws

STREAMS, ROWS = 4, 16
WHOLE = [Piece(stream, 0, ROWS) for stream in range(STREAMS)]


def noise(pieces: Sequence[Piece], *, images: int = 0, rows: int = ROWS, streams: int = STREAMS) -> StreamRng:
    return StreamRng(pieces, rows_per_stream=rows, seed=3, images=images, phase="denoise", streams=streams)


def test_a_batch_has_one_number_in_each_interval_and_so_has_each_stream() -> None:
    for images in range(0, 640, 64):
        found = noise(WHOLE, images=images).stratified()
        offset = (found.double() * 64) % 1
        assert (offset - offset[0]).abs().max() < 1e-4, "one offset for all (Kingma et al. 2021, app. I.1)"
        assert sorted((found * 64).floor().long().tolist()) == list(range(64))
        for stream in found.view(STREAMS, ROWS):
            assert sorted((stream * ROWS).floor().long().tolist()) == list(range(ROWS))


def test_a_rows_number_does_not_depend_on_ranks_and_micro_batches() -> None:
    whole = noise(WHOLE).stratified().view(STREAMS, ROWS)
    for cut in (1, 3, 8):
        for stream in range(STREAMS):
            parts = [
                noise([Piece(stream, at, min(cut, ROWS - at))]).stratified() for at in range(0, ROWS, cut)
            ]
            assert torch.equal(torch.cat(parts), whole[stream])
    both = noise([Piece(2, 4, 3), Piece(0, 8, 2)]).stratified()
    assert torch.equal(both, torch.cat([whole[2, 4:7], whole[0, 8:10]]))
    again = noise(WHOLE)
    assert not torch.equal(again.stratified(), again.stratified()), "a second draw has its own offset"


def test_over_batches_every_row_is_uniform() -> None:
    found = torch.stack([noise(WHOLE, images=64 * step).stratified() for step in range(400)])
    assert found.min() >= 0 and found.max() < 1
    for row in (0, 17, 63):
        assert stats.kstest(found[:, row].numpy(), "uniform").pvalue > 1e-3


def test_draws_have_their_distribution() -> None:
    even, free = NoiseDraws(stratified=True), NoiseDraws()
    rows = 4096
    whole = [Piece(0, 0, rows)]

    def rng() -> StreamRng:
        return noise(whole, rows=rows, streams=1)

    assert stats.kstest(even.normal(rng()).numpy(), "norm").statistic < 2 / rows
    assert stats.kstest(even.uniform(rng()).numpy(), "uniform").statistic < 2 / rows
    assert torch.bincount(even.integers(rng(), 1024)).tolist() == [4] * 1024
    assert torch.equal(free.normal(rng()), rng().normal())
    assert torch.equal(free.uniform(rng()), rng().uniform())
    assert torch.equal(free.integers(rng(), 20), rng().integers(20))


class Level(torch.nn.Module):
    """Answers with a multiple of the noise level: the loss then depends much on it."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(
        self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, return_dict: bool
    ) -> tuple[torch.Tensor]:
        return (self.factor * t.float().view(-1, 1, 1, 1).expand_as(x),)


@pytest.mark.parametrize(
    ("objective", "config", "factor"),
    [
        (DDPM, DDPMConfig, 3e-3),
        (EDM, EDMConfig, 5.0),
        (RectifiedFlow, RectifiedFlowConfig, 3e-3),
        (Consistency, ConsistencyConfig, 0.0),
    ],
)
def test_the_mean_loss_of_a_batch_varies_less(objective: type, config: type, factor: float) -> None:
    """Its expectation stays: both means over many batches agree within their errors."""
    images = torch.full((64, 1, 4, 4), 0.5)
    means = {}
    for stratified in (False, True):
        made = objective(config(stratified=stratified))
        losses = [
            made.loss(
                {"network": Level(factor), "teacher": Level(factor)},
                {"image": images},
                LabelDropout(None, 0),
                Progress(0, 0, 1, 1),
                noise(WHOLE, images=64 * step),
            ).loss_B.mean()
            for step in range(60)
        ]
        means[stratified] = torch.stack(losses)
    spread = means[True].std() / means[False].std()
    assert spread < 0.75
    error = 4 * (means[False].var() + means[True].var()).sqrt() / 60**0.5
    assert (means[True].mean() - means[False].mean()).abs() < error
