"""What every family must keep to, whoever wrote it. A new folder under families/ is tested by being there."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from members import (
    CONFIGS,
    DATA,
    MEMBERS,
    PROGRESS,
    ROWS,
    Nets,
    batch,
    build,
    cut,
    given,
    having,
    progress_of,
    view,
)
from pydantic import BaseModel
from torch import Tensor, nn

from sfumato import families
from sfumato.core.batch import Batch, Piece, Texts
from sfumato.core.conditions import conditions_of
from sfumato.core.family import (
    EIGHT_BIT,
    EmaOf,
    Family,
    FamilyConfig,
    HasLatent,
    HasLikelihood,
    Phase,
    Reconstructs,
    SampleRequest,
    Trainable,
    likelihood_of,
)
from sfumato.core.progress import Progress
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.core.state import initial
from sfumato.errors import CapabilityError
from sfumato.layers.batch_norm import BatchNorm
from sfumato.sampling.generator import Generator
from sfumato.sampling.model_folder import save_model_folder


@pytest.fixture(params=MEMBERS, ids="/".join)
def config(request: pytest.FixtureRequest) -> FamilyConfig:
    return CONFIGS[request.param]


def of(members: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test of these members alone."""
    return pytest.mark.parametrize("config", members, ids="/".join, indirect=True)


COUPLED = [member for member, config in CONFIGS.items() if config.couples_rows()]
"""Members with batch statistics, or dropout, or losses that compare rows."""
DRAWING = [member for member, config in CONFIGS.items() if config.samples(DATA)]


@pytest.fixture
def family(config: FamilyConfig) -> Family:
    return config.build(DATA)


@pytest.fixture
def nets(family: Family) -> Nets:
    return build(family)


def noise(*pieces: Piece, phase: str, images: int = 64) -> StreamRng:
    return StreamRng(pieces, rows_per_stream=ROWS, seed=5, images=images, phase=phase)


def loss_of(family: Family, nets: Nets, phase: Phase, rows: Batch, rng: StreamRng) -> Tensor:
    with torch.no_grad():
        prepared = family.prepare(view(nets, None), rows, progress_of(family), rng)
    return phase.loss(view(nets, phase.trains), prepared, progress_of(family), rng).loss_B


def no_batch_statistics(nets: Nets) -> bool:
    kinds = (BatchNorm, nn.modules.batchnorm._BatchNorm)
    return not any(isinstance(module, kinds) for net in nets.values() for module in net.modules())


def same(one: Tensor, two: Tensor) -> bool:
    return torch.equal(one, two) if isinstance(one, Tensor) else one == two


def fields(kind: type[BaseModel]) -> Iterator[tuple[str, str | None]]:
    for name, field in kind.model_fields.items():
        yield f"{kind.__name__}.{name}", field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation)


def test_the_tiny_instance_fits_the_data(config: FamilyConfig) -> None:
    assert config.problems(DATA) == []


@of([member for member in MEMBERS if member[0] in ("gan", "translation")])
def test_adversarial_phases_clip_no_gradient_unless_a_recipe_asks(family: Family) -> None:
    """Clipping would undo the factor of a lazy penalty, which stands for many steps."""
    assert {phase.clip_grad_norm for phase in family.phases} == {None}


def test_networks_phases_and_samplers_refer_to_each_other(family: Family) -> None:
    trainable = {name for name, spec in family.nets.items() if isinstance(spec, Trainable)}
    sources = {spec.source for spec in family.nets.values() if isinstance(spec, EmaOf)}
    assert {phase.trains for phase in family.phases} == trainable
    assert sources <= trainable
    assert family.samplers
    assert set(family.samplers) <= set(family.nets)
    assert len({phase.name for phase in family.phases}) == len(family.phases)
    assert all(phase.repeats >= 1 and phase.every >= 1 for phase in family.phases)


def test_building_is_deterministic(family: Family) -> None:
    first, second = build(family), build(family)
    for name, net in first.items():
        other = second[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in net.state_dict().items())


def test_averages_decay_by_a_weight(family: Family) -> None:
    for spec in family.nets.values():
        if isinstance(spec, EmaOf):
            assert 0 <= spec.decay(PROGRESS) <= 1
            late = Progress(step=10_000, images=10_000_000, total_images=10_000_000, batch=ROWS)
            assert 0 <= spec.decay(late) <= 1


DRAWN_PHASES = {"reflow", "generate"}
"""Phases of unconditional members that see no image of the data: networks draw what they learn from."""


def test_losses_have_one_finite_value_a_row(family: Family, nets: Nets) -> None:
    for phase in family.phases:
        rng = noise(Piece(0, 0, ROWS), phase=phase.name)
        out = phase.loss(
            view(nets, phase.trains),
            family.prepare(nets, batch(), progress_of(family), rng),
            progress_of(family),
            rng,
        )
        assert out.loss_B.shape == (ROWS,)
        assert out.loss_B.isfinite().all()
        for name, value in out.metrics.items():
            assert value.shape in {(), (ROWS,)}, name
            assert value.isfinite().all(), name
            assert not value.requires_grad, name


def test_a_phase_reaches_every_parameter_of_its_network_and_no_other(family: Family, nets: Nets) -> None:
    for phase in family.phases:
        for net in nets.values():
            net.zero_grad(set_to_none=True)
        loss_of(family, nets, phase, batch(), noise(Piece(0, 0, ROWS), phase=phase.name)).mean().backward()
        trained = dict(nets[phase.trains].named_parameters())
        assert [name for name, value in trained.items() if value.grad is None] == []
        assert all(value.grad.isfinite().all() for value in trained.values() if value.grad is not None)
        assert any(value.grad.any() for value in trained.values() if value.grad is not None)
        for name, net in nets.items():
            if name != phase.trains:
                assert all(value.grad is None for value in net.parameters()), name


@of([member for member in MEMBERS if member not in COUPLED])
def test_a_row_has_its_own_loss(family: Family, nets: Nets) -> None:
    assert no_batch_statistics(nets), "they couple the rows, and the configuration does not say so"
    rows = batch()
    changed = {**rows, "image": rows["image"].clone(), "label": rows["label"].clone()}
    changed["image"][1:] *= -0.5
    changed["label"][1:] = 2 - changed["label"][1:]
    changed["text"] = Texts([rows["text"][0], *(f"{text} else" for text in rows["text"][1:])])
    for phase in family.phases:
        one, two = (
            loss_of(family, nets, phase, given, noise(Piece(0, 0, ROWS), phase=phase.name))
            for given in (rows, changed)
        )
        torch.testing.assert_close(one[0], two[0], rtol=1e-5, atol=1e-6)
        if phase.name not in DRAWN_PHASES:
            assert not torch.allclose(one[1:], two[1:])


def test_all_randomness_comes_from_the_given_noise(family: Family, nets: Nets) -> None:
    for phase in family.phases:
        found = []
        for global_seed in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(global_seed)
                before = torch.get_rng_state()
                rng = noise(Piece(0, 0, ROWS), phase=phase.name)
                found.append(loss_of(family, nets, phase, batch(), rng))
                assert torch.equal(before, torch.get_rng_state())
        assert torch.equal(*found)


@of([member for member in MEMBERS if member not in COUPLED])
def test_a_cut_into_micro_batches_changes_no_loss(family: Family, nets: Nets) -> None:
    rows = batch()
    for phase in family.phases:
        whole = loss_of(family, nets, phase, rows, noise(Piece(0, 0, ROWS), phase=phase.name))
        parts = [
            loss_of(
                family,
                nets,
                phase,
                cut(rows, first, first + 2),
                noise(Piece(0, first, 2), phase=phase.name),
            )
            for first in (0, 2)
        ]
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)


def test_prepare_changes_neither_batch_nor_networks(family: Family, nets: Nets) -> None:
    rows, kept = batch(), batch()
    state = {name: copy.deepcopy(net.state_dict()) for name, net in nets.items()}
    first, second = (
        family.prepare(nets, rows, progress_of(family), noise(Piece(0, 0, ROWS), phase="p")) for _ in range(2)
    )
    assert all(same(rows[key], kept[key]) for key in kept)
    assert all(same(first[key], second[key]) for key in first)
    for name, net in nets.items():
        assert all(torch.equal(value, state[name][key]) for key, value in net.state_dict().items())


def draw(config: FamilyConfig, family: Family, nets: Nets, indices: range) -> Tensor:
    conditions = conditions_of(given(config), indices, config.conditions(DATA), DATA)
    request = SampleRequest(num=len(indices), conditions=conditions, options=config.sampling)
    with torch.no_grad():
        return family.sample(
            {name: nets[name].eval() for name in family.samplers},
            request,
            progress_of(family),
            SampleRng(7, indices),
        )


@of(DRAWING)
def test_samples_are_images(config: FamilyConfig, family: Family, nets: Nets) -> None:
    before = torch.get_rng_state()
    images = draw(config, family, nets, range(5))
    assert images.shape == (5, *DATA.shape)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    assert images.abs().max() <= 1
    assert not torch.equal(images[0], images[3]), "two samples of one class are the same"
    assert torch.equal(before, torch.get_rng_state()), "sampling used the global generator"


@of(DRAWING)
def test_a_sample_depends_on_its_own_noise_alone(config: FamilyConfig, family: Family, nets: Nets) -> None:
    many = draw(config, family, nets, range(6))
    torch.testing.assert_close(draw(config, family, nets, range(2, 5)), many[2:5], rtol=0, atol=1e-4)
    assert torch.equal(draw(config, family, nets, range(6)), many)


@of([member for member in MEMBERS if member not in DRAWING])
def test_a_family_that_cannot_draw_says_so(config: FamilyConfig, family: Family, nets: Nets) -> None:
    assert isinstance(family, Reconstructs)
    with pytest.raises(CapabilityError, match="cannot draw"):
        draw(config, family, nets, range(2))


def used(family: Family, nets: Nets) -> Nets:
    return {name: view(nets, None)[name].eval() for name in family.samplers}


@of(having(Reconstructs))
@torch.no_grad()
def test_reconstructions_are_images_each_of_its_own_row(family: Family, nets: Nets) -> None:
    assert isinstance(family, Reconstructs)
    rows = batch()
    images = family.reconstruct(used(family, nets), rows, progress_of(family), SampleRng(1, range(ROWS)))
    assert images.shape == rows["image"].shape
    assert images.isfinite().all() and images.abs().max() <= 1
    one = cut(rows, 1, 2)
    alone = family.reconstruct(used(family, nets), one, progress_of(family), SampleRng(1, range(1, 2)))
    torch.testing.assert_close(alone, images[1:2], rtol=1e-4, atol=1e-5)


@of([member for member in having(HasLatent) if member in DRAWING])
@torch.no_grad()
def test_what_a_latent_decodes_to_is_what_is_sampled(
    config: FamilyConfig, family: Family, nets: Nets
) -> None:
    assert isinstance(family, HasLatent)
    conditions = conditions_of(given(config), range(ROWS), config.conditions(DATA), DATA)
    request = SampleRequest(num=ROWS, conditions=conditions, options=config.sampling)
    chosen = {name: nets[name].eval() for name in family.samplers}
    with torch.no_grad():
        sampled = family.sample(chosen, request, progress_of(family), SampleRng(3, range(ROWS)))
        z_ND = family.latents(chosen, config.sampling, progress_of(family), SampleRng(3, range(ROWS)))
        decoded = family.decode_latents(chosen, z_ND, request, progress_of(family))
        moved = family.decode_latents(chosen, z_ND + 1e-3, request, progress_of(family))
    assert z_ND.shape[0] == ROWS
    # A sample may be rounded to a level, which its latent's image is not.
    torch.testing.assert_close(decoded, sampled, rtol=0, atol=0.5 / 127.5 + 1e-6)
    assert 0 < float((moved - decoded).abs().mean()) < 0.1, "a small step changes it, and a little"


@of(having(HasLikelihood))
def test_bits_per_dim_are_of_each_row(family: Family, nets: Nets) -> None:
    assert isinstance(family, HasLikelihood)
    rows = batch()
    bits = family.bits_per_dim(used(family, nets), rows, progress_of(family), SampleRng(1, range(ROWS)))
    assert bits.shape == (ROWS,) and bits.isfinite().all() and (bits > 0).all()
    one = cut(rows, 1, 2)
    alone = family.bits_per_dim(used(family, nets), one, progress_of(family), SampleRng(1, range(1, 2)))
    torch.testing.assert_close(alone, bits[1:2], rtol=1e-4, atol=1e-5)


@of(having(HasLikelihood))
@torch.no_grad()
def test_a_likelihood_says_what_it_is_of(family: Family, nets: Nets) -> None:
    """One of 8-bit values changes with any value; one of something coarser does not, and says of what."""
    assert isinstance(family, HasLikelihood)
    byte = 2 * torch.arange(ROWS * 64).view(ROWS, *DATA.shape).remainder(128)
    moved = byte.clone()
    moved[:, :, 3, 3] += 1
    for net in nets.values():  # so that a fresh network's zero weights hide nothing
        for weight in net.parameters():
            weight.add_(0.05)
    one, two = (
        family.bits_per_dim(
            used(family, nets),
            {**batch(), "image": value / 127.5 - 1},
            progress_of(family),
            SampleRng(1, range(ROWS)),
        )
        for value in (byte, moved)
    )
    assert torch.equal(one, two) == (likelihood_of(family) != EIGHT_BIT)
    assert "\n" not in likelihood_of(family)


def test_the_configuration_is_json_and_described(config: FamilyConfig) -> None:
    again = type(config).model_validate(json.loads(config.model_dump_json()))
    assert again == config
    assert [name for name, text in fields(type(config)) if not text] == []
    assert families.config_class(families.reference(config)) is type(config)


def test_a_model_folder_keeps_the_model(
    config: FamilyConfig, family: Family, nets: Nets, tmp_path: Path
) -> None:
    states = {name: nets[name].state_dict() for name in family.samplers}
    save_model_folder(tmp_path / "model", config, DATA, states, name="tiny", progress=progress_of(family))
    loaded = Generator.load(tmp_path / "model")
    assert (loaded.config, loaded.data, loaded.progress, loaded.name) == (
        config,
        DATA,
        progress_of(family),
        "tiny",
    )
    for name, value in initial(family).items():
        assert torch.equal(loaded.progress.state[name], value), name
    for name, state in states.items():
        found = loaded.nets[name].state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[key], value) for key, value in state.items())
    if not config.samples(DATA):
        return
    kept = Generator(
        config, DATA, {name: nets[name] for name in family.samplers}, progress=progress_of(family)
    )
    values = {name: rows.read(range(3)) for name, rows in given(config).items()}
    one, two = (model.sample(3, seed=2, conditions=values) for model in (loaded, kept))
    assert (one == two).all()
