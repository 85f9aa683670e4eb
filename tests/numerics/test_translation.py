"""Pix2Pix and CycleGAN against their papers' losses, sizes and what they do at their best."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from members import batch, build, view
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.core.batch import DataSpec, Piece
from sfumato.core.columns import Column
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.core.schedules import LearningRate
from sfumato.core.state import initial
from sfumato.families.translation.config import TranslationConfig
from sfumato.families.translation.generators import GENERATORS
from sfumato.families.translation.generators.resnet import ResnetConfig
from sfumato.families.translation.generators.unet import UnetConfig
from sfumato.families.translation.image_pool import HELD, IMAGES, WANTED, ImagePool
from sfumato.families.translation.objectives import SamplingConfig
from sfumato.families.translation.objectives.cyclegan import CycleGan, Judges, Translators
from sfumato.families.translation.patches import PatchConfig, PatchDiscriminator

DATA = DataSpec(1, 8, 8, classes=("a", "b", "c"))
PAIRS = DataSpec(3, 16, 16, extra={"source": Column("image", "uint8", (1, 16, 16))})
AT = Progress(0, 0, 100, 4)


def rng(rows: int) -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase="p")


def member(name: str, **changes: object) -> TranslationConfig:
    return TranslationConfig.variants()[name].model_copy(update=changes)


def test_published_sizes_have_the_published_numbers_of_parameters() -> None:
    """In millions, as pytorch-CycleGAN-and-pix2pix prints them for 256 pixels in colour, less CycleGAN's
    biases that its normalisation takes out again: 5,248 and 896."""
    with torch.device("meta"):
        found = [
            UnetConfig().build(3, 3),
            ResnetConfig().build(3, 3),
            PatchDiscriminator(PatchConfig(), 6, gains=True),
            PatchDiscriminator(PatchConfig(), 3, gains=False),
        ]
    counts = [sum(p.numel() for p in net.parameters()) for net in found]
    dead = (0, 5_248, 0, 896)
    published = [round((a + b) / 1e6, 3) for a, b in zip(counts, dead, strict=True)]
    assert published == [54.414, 11.378, 2.769, 2.765]


def test_a_patch_has_the_side_that_it_says() -> None:
    """70, 34 and 16 pixels: one score's gradient reaches so far."""
    for halvings, side in ((3, 70), (2, 34), (1, 16)):
        net = PatchDiscriminator(PatchConfig(width=1, halvings=halvings), 1, gains=False)
        for layer in net.layers:
            layer.norm = None  # it would let every pixel through
        x = torch.randn(1, 1, 128, 128, requires_grad=True)
        score = net(x)
        score[0, score.shape[1] // 2, score.shape[2] // 2].backward()
        reached = x.grad[0, 0].abs().sum(0).nonzero()
        assert int(reached.max() - reached.min()) + 1 == side


def test_pix2pix_is_the_papers_loss() -> None:
    config = member("pix2pix")
    family = config.build(DATA)
    nets, rows = build(family), batch()
    x = rows["image"]
    fake = nets["generator"](x)
    real, made = (nets["discriminator"](torch.cat([x, y], 1)) for y in (x, fake))
    one = torch.ones_like(real)
    expected = sum(
        F.binary_cross_entropy_with_logits(score, target, reduction="none").mean((1, 2)) / 2
        for score, target in ((real, one), (made, 0 * one))
    )
    out = family.phases[0].loss(view(nets, "discriminator"), rows, AT, rng(4))
    torch.testing.assert_close(out.loss_B, expected)
    entropy = F.binary_cross_entropy_with_logits(made, one, reduction="none").mean((1, 2))
    out = family.phases[1].loss(view(nets, "generator"), rows, AT, rng(4))
    torch.testing.assert_close(out.loss_B, entropy + 1.0 * (fake - x).abs().mean((1, 2, 3)))


def test_cyclegan_is_the_papers_loss_of_each_domain() -> None:
    """Computed domain by domain, with one translator at a time."""
    config = member("cyclegan")
    family = config.build(DATA)
    nets, rows = build(family), batch()
    to, judge = nets["generator"], nets["discriminator"]
    expected_d, expected_g = torch.zeros(4), torch.zeros(4)
    for row in range(4):
        x = rows["image"][row : row + 1]
        second = int(rows["label"][row]) == 1
        there, back = (to.to_first, to.to_second) if second else (to.to_second, to.to_first)
        own, other = (judge.of_second, judge.of_first) if second else (judge.of_first, judge.of_second)
        fake = there(x)
        expected_d[row] = ((own(x) - 1).square().mean() + other(fake).square().mean()) / 2
        cycle, same = (back(fake) - x).abs().mean(), (back(x) - x).abs().mean()
        expected_g[row] = (other(fake) - 1).square().mean() + 1.0 * cycle + 1.0 * 0.5 * same
    for phase, expected in zip(family.phases, (expected_d, expected_g), strict=True):
        out = phase.loss(view(nets, phase.trains), rows, replace(AT, state=initial(family)), rng(4))
        torch.testing.assert_close(out.loss_B, expected.detach(), rtol=1e-4, atol=1e-5)


class Shift(nn.Module):
    """Adds a number to every pixel."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor([by]))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return x_BCHW + self.by


def test_translators_that_undo_each_other_have_no_cycle_loss() -> None:
    """And the loss at the optimum of the game is the discriminators' indecision alone, 1/4 each."""
    objective = CycleGan(cycle=10.0, identity=0.0)

    class Undecided(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return torch.full((len(x_BCHW), 2, 2), 0.5)

    nets = {
        "generator": Translators(Shift(-0.3), Shift(0.3)),
        "discriminator": Judges(Undecided(), Undecided()),
    }
    rows = {"image": torch.rand(4, 1, 8, 8), "label": torch.tensor([0, 1, 1, 0])}
    out = objective.generate(nets, rows)
    torch.testing.assert_close(out.metrics["cycle"], torch.zeros(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.loss_B, torch.full((4,), 0.25), rtol=0, atol=1e-5)
    torch.testing.assert_close(objective.discriminate(nets, rows, AT, rng(4)).loss_B, torch.full((4,), 0.25))


def test_samples_go_to_the_domain_that_is_asked_for() -> None:
    family = member("cyclegan", ema=None).build(DATA)
    generator = Translators(Shift(-0.25), Shift(0.25))
    source = torch.zeros(3, 1, 8, 8)
    for to, value in (("second", 0.25), ("first", -0.25)):
        request = SampleRequest(num=3, options=SamplingConfig(to=to), conditions={"source": source})
        with torch.no_grad():
            found = family.sample({"generator": generator}, request, AT, SampleRng(0, range(3)))
        torch.testing.assert_close(found, source + value)


def test_a_unet_sees_the_whole_image_and_keeps_its_details() -> None:
    net = UnetConfig(width=4, halvings=3).build(1, 1).eval()
    x = torch.randn(1, 1, 16, 16, requires_grad=True)
    net(x)[0, 0, 0, 0].backward()
    assert x.grad[0, 0, 15].any() and x.grad[0, 0, :, 15].any()
    assert net(torch.randn(2, 1, 8, 24)).shape == (2, 1, 8, 24)


def test_dropout_couples_rows_and_is_off_in_sampling() -> None:
    unet = UnetConfig(width=4, halvings=3, dropout=0.5)
    assert member("pix2pix", generator=unet).couples_rows() and not member("pix2pix").couples_rows()
    net = unet.build(1, 1)
    x = torch.randn(2, 1, 8, 8)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


@pytest.mark.parametrize("name", GENERATORS.names())
def test_translators_keep_the_size(name: str) -> None:
    assert GENERATORS.find(name).tiny().build(2, 3)(torch.randn(2, 2, 16, 8)).shape == (2, 3, 16, 8)


@pytest.mark.parametrize(
    ("config", "data", "says"),
    [
        (TranslationConfig(), DataSpec(3, 64, 64), "no column of images 'source'; pack pairs"),
        (
            TranslationConfig(),
            DataSpec(3, 64, 64, extra={"edges": Column("image", "uint8", (1, 64, 64))}),
            "set model.objective.column=edges",
        ),
        (
            TranslationConfig(),
            DataSpec(3, 64, 64, extra={"source": Column("image", "uint8", (1, 32, 32))}),
            "has images of 32x32, but the data 64x64",
        ),
        (TranslationConfig(objective=CycleGan()), PAIRS, "has no classes; pack a folder"),
        (TranslationConfig(objective=CycleGan(second=(4,))), DATA, "4 is not a class"),
        (TranslationConfig(objective=CycleGan(second=(0, 1, 2))), DATA, "leaves none for the first"),
        (member("pix2pix", generator=UnetConfig(halvings=5)), DATA, "use at most 3"),
        (member("pix2pix", discriminator=PatchConfig(halvings=3)), DATA, "use at most 1"),
        (member("pix2pix", generator=ResnetConfig()), DataSpec(1, 30, 30), "a multiple of 4"),
        (member("pix2pix", sampling=SamplingConfig(to="first")), DATA, "translates one way"),
    ],
)
def test_data_that_does_not_fit_is_refused(config: TranslationConfig, data: DataSpec, says: str) -> None:
    assert any(says in line for line in config.problems(data)), config.problems(data)


def test_pairs_of_different_channels_are_translated() -> None:
    config = TranslationConfig(generator=ResnetConfig.tiny(), discriminator=PatchConfig(width=4, halvings=2))
    assert config.problems(PAIRS) == []
    family = config.build(PAIRS)
    rows = {"image": torch.rand(2, 3, 16, 16), "source": torch.rand(2, 1, 16, 16)}
    nets = build(family)
    for phase in family.phases:
        assert phase.loss(view(nets, phase.trains), rows, AT, rng(2)).loss_B.shape == (2,)


def test_a_rate_may_stay_at_its_peak_before_it_falls() -> None:
    rate = LearningRate(peak=1.0, decay="linear", hold=0.5)
    found = [rate.at(Progress(0, images, 1_000, 1)) for images in (0, 250, 500, 750, 1_000)]
    assert found == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])
    assert LearningRate(decay="linear").at(Progress(0, 250, 1_000, 1)) == pytest.approx(0.75e-3)


def test_the_pool_does_what_a_list_of_images_does() -> None:
    """Row by row against plain lists, as in the authors' `ImagePool`, with a place drawn for every row."""
    data, size = DataSpec(1, 1, 1), 3
    pool = ImagePool(size, data)
    state, places = dict(pool.first), [dict[int, float](), dict[int, float]()]
    from_pool = 0
    for step in range(60):
        made, second = torch.full((1, 1, 1, 1), float(step + 1)), torch.tensor([step % 2 == 1])
        draws = StreamRng((Piece(0, 0, 1),), rows_per_stream=1, seed=0, images=step, phase="p")
        same = StreamRng((Piece(0, 0, 1),), rows_per_stream=1, seed=0, images=step, phase="p")
        place, swaps = int(same.integers(size)), bool(same.uniform() < 0.5)
        held = places[step % 2]
        expected = held[place] if place in held and swaps else float(step + 1)
        if swaps or place not in held:
            held[place] = float(step + 1)
        seen, sums = pool.swap(made, second, state, draws)
        assert float(seen) == expected
        from_pool += expected != step + 1
        state = dict(pool.advance(state, sums))
        for domain, part in enumerate(places):
            for at, value in part.items():
                assert float(state[IMAGES][domain * size + at]) == value
    assert 15 <= from_pool <= 35, "half of the time, once it is full"


def test_the_pool_is_the_same_for_any_division_of_a_batch() -> None:
    data, size, rows = DataSpec(1, 2, 2), 4, 8
    pool = ImagePool(size, data)
    made, second = torch.randn(rows, 1, 2, 2), torch.arange(rows) % 3 == 0
    state = {IMAGES: torch.randn(2 * size, 1, 2, 2), HELD: torch.ones(2 * size, dtype=torch.int64)}

    def draws(first: int, count: int) -> StreamRng:
        return StreamRng((Piece(0, first, count),), rows_per_stream=rows, seed=5, images=0, phase="p")

    seen, whole = pool.swap(made, second, state, draws(0, rows))
    halves = [pool.swap(made[at : at + 4], second[at : at + 4], state, draws(at, 4)) for at in (0, 4)]
    assert torch.equal(torch.cat([half.seen_BCHW for half in halves]), seen)
    summed = {name: halves[0].sums[name] + halves[1].sums[name] for name in whole}
    after, again = pool.advance(state, whole), pool.advance(state, summed)
    assert torch.equal(after[IMAGES], again[IMAGES])
    alone = whole[WANTED] == 1
    assert alone.any()
    assert torch.equal(after[IMAGES][~alone], state[IMAGES][~alone]), (
        "wanted by several, a place keeps its image"
    )
