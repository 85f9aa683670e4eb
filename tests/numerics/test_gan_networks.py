"""Networks of adversarial training: what their papers say of them, in numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from members import batch, build, progress_of, view
from repository import PIPELINES
from scipy import signal
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato import recipe as recipes
from sfumato.core.batch import DataSpec, Piece
from sfumato.core.family import SampleRequest
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng, seeded
from sfumato.core.state import initial
from sfumato.families.gan.config import GanConfig
from sfumato.families.gan.layers.attention import SelfAttention
from sfumato.families.gan.layers.equalised import EqualConv2d, EqualLinear, pixel_norm
from sfumato.families.gan.networks import NETWORKS, Generated
from sfumato.families.gan.networks.biggan import BigGanConfig
from sfumato.families.gan.networks.progan import ProGanConfig
from sfumato.families.gan.networks.r3gan import R3ganConfig, _Block
from sfumato.families.gan.networks.stylegan2 import StyleGan2Config
from sfumato.families.gan.networks.stylegan2.generator import ModulatedConv2d
from sfumato.families.gan.remedies.path_length import MEAN, PathLength, PathLengthConfig, path_lengths
from sfumato.families.gan.sampling import SamplingConfig
from sfumato.layers.resampling import Blur, Down, Up

DATA = DataSpec(1, 8, 8, classes=("a", "b", "c"))
LARGE = DataSpec(1, 16, 16, classes=("a", "b", "c"))
CIFAR10 = DataSpec(3, 32, 32, tuple("0123456789"))
STYLES = {"kind": "stylegan2", **StyleGan2Config.tiny().model_dump(exclude={"kind"})}


def rng(rows: int, phase: str = "p") -> StreamRng:
    return StreamRng((Piece(0, 0, rows),), rows_per_stream=rows, seed=0, images=0, phase=phase)


def count(name: str, data: DataSpec, latent: int, **settings: Any) -> tuple[int, int]:
    """Parameters of generator and discriminator, built without memory."""
    network = NETWORKS.make(name, **settings)
    with torch.device("meta"), seeded(0):
        nets = (
            network.build_generator(data, latent=latent, classes=data.num_classes),
            network.build_discriminator(data, classes=data.num_classes, bias=True),
        )
    generator, discriminator = (sum(p.numel() for p in net.parameters()) for net in nets)
    return generator, discriminator


def test_published_sizes_have_the_published_numbers_of_parameters() -> None:
    """StyleGAN2: printed by the authors' code for FFHQ at 256 and 1024. BigGAN-128: by BigGAN-PyTorch. R3GAN:
    its paper, configuration E, in millions."""
    thousand = tuple(map(str, range(1_000)))
    assert count("stylegan2", DataSpec(3, 256, 256), 512) == (24_767_458, 24_001_089)
    assert count("stylegan2", DataSpec(3, 1024, 1024), 512, channel_base=32_768) == (30_370_060, 29_012_513)
    # StyleGAN: printed for FFHQ at 1024, less the colours of the eight lower sides, which growing needs.
    generator, _ = count("stylegan", DataSpec(3, 1024, 1024), 512)
    assert generator == 26_219_627 - (4 * 1_539 + 771 + 387 + 195 + 99)
    wide = {"channels": (1536, 768, 384, 192, 96), "discriminator_channels": (96, 192, 384, 768, 1536)}
    biggan = count("biggan", DataSpec(3, 128, 128, thousand), 120, attention=64, **wide)
    assert biggan == (70_433_988, 87_982_370)
    r3gan = count("r3gan", DataSpec(3, 256, 256), 64, channels=(768, 768, 768, 768, 384, 192, 96))
    assert [round(number / 1e6, 2) for number in r3gan] == [23.06, 23.01]


@pytest.mark.parametrize(
    ("name", "data", "millions"),
    [
        ("cifar10/sngan", CIFAR10, (4.30, 1.06)),
        ("cifar10/biggan", CIFAR10, (4.37, 4.21)),
        ("cifar10/r3gan", CIFAR10, (20.78, 21.28)),
        ("ffhq/stylegan2", DataSpec(3, 256, 256), (24.77, 24.00)),
    ],
)
def test_recipes_with_published_settings_have_the_sizes_that_they_state(
    name: str, data: DataSpec, millions: tuple[float, float]
) -> None:
    model = recipes.load(PIPELINES / f"{name}.yaml").model
    assert isinstance(model, GanConfig)
    settings = model.network.model_dump(exclude={"kind"})
    found = count(model.network.kind, data, model.latent, **settings)
    assert tuple(round(number / 1e6, 2) for number in found) == millions


def test_demodulation_gives_unit_variance() -> None:
    """For inputs of unit variance, whatever the styles; without it, the variance is that of the styles."""
    with seeded(0):
        layers = [ModulatedConv2d(32, 48, 3, 8, demodulate=each) for each in (True, False)]
        layers[1].load_state_dict(layers[0].state_dict())
        x, w = torch.randn(16, 32, 12, 12), 3 * torch.randn(16, 8)
    deviations = [layer(x, w)[:, :, 1:-1, 1:-1].std((0, 2, 3)) for layer in layers]
    torch.testing.assert_close(deviations[0], torch.ones(48), rtol=0, atol=0.12)
    assert deviations[1].mean() > 2


def test_modulation_is_that_of_the_weights() -> None:
    """The paper's form, with a kernel for each image (Karras et al. 2020, eq. 1 and 3)."""
    with seeded(1):
        layer = ModulatedConv2d(3, 5, 3, 4)
        x, w = torch.randn(2, 3, 6, 6), torch.randn(2, 4)
    for row in range(2):
        kernel = layer.weight * layer.affine(w)[row][None, :, None, None] / math.sqrt(27)
        kernel = kernel / (kernel.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected = F.conv2d(x[row : row + 1], kernel, padding=1)[0]
        torch.testing.assert_close(layer(x, w)[row], expected, rtol=1e-4, atol=1e-5)


def test_equalised_layers_keep_the_scale_and_learn_at_the_given_rate() -> None:
    with seeded(2):
        linear, conv = EqualLinear(400, 300), EqualConv2d(40, 300, 3)
        x, image = torch.randn(200, 400), torch.randn(8, 40, 10, 10)
    assert linear(x).std().item() == pytest.approx(1, abs=0.02)
    assert conv(image)[:, :, 1:-1, 1:-1].std().item() == pytest.approx(1, abs=0.03)
    assert linear.weight.std().item() == pytest.approx(1, abs=0.01)
    with seeded(3):
        full, slow = EqualLinear(4, 1), EqualLinear(4, 1, rate=0.01)
    assert slow.weight.std() > 10 * full.weight.std()
    moved = []
    for layer in (full, slow):
        before = layer(torch.ones(1, 4)).item()
        with torch.no_grad():
            layer.weight += 0.1  # as Adam would move both
        moved.append(layer(torch.ones(1, 4)).item() - before)
    assert moved[1] == pytest.approx(0.01 * moved[0], rel=1e-3)


def test_pixels_are_normalised_to_mean_square_one() -> None:
    with seeded(4):
        x = 5 * torch.randn(2, 7, 3, 3)
    torch.testing.assert_close(pixel_norm(x).square().mean(1), torch.ones(2, 3, 3))


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1)])
def test_filters_are_those_of_scipy(taps: tuple[int, ...]) -> None:
    with seeded(5):
        x = torch.randn(1, 2, 6, 6)
    kernel = torch.tensor(taps, dtype=torch.float64)
    kernel = (kernel[:, None] * kernel / kernel.sum() ** 2).numpy()
    for channel in range(2):
        plane = x[0, channel].double().numpy()
        spread = torch.zeros(12, 12, dtype=torch.float64)
        spread[::2, ::2] = x[0, channel].double()
        up = signal.convolve2d(spread.numpy(), 4 * kernel)[1:13, 1:13]
        torch.testing.assert_close(Up(taps)(x)[0, channel].double(), torch.from_numpy(up), atol=1e-6, rtol=0)
        down = signal.correlate2d(plane, kernel)[len(taps) - 2 :: 2, len(taps) - 2 :: 2][:3, :3]
        torch.testing.assert_close(
            Down(taps)(x)[0, channel].double(), torch.from_numpy(down), atol=1e-6, rtol=0
        )
    flat = torch.ones(1, 1, 16, 16)
    for layer in (Up(taps), Down(taps), Blur(len(taps) // 2, taps=taps)):
        inside = layer(flat)[..., 3:-3, 3:-3]
        torch.testing.assert_close(inside, torch.ones_like(inside))


class Linear(nn.Module):
    """G(w) = A w, whose Jacobian is A everywhere."""

    def __init__(self, size: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        self.a = nn.Parameter(torch.randn(math.prod(shape), size, generator=torch.Generator().manual_seed(0)))

    def forward(self, w_BLD: Tensor) -> Generated:
        image = (w_BLD.mean(1) @ self.a.T).unflatten(1, self.shape)
        return Generated(image, w_BLD)


def test_path_lengths_of_a_linear_generator_are_the_closed_form() -> None:
    """J' y = A' y for every layer's share, and the penalty's gradient is that of the closed form."""
    toy, layers = Linear(5, DATA.shape), 3
    w = torch.randn(4, layers, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    found = path_lengths(toy(w), rng(4))
    y = rng(4).normal(*DATA.shape).flatten(1) / 8
    closed = ((y @ toy.a) / layers).square().sum(1).sqrt()  # the mean over layers of equal squares
    torch.testing.assert_close(found, closed)
    (ours,) = torch.autograd.grad((found - 0.3).square().sum(), toy.a, retain_graph=True)
    (theirs,) = torch.autograd.grad((closed - 0.3).square().sum(), toy.a)
    torch.testing.assert_close(ours, theirs)


def test_the_running_length_is_the_mean_over_all_rows_however_they_are_cut() -> None:
    follower = PathLength(PathLengthConfig(decay=0.25))
    lengths = torch.tensor([1.0, 2.0, 3.0, 6.0])
    state = follower.first()
    whole = follower.advance(state, follower.sums(lengths))
    parts = [follower.sums(part) for part in lengths.split(1)]
    cut = follower.advance(state, {name: sum(part[name] for part in parts) for name in parts[0]})
    assert whole[MEAN].item() == cut[MEAN].item() == pytest.approx(0.25 * 3)
    assert follower.advance(whole, {})[MEAN] == whole[MEAN]
    again = follower.advance(whole, follower.sums(lengths))
    assert again[MEAN].item() == pytest.approx(0.75 + 0.25 * (3 - 0.75))


def stylegan(objective: dict[str, Any] | None = None, **changes: Any) -> GanConfig:
    network = {**STYLES, "minibatch_group": 1, **changes}
    return GanConfig.model_validate({"latent": 4, "network": network, "objective": objective or {}})


def test_the_path_length_phase_compares_with_the_state() -> None:
    family = stylegan({"path_length": {"every": 2, "weight": 3.0}}).build(DATA)
    phase, nets, rows = family.phases[-1], build(family), batch()
    assert (phase.name, phase.every, phase.second_order) == ("path_length", 2, True)
    state = {**initial(family), MEAN: torch.tensor(0.125, dtype=torch.float64)}
    out = phase.loss(view(nets, "generator"), rows, Progress(0, 0, 10, 4, state), rng(4))
    length = out.metrics["length"]
    torch.testing.assert_close(out.loss_B, 2 * 3.0 * (length - 0.125).square())
    assert out.sums[MEAN].item() == pytest.approx(length.double().sum().item())
    corrected = family.nets["generator"].optimizer
    assert corrected.lr.peak == pytest.approx(GanConfig().generator_optimizer.lr.peak * 2 / 3)


def test_styles_of_two_latents_are_mixed_from_the_crossing_on() -> None:
    family = stylegan().build(DATA)
    generator = build(family)["generator"]
    with torch.no_grad():
        for block in generator.blocks:
            for layer in block.layers:
                layer.strength.fill_(0)
        z, other, label = torch.randn(2, 4), torch.randn(2, 4), torch.tensor([0, 2])
        every = torch.full((2,), generator.styles)
        alone = generator(z, label)
        torch.testing.assert_close(generator(z, label, second=other, crossing=every), alone)
        torch.testing.assert_close(
            generator(z, label, second=other, crossing=torch.zeros(2)), generator(other, label)
        )
        mixed = generator(z, label, second=other, crossing=torch.tensor([1, generator.styles]), details=True)
        w, v = (generator(each, label, only_styles=True) for each in (z, other))
    torch.testing.assert_close(mixed.styles_BLD[0, 0], w[0])
    torch.testing.assert_close(mixed.styles_BLD[0, 1:], v[0].expand(generator.styles - 1, -1))
    torch.testing.assert_close(mixed.image_BCHW[1], alone[1])


def test_share_and_place_of_mixing_are_as_set() -> None:
    config, draws = StyleGan2Config(mixing=0.7), rng(4_000)
    crossing = config.generator_inputs(DATA, 4, Progress(0, 0, 1, 1), draws)["crossing"]
    layers = len(config.layers(DATA))
    assert layers == 3
    counts = torch.bincount(crossing, minlength=layers + 2)
    assert counts[0] == counts[layers + 2 :].sum() == 0
    assert counts[layers + 1].item() / 4_000 == pytest.approx(0.3, abs=0.03)
    for place in range(1, layers + 1):
        assert counts[place].item() / 4_000 == pytest.approx(0.7 / layers, abs=0.03)


def test_an_image_takes_the_styles_of_some_layers_from_another() -> None:
    config = stylegan()
    family = config.build(DATA)
    with seeded(0):
        generator = family.nets["generator"].build().eval()  # type: ignore[union-attr]
        z, other = torch.randn(2, 3, config.latent)
    at = Progress.at(8)
    request = SampleRequest(
        num=3, options=SamplingConfig(psi=0.5), conditions={"label": torch.tensor([1, 1, 2])}
    )
    with torch.no_grad():
        found = family.decode_mixed({"ema": generator}, z, other, range(1, 3), request, at)
        inputs = config.network.sampling_inputs(generator, config.latent, 3, at, request.options)
        w, v = (generator.styles_of(each, request.conditions["label"], **inputs) for each in (z, other))
        w = w.clone()
        w[:, 1:3] = v[:, 1:3]
        torch.testing.assert_close(found, generator.synthesise(w, None).clamp(-1, 1))
        assert family.style_layers == generator.styles


@pytest.mark.parametrize("kind", ["stylegan", "stylegan2"])
def test_noise_is_left_out_by_layers_and_drawn_anew(kind: str) -> None:
    """Strengths decide what noise adds: with those of the fine layers 0, fine noise is none."""
    network = NETWORKS.find(kind).tiny()
    config = GanConfig(latent=4, network=network)
    with seeded(1):
        generator = network.build_generator(LARGE, latent=4, classes=0)
        z, label = torch.randn(2, 4), torch.zeros(2, dtype=torch.int64)

    def image(fine: float, coarse: float, **options: Any) -> Tensor:
        for name, strength in generator.named_parameters():
            if name.endswith("strength"):
                side = generator.get_submodule(name.rpartition(".")[0]).fixed.shape[-1]
                strength.data.fill_(coarse if side <= 4 else fine)
        inputs = network.sampling_inputs(generator, 4, 0, Progress.at(1), SamplingConfig(**options))
        with torch.no_grad():
            return generator(z, label, **inputs)

    assert torch.equal(image(0.3, 0.2, noise="fine"), image(0.3, 0.0))
    assert torch.equal(image(0.3, 0.2, noise="coarse"), image(0.0, 0.2))
    assert torch.equal(image(0.3, 0.2, noise="none"), image(0.0, 0.0))
    anew = image(0.3, 0.2, noise_seed=1)
    assert torch.equal(anew, image(0.3, 0.2, noise_seed=1)) and not torch.equal(anew, image(0.3, 0.2))
    assert config.problems(LARGE) == []
    (problem,) = GanConfig(sampling=SamplingConfig(noise="none")).problems(LARGE)
    assert problem.startswith("model.sampling.noise: dcgan has no noise")


def test_truncated_styles_lie_between_their_mean_and_themselves() -> None:
    """psi 1 changes nothing; psi 0 gives one image, whatever the latent."""
    family = stylegan().build(DATA)
    nets = {"ema": build(family)["generator"].eval()}

    def draw(psi: float | None) -> Tensor:
        label = torch.arange(6) % 3
        request = SampleRequest(num=6, options=SamplingConfig(psi=psi), conditions={"label": label})
        with torch.no_grad():
            return family.sample(nets, request, Progress.at(0), SampleRng(1, range(6)))

    plain, one, none, half = (draw(psi) for psi in (None, 1.0, 0.0, 0.5))
    torch.testing.assert_close(one, plain, rtol=0, atol=1e-6)
    torch.testing.assert_close(none, none[:1].expand_as(none))
    assert half.var(0).sum() < plain.var(0).sum()
    (problem,) = GanConfig(sampling=SamplingConfig(psi=0.5)).problems(DATA)
    assert problem.startswith("model.sampling.psi: dcgan has no styles")


@pytest.mark.parametrize("kind", ["stylegan2", "progan"])
def test_sides_that_cannot_be_doubled_to_are_refused(kind: str) -> None:
    for data, near in ((DataSpec(1, 28, 28), 32), (DataSpec(3, 64, 32), 64), (DataSpec(1, 4, 4), 8)):
        (problem,) = NETWORKS.make(kind).problems(data)
        assert f"a side of {near}" in problem
    assert NETWORKS.make(kind).problems(DataSpec(3, 128, 128)) == []


def grown(doublings: float, network: ProGanConfig) -> Progress:
    """When so many doublings have faded in."""
    whole, part = divmod(doublings, 1)
    stages = 2 * whole + (1 + part if part else 0)
    return Progress(0, round(stages * network.stage_images), 10**9, 4)


def test_a_side_fades_in_without_a_jump() -> None:
    """Images and scores on either side of every change of stage are within 1e-5."""
    network = ProGanConfig.tiny().model_copy(update={"stage_images": 10**8})
    with seeded(6):
        generator = network.build_generator(LARGE, latent=4, classes=3)
        discriminator = network.build_discriminator(LARGE, classes=3, bias=True)
    z, label, real = torch.randn(4, 4), torch.tensor([0, 1, 2, 0]), torch.rand(4, 1, 16, 16) * 2 - 1
    seen = []
    for stage in (1, 2, 3, 4):
        found = []
        for images in (stage * 10**8 - 1, stage * 10**8, stage * 10**8 + 1):
            at = Progress(0, images, 10**9, 4)
            inputs = network.discriminator_inputs(at)
            with torch.no_grad():
                image = generator(z, label, **inputs)
                coarse = network.as_seen(real, at)
                found.append((image, coarse, discriminator([image, coarse], [label, label], **inputs)[1]))
        for parts in zip(*found, strict=True):
            for other in parts[1:]:
                torch.testing.assert_close(other, parts[0], rtol=0, atol=1e-5)
        seen.append(found[1][1])
    assert [network.grown(Progress(0, stage * 10**8, 1, 1)) for stage in range(6)] == [0, 0, 1, 1, 2, 2]
    assert not torch.allclose(seen[0], seen[1]) and torch.equal(seen[3], real)


def test_images_have_the_present_side_and_the_next_grows_in_between() -> None:
    network = ProGanConfig.tiny()
    real = torch.rand(2, 1, 16, 16)
    four, eight = (F.interpolate(F.avg_pool2d(real, factor), scale_factor=float(factor)) for factor in (4, 2))
    torch.testing.assert_close(network.as_seen(real, grown(0, network)), four)
    torch.testing.assert_close(network.as_seen(real, grown(1, network)), eight)
    torch.testing.assert_close(network.as_seen(real, grown(0.5, network)), (four + eight) / 2)
    with seeded(7):
        generator = network.build_generator(LARGE, latent=4, classes=0)
    z, label = torch.randn(2, 4), torch.zeros(2, dtype=torch.int64)
    image = generator(z, label, grown=1.0)
    torch.testing.assert_close(image, F.interpolate(image[:, :, ::2, ::2], scale_factor=2.0))


def test_a_residual_block_of_r3gan_starts_as_nothing_and_its_layers_at_their_scale() -> None:
    config = R3ganConfig(channels=(64, 64), blocks=3)
    with seeded(8):
        block = _Block(config, 64)
        x = torch.randn(2, 64, 4, 4)
    assert torch.equal(block(x), x)
    gain = math.sqrt(2 / 1.04) * 6 ** (-1 / 4)
    assert block.conv1.weight.std().item() == pytest.approx(gain / 8, rel=0.05)
    assert block.conv2.weight.std().item() == pytest.approx(gain / math.sqrt(16 * 9), rel=0.05)
    (problem,) = R3ganConfig(channels=(64, 60)).problems(DATA)
    assert "16 does not divide 120" in problem and "use 8" in problem


def test_attention_is_the_softmax_of_all_pairs() -> None:
    with seeded(9):
        layer, x = SelfAttention(16), torch.randn(1, 16, 4, 4)
    assert torch.equal(layer(x), x), "it starts as nothing"
    with torch.no_grad():
        layer.gamma.fill_(0.7)
    q, k, v = layer.query(x), F.max_pool2d(layer.key(x), 2), F.max_pool2d(layer.value(x), 2)
    expected = torch.zeros(1, 8, 4, 4)
    for row in range(4):
        for column in range(4):
            products = [(q[0, :, row, column] * k[0, :, i, j]).sum() for i in range(2) for j in range(2)]
            weights = torch.stack(products).softmax(0)
            expected[0, :, row, column] = sum(w * v[0, :, n // 2, n % 2] for n, w in enumerate(weights))
    torch.testing.assert_close(layer(x), x + 0.7 * layer.out(expected), rtol=1e-4, atol=1e-5)


def test_orthogonal_regularisation_is_the_papers_sum_and_zero_for_orthogonal_weights() -> None:
    config = GanConfig(latent=6, network=BigGanConfig.tiny())
    family = config.build(DATA)
    nets, rows = build(family), batch()
    generator = nets["generator"]
    inputs = (torch.randn(4, 6), rows["label"])
    matrices = [module.weight.flatten(1) for module in generator.modules() if hasattr(module, "start")]
    tall = [m for m in matrices if m.shape[0] > m.shape[1]]
    expected = sum(((m @ m.T) * (1 - torch.eye(len(m)))).square().sum() for m in matrices)
    torch.testing.assert_close(generator(*inputs, details=True).penalty, expected, rtol=1e-3, atol=1e-4)
    assert len(matrices) == 13 and tall, "more rows than columns cannot all be at right angles"
    plain = GanConfig(latent=6, network=config.network.model_copy(update={"orthogonal": 0.0})).build(DATA)
    losses = [
        each.phases[1].loss(view(nets, "generator"), rows, Progress(0, 0, 1, 4), rng(4)).loss_B
        for each in (family, plain)
    ]
    torch.testing.assert_close(losses[0] - losses[1], (1e-2 * expected).expand(4), rtol=1e-3, atol=1e-3)


def test_each_block_of_biggan_sees_its_own_piece_of_the_latent() -> None:
    network = BigGanConfig(channels=(8, 8), class_channels=4)
    with seeded(10):
        generator = network.build_generator(LARGE, latent=8, classes=3)
    assert generator.cut == [3, 3, 2]
    z, label = torch.randn(3, 8), torch.tensor([0, 1, 2])
    seen = []
    generator.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    generator(z, label)
    torch.testing.assert_close(seen[0], torch.cat([generator.embedding(label), z[:, 6:]], 1))


@pytest.mark.parametrize("kind", ["r3gan", "progan", "biggan"])
def test_texts_may_take_the_place_of_classes_that_are_embedded(kind: str) -> None:
    network = NETWORKS.find(kind).tiny()
    config = GanConfig.variants()["text"].model_copy(update={"network": network, "text_attention": ()})
    family = config.build(DATA)
    nets, rows = build(family), batch()
    noise = rng(4)
    prepared = family.prepare(nets, rows, progress_of(family), noise)
    for phase in family.phases:
        out = phase.loss(view(nets, phase.trains), prepared, progress_of(family), noise)
        assert out.loss_B.shape == (4,) and out.loss_B.isfinite().all()
    assert not any("takes classes by their numbers" in line for line in config.problems(DATA))


@pytest.mark.parametrize("kind", ["stylegan2", "mlp"])
def test_texts_are_refused_where_classes_are_numbers(kind: str) -> None:
    config = GanConfig.variants()["text"].model_copy(update={"network": NETWORKS.find(kind).tiny()})
    assert any("takes classes by their numbers" in line for line in config.problems(DATA))


def test_adaptive_instance_norm_gives_every_channel_the_mean_and_deviation_of_its_style() -> None:
    from sfumato.families.gan.networks.stylegan import AdaIn

    with seeded(3):
        layer, x, w = AdaIn(6, 5), 4 + 3 * torch.randn(2, 6, 8, 8), torch.randn(2, 5)
    out = layer(x, w)
    scale, shift = layer.affine(w).chunk(2, 1)
    torch.testing.assert_close(out.mean((2, 3)), shift, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.std((2, 3), correction=0), (1 + scale).abs(), rtol=1e-4, atol=1e-5)
    reference = F.instance_norm(x, eps=1e-8) * (1 + scale[..., None, None]) + shift[..., None, None]
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["stylegan", "stylegan2"])
def test_directions_are_those_in_which_styles_change_layers_most(kind: str) -> None:
    """Against the singular vectors of all affine maps at once; moving along one moves every style by it."""
    from sfumato.families.gan.networks import NETWORKS
    from sfumato.families.gan.styles.style_directions import directions, factorised

    data = DataSpec(1, 8, 8)
    config = NETWORKS.find(kind).tiny()
    with seeded(5):
        generator = config.build_generator(data, latent=4, classes=0)
    maps = [w.detach() for w in generator.affine_weights()]
    probe = torch.randn(1, 4)
    affine = [m.affine for m in generator.modules() if hasattr(m, "affine")]
    for layer, weight in zip(affine, maps, strict=True):
        torch.testing.assert_close(layer(probe) - layer(0 * probe), probe @ weight.T)
    _, strength, vectors = torch.linalg.svd(torch.cat(maps).double())
    found = factorised(maps)
    torch.testing.assert_close((found * vectors).sum(1).abs(), torch.ones(4, dtype=torch.float64))
    assert (strength[:-1] >= strength[1:]).all()
    moved = directions(generator, SamplingConfig(direction=1, distance=2.0))["moved"]
    torch.testing.assert_close(moved, 2 * found[1].float())
    z, label = torch.randn(3, 4), torch.zeros(3, dtype=torch.int64)
    styles = generator(z, label, only_styles=True) + moved
    expected = generator.synthesise(styles[:, None].expand(-1, generator.styles, -1), None)
    torch.testing.assert_close(generator(z, label, moved=moved), expected)
    assert directions(generator, SamplingConfig(direction=1)) == {}
