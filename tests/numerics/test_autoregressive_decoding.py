"""Ways of drawing codes: the same chains from the same numbers, and the right distribution by chi-square."""

from __future__ import annotations

import itertools

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sfumato.core.batch import DataSpec
from sfumato.core.family import SampleRequest
from sfumato.core.pretrained import ModelCard, Pretrained
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, seeded
from sfumato.families.autoregressive.config import AutoregressiveConfig
from sfumato.families.autoregressive.drawing.decoding import draw_codes
from sfumato.families.autoregressive.drawing.draws import draw, limited
from sfumato.families.autoregressive.drawing.memory import MEMORIES, PagedMemory
from sfumato.families.autoregressive.drawing.reader import Ask, weight
from sfumato.families.autoregressive.layers.code_network import CodeNetwork
from sfumato.families.autoregressive.layers.llama_network import LlamaNetwork
from sfumato.families.autoregressive.layers.masked_network import MaskedNetwork
from sfumato.families.autoregressive.networks.llama import LlamaConfig
from sfumato.families.autoregressive.networks.maskgit import MaskGit, MaskGitConfig
from sfumato.families.autoregressive.sampling import SamplingConfig
from sfumato.layers.rope import grid_angles, turned

CODES, GRID, CLASSES = 5, (2, 4), 3
LENGTH = 8


def llama(seed: int = 0, codes: int = CODES, grid: tuple[int, int] = GRID, std: float = 0.5) -> LlamaNetwork:
    with seeded(seed):
        network = LlamaNetwork(codes, grid, CLASSES, width=8, layers=2, heads=2, multiple=4).eval()
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=std)
    return network


def plain(seed: int = 0, std: float = 0.4) -> CodeNetwork:
    with seeded(seed):
        network = CodeNetwork(CODES, LENGTH, CLASSES, width=8, layers=2, heads=2).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=std)
    return network


def ask(rows: int = 3, known: Tensor | None = None, length: int = LENGTH, **options) -> Ask:
    label = torch.arange(rows) % 2
    known = torch.zeros(rows, 0, dtype=torch.int64) if known is None else known
    return Ask(label, length, 2, True, SamplingConfig(**options), known)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("cache", ["static", "paged"])
@pytest.mark.parametrize("build", [llama, plain])
def test_new_codes_are_computed_as_by_the_whole_network(build, cache: str) -> None:
    network, codes = build(), torch.randint(CODES, (2, 7), generator=torch.Generator().manual_seed(1))
    label = torch.tensor([0, 1])
    whole = network(codes, label)
    memory = MEMORIES[cache](2, LENGTH)
    first = network(codes, label, memory, 4)
    torch.testing.assert_close(first, whole[:, :4], rtol=1e-4, atol=1e-5)
    # The second row forgets two; then each computes three, and the first row leaves.
    memory.keep([4, 2])
    some = network(codes, label, memory, 3)
    expected = torch.stack([whole[0, 4:7], whole[1, 2:5]])
    torch.testing.assert_close(some, expected, rtol=1e-4, atol=1e-5)
    assert memory.lengths == [7, 5]
    memory.stay([1])
    last = network(codes[1:], label[1:], memory, 1)
    torch.testing.assert_close(last, whole[1:, 5:6], rtol=1e-4, atol=1e-5)


def test_pages_are_taken_as_rows_need_them_and_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.families.autoregressive.drawing.memory.PAGE", 2)
    memory = PagedMemory(3, 8)

    def grow(fresh: int) -> None:
        memory.open(fresh, torch.device("cpu"))
        keys = torch.rand(len(memory.lengths), 1, fresh, 2)
        memory.extended(0, keys, keys)
        memory.close()

    grow(3)
    assert memory.pool == memory.used == 6  # two pages of two for each of three rows, not four
    memory.keep([3, 1, 2])
    assert memory.used == 4
    grow(1)
    assert memory.pool == 6 and memory.used == 5
    memory.stay([2, 0])
    assert memory.used == 4 and memory.lengths == [3, 4]
    memory.keep([0, 0])
    assert memory.used == 0


@torch.no_grad()
def test_a_llama_is_causal_and_knows_its_class() -> None:
    network, codes = llama(), torch.randint(CODES, (1, LENGTH), generator=torch.Generator().manual_seed(2))
    before = network(codes, torch.tensor([0]))
    for place in range(LENGTH):
        other = codes.clone()
        other[0, place] = (other[0, place] + 1) % CODES
        after = network(other, torch.tensor([0]))
        moved = ((after - before).abs() > 1e-6).any(2)[0]
        assert torch.equal(moved, torch.arange(LENGTH + 1) > place)
    assert ((network(codes, torch.tensor([1])) - before).abs().amax(2) > 1e-6).all()


def test_rotary_products_depend_on_the_distance_in_the_grid_alone() -> None:
    angles = grid_angles(3, 4, 8)
    assert angles.shape == (13, 4) and not angles[0].any()
    q, k = (torch.randn(8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 4))

    def product(one: tuple[int, int], two: tuple[int, int]) -> float:
        at = [1 + row * 4 + column for row, column in (one, two)]
        return (turned(q, angles[at[0]]) * turned(k, angles[at[1]])).sum().item()

    assert product((0, 0), (1, 2)) == pytest.approx(product((1, 1), (2, 3)), abs=1e-5)
    assert abs(product((0, 0), (1, 2)) - product((0, 0), (2, 1))) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0, "guidance_schedule": "cosine"}, {"top_p": 0.8}])
@pytest.mark.parametrize("build", [llama, plain])
def test_every_way_draws_the_same_chains(build, options: dict) -> None:
    network, numbers = build(), uniform(3, LENGTH)
    expected = draw_codes(network, ask(decoding="plain", **options), numbers)
    for decoding in ({"decoding": "cache"}, {"cache": "paged"}, {"decoding": "jacobi"}):
        assert torch.equal(draw_codes(network, ask(**decoding, **options), numbers), expected)
    for draft in (build(1), network):
        for length, cache in ((1, "paged"), (3, "static"), (3, "paged"), (20, "static")):
            given = ask(decoding="speculative", cache=cache, draft_length=length, **options)
            assert torch.equal(draw_codes(network, given, numbers, draft), expected)
            if draft is network:
                assert given.passes.accepted == given.passes.proposed


@torch.no_grad()
def test_a_known_start_is_kept_and_continued() -> None:
    network, numbers = llama(), uniform(3, LENGTH)
    whole = draw_codes(network, ask(), numbers)
    for decoding in ("cache", "plain", "jacobi", "speculative"):
        given = ask(known=whole[:, :5], decoding=decoding)
        assert torch.equal(draw_codes(network, given, numbers, llama(1)), whole)


@torch.no_grad()
def test_a_draft_saves_passes_of_the_model() -> None:
    network, numbers = llama(), uniform(1, LENGTH)
    given = ask(rows=1, decoding="speculative", draft_length=4)
    draw_codes(network, given, numbers, network)
    assert given.passes.model == 2  # four codes and one more, then the last three
    jacobi = ask(rows=1, decoding="jacobi")
    draw_codes(network, jacobi, numbers)
    assert jacobi.passes.model <= LENGTH


def chances(network: LlamaNetwork, label: int, length: int, options: SamplingConfig) -> Tensor:
    """Of all chains, by enumeration."""
    chains = torch.tensor(list(itertools.product(range(3), repeat=length)))
    logits = network(chains[:, :-1], torch.full((len(chains),), label))
    flat = torch.softmax(limited(logits.flatten(0, 1), **options.limits), 1).view(logits.shape)
    return flat.gather(2, chains[..., None])[..., 0].double().prod(1)


@torch.no_grad()
@pytest.mark.parametrize("speculation", ["shared", "rejection"])
@pytest.mark.parametrize("limits", [{}, {"temperature": 0.8, "top_k": 2}])
def test_speculative_draws_have_the_models_distribution(speculation: str, limits: dict) -> None:
    """Chi-square over all 27 chains of three codes, 8,000 draws, with a draft that is often wrong."""
    network, draft = (llama(seed, codes=3, grid=(1, 3), std=0.6) for seed in (5, 6))
    rows = 8_000
    options = {"decoding": "speculative", "draft_length": 2, "speculation": speculation, **limits}
    given = Ask(
        torch.zeros(rows, dtype=torch.int64),
        3,
        2,
        False,
        SamplingConfig(**options),
        torch.zeros(rows, 0, dtype=torch.int64),
    )
    numbers = uniform(rows, 3, 3) if speculation == "rejection" else uniform(rows, 3)
    codes = draw_codes(network, given, numbers, draft)
    assert 0.2 < given.passes.accepted / given.passes.proposed < 0.99
    counts = torch.bincount((codes * torch.tensor([9, 3, 1])).sum(1), minlength=27).double()
    expected = rows * chances(network, 0, 3, given.options)
    assert counts[expected == 0].sum() == 0
    often = expected > 0
    test = stats.chisquare(counts[often], expected[often] * counts.sum() / expected.sum())
    assert test.pvalue > 1e-3
    if limits:
        return  # few chains have any chance, and the draft has others
    # The same test refuses the draft's own distribution.
    wrong = rows * chances(draft, 0, 3, given.options)
    both = (wrong > 5) & often
    assert stats.chisquare(counts[both], wrong[both] * counts[both].sum() / wrong[both].sum()).pvalue < 1e-6


@torch.no_grad()
def test_rejection_accepts_more_than_shared_numbers_and_rows_do_not_matter() -> None:
    network, draft = llama(), llama(1)
    rates = {}
    for speculation in ("shared", "rejection"):
        given = ask(rows=200, decoding="speculative", speculation=speculation)
        numbers = uniform(200, LENGTH, 3) if speculation == "rejection" else uniform(200, LENGTH)
        many = draw_codes(network, given, numbers, draft)
        rates[speculation] = given.passes.accepted / given.passes.proposed
        few = ask(rows=2, decoding="speculative", speculation=speculation, draft_length=3)
        assert torch.equal(draw_codes(network, few, numbers[:2], draft), many[:2])
    assert rates["rejection"] > rates["shared"]


def test_limits_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))

    def kept(**options) -> list[int]:
        return torch.isfinite(limited(logits, **options))[0].nonzero().flatten().tolist()

    assert kept(top_p=0.5) == [0] and kept(top_p=0.51) == [0, 1] and kept(top_p=0.81) == [0, 1, 2]
    assert kept(min_p=0.5) == [0, 1] and kept(min_p=0.2) == [0, 1, 2] and kept(min_p=1.0) == [0]
    assert kept(top_k=3, top_p=0.5) == [0] and kept() == [0, 1, 2, 3]
    # Of the kept ones, in proportion to what they had: 0.5 and 0.3.
    found = draw(logits.expand(4, -1), torch.tensor([0.0, 0.62, 0.63, 0.999]), top_p=0.6)
    assert found.tolist() == [0, 0, 1, 1]


def test_the_guidance_schedule() -> None:
    def at(schedule: str, position: int) -> float:
        return weight(SamplingConfig(guidance=3, guidance_schedule=schedule), position, 5)

    assert [at("constant", 0), at("linear", 0), at("linear", 2), at("linear", 4)] == [3, 1, 2, 3]
    assert at("cosine", 2) == pytest.approx(2) and at("cosine", 1) < at("linear", 1)


def masked_family(**options) -> tuple[MaskGit, dict[str, nn.Module], AutoregressiveConfig]:
    config = AutoregressiveConfig.variants()["maskgit"].model_copy(update=options)
    data = DataSpec(1, 8, 8, classes=("a", "b"))
    family = config.build(data)
    assert isinstance(family, MaskGit)
    with seeded(7):
        nets = {name: family.nets[name].build().eval() for name in ("network", "first_stage")}
    return family, {"ema": nets["network"], **nets}, config


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_maskgit_fills_every_code_and_never_changes_one(steps: int) -> None:
    family, nets, _ = masked_family()
    seen = []
    nets["ema"].register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    options = SamplingConfig(steps=steps)
    request = SampleRequest(num=2, options=options, conditions={"label": torch.tensor([0, 1])})
    family.sample(nets, request, Progress.at(0), SampleRng(0, range(2)))
    masks = [(codes == 16).sum(1) for codes in seen]
    assert len(seen) == steps and (masks[0] == 16).all()
    for one, two in itertools.pairwise(seen):
        fixed = one != 16
        assert torch.equal(one[fixed], two[fixed]), "a code changed"
        assert ((two == 16).sum(1) <= (one == 16).sum(1)).all()
    if steps == 3:  # cos(pi / 6) and cos(pi / 3) of 16, rounded down
        assert [int(count[0]) for count in masks] == [16, 13, 8]


def test_maskgit_learns_from_masked_codes_alone() -> None:
    """The loss is the mean of -log p over what was masked, between one code and all."""
    from sfumato.core.batch import Piece
    from sfumato.core.rng import StreamRng

    family, nets, _ = masked_family()
    rows = 64
    codes = torch.randint(16, (rows, 4, 4), generator=torch.Generator().manual_seed(8))
    given = []
    nets["network"].register_forward_pre_hook(lambda _, args: given.append(args[0]))
    rng = StreamRng([Piece(0, 0, rows)], rows_per_stream=rows, seed=1, images=0, phase="p")
    batch = {"codes": codes, "label": torch.zeros(rows, dtype=torch.int64)}
    out = family.phases[0].loss(nets, batch, Progress.at(0), rng)
    masked = given[0] == 16
    assert torch.equal(given[0][~masked], codes.flatten(1)[~masked])
    counts = masked.sum(1)
    assert counts.min() >= 1 and counts.max() == 16
    # The mean share is that of cos(pi r / 2): 2 / pi.
    assert counts.float().mean().item() / 16 == pytest.approx(0.64 + 1 / 32, abs=0.08)
    assert isinstance(nets["network"], MaskedNetwork) and out.loss_B.shape == (rows,)


def test_a_draft_of_another_tokenizer_is_refused() -> None:
    config = AutoregressiveConfig.variants()["speculative"]
    data = DataSpec(1, 8, 8, classes=("a", "b", "c"))
    assert config.problems(data) == []
    assert config.draft is not None and config.draft.model is not None
    card = config.draft.model.model_dump()
    card["config"]["first_stage"]["model"]["config"]["latent"]["quantizer"]["size"] = 8
    other = Pretrained(model=ModelCard.model_validate(card))
    (line,) = config.model_copy(update={"draft": other}).problems(data)
    assert "another tokenizer" in line
    no_codes = ModelCard(family="autoregressive", config={"family": "autoregressive"}, data=DataSpec(1, 8, 8))
    (line,) = config.model_copy(update={"draft": Pretrained(model=no_codes)}).problems(data)
    assert "no transformer of codes" in line


def test_published_sizes() -> None:
    """LlamaGen-B: 111 million parameters over 16,384 codes and 1,000 classes (Sun et al. 2024, table 1)."""
    with torch.device("meta"):
        network = LlamaNetwork(16_384, (16, 16), 1_001, width=768, layers=12, heads=12, multiple=256)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert round(count / 1e6) == 111


def test_heads_and_channels_must_fit() -> None:
    with pytest.raises(ValueError, match="the nearest is 16"):
        LlamaConfig(width=18, heads=4)
    with pytest.raises(ValueError, match="the nearest is 9"):
        MaskGitConfig(width=10, heads=3)
