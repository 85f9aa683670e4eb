"""No family mixes devices, in all that it does: on a second device that stands in for a GPU.

The device is torch's `meta`, whose tensors have shapes and no values, so this runs without a GPU. An
operation between it and the CPU raises, as between CUDA and the CPU. What families bring to the host
(`.cpu()`, `.item()`, `.tolist()`) are zeros here.

What it cannot reach: the numbers, kernels that a GPU lacks, autocast, and code behind a condition on a value
that is not zero. Noise of training is drawn on the CPU and moved, since the device has no generators.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from members import CONFIGS, DATA, ROWS, Nets, batch, build, having, progress_of, view
from members import given as required
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sfumato import families
from sfumato.core.batch import Batch, DataSpec, Piece
from sfumato.core.conditions import conditions_of
from sfumato.core.family import (
    Family,
    FamilyConfig,
    HasLatent,
    HasLikelihood,
    InitialisesFromData,
    Reconstructs,
    SampleRequest,
)
from sfumato.core.rng import SampleRng, StreamRng
from sfumato.errors import ConfigError
from sfumato.training.meters import Means

DEVICE = torch.device("meta")
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
"""Of a tensor on the device, indices may lie on the CPU."""
JOINS = {aten.cat.default, aten.stack.default}
"""A number of the CPU mixes with anything but in these."""


class TwoDevices(TorchDispatchMode):
    """The rules of CUDA between the CPU and `DEVICE`; what comes from there to the host is zero."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].device == DEVICE:
            return torch.zeros((), dtype=args[0].dtype).item()
        to_host = func is aten._to_copy.default and kwargs.get("device", DEVICE) != DEVICE
        if to_host and args[0].device == DEVICE:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype", args[0].dtype))
        if func not in MOVES:
            self._check(func, _mixable(func, args, kwargs))
        return _computed(func, args, kwargs)

    def _check(self, func: Any, tensors: list[Tensor]) -> None:
        if any(tensor.device != tensors[0].device for tensor in tensors[1:]):
            shapes = ", ".join(f"{list(tensor.shape)} on {tensor.device}" for tensor in tensors)
            raise RuntimeError(f"{func} of tensors on two devices: {shapes}")


def _mixable(func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
    """The tensors that have to lie on one device."""
    tensors = list(_tensors((*args, *kwargs.values())))
    if func in JOINS:
        return tensors
    if func in INDEXES and args[0].device == DEVICE:
        return [tensor for tensor in tensors if tensor.dim() and tensor.device == DEVICE]
    return [tensor for tensor in tensors if tensor.dim()]


def _computed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the operator returns; the shape that tensors of `DEVICE` alone lead to is worked out once.

    The kernels of `meta` are Python, hundreds of lines for an addition, and samplers repeat a few operations.
    """
    key = _key(func, args, kwargs)
    if key is None:
        return func(*args, **kwargs)
    if key not in _RESULTS:
        found = func(*args, **kwargs)
        parts = found if isinstance(found, tuple) else (found,)
        if not all(part is None or _has_shape_alone(part) for part in parts):
            return found
        _RESULTS[key] = [part if part is None else (part.shape, part.stride(), part.dtype) for part in parts]
        return found
    made = tuple(
        part if part is None else torch.empty_strided(part[0], part[1], dtype=part[2], device=DEVICE)
        for part in _RESULTS[key]
    )
    return made if len(func._schema.returns) > 1 else made[0]


def _has_shape_alone(tensor: Tensor) -> bool:
    """On the device, and none of the zeros without memory, which forward mode treats as constants."""
    return tensor.device == DEVICE and not tensor._is_zerotensor()


_RESULTS: dict[Any, list[Any]] = {}
"""Shapes, strides and data types of what operators returned."""


def _key(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All that the results' shapes depend on; None where these are views or depend on values."""
    if not _makes_new_tensors(func):
        return None
    parts: list[Any] = [func]
    for value in (*args, *kwargs, *kwargs.values()):
        several = isinstance(value, list | tuple)
        for each in value if several else (value,):
            if not isinstance(each, Tensor):
                parts.append((type(each), each))
            elif _has_shape_alone(each):
                parts.append((each.shape, each.stride(), each.dtype))
            else:
                return None
        parts.append(len(value) if several else -1)
    return tuple(parts)


@cache
def _makes_new_tensors(func: Any) -> bool:
    schema = func._schema
    aliases = any(each.alias_info is not None for each in (*schema.arguments, *schema.returns))
    return not aliases and all(str(each.type) == "Tensor" for each in schema.returns)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among an operator's arguments; these nest no deeper than lists of tensors."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from (each for each in value if isinstance(each, Tensor))


class MovedRng(StreamRng):
    """Noise of training on `DEVICE`."""

    def normal(self, *tail: int) -> Tensor:
        return super().normal(*tail).to(DEVICE)

    def uniform(self, *tail: int) -> Tensor:
        return super().uniform(*tail).to(DEVICE)

    def stratified(self) -> Tensor:
        return super().stratified().to(DEVICE)

    def integers(self, high: int, *tail: int) -> Tensor:
        return super().integers(high, *tail).to(DEVICE)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not know the device, and families only ever turn it off."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


DIT_BY_SCHEDULER = {
    ("diffusion", f"dit-{sampler}"): families.config_class("diffusion").model_validate(
        {
            "network": {"kind": "dit", "patch": 2, "width": 16, "depth": 1, "heads": 2},
            "objective": {"kind": "ddpm", "timesteps": 20},
            "sampling": {"sampler": sampler, "steps": 3},
        }
    )
    for sampler in ("ddpm", "ddim", "dpmsolver++")
}
"""No member is a transformer that a scheduler of diffusers draws from: its timesteps are on the CPU."""


ALL = {**CONFIGS, **DIT_BY_SCHEDULER}


@pytest.fixture(params=ALL, ids="/".join)
def config(request: pytest.FixtureRequest) -> FamilyConfig:
    return ALL[request.param]


def of(members: Sequence[tuple[str, str]]) -> pytest.MarkDecorator:
    """A test of these members alone."""
    return pytest.mark.parametrize("config", members, ids="/".join, indirect=True)


@pytest.fixture
def data(config: FamilyConfig) -> DataSpec:
    """The smallest images that the member takes: every operation passes through Python, pixel after pixel."""
    small = replace(DATA, height=4, width=4)
    return DATA if config.problems(small) or required(config) else small


@pytest.fixture
def family(config: FamilyConfig, data: DataSpec) -> Family:
    return config.build(data)


@pytest.fixture
def nets(family: Family) -> Nets:
    return {name: net.to(DEVICE) for name, net in build(family).items()}


@pytest.fixture
def rows(data: DataSpec) -> Batch:
    here = batch() | {"image": batch()["image"][:, :, : data.height, : data.width]}
    return {name: value.to(DEVICE) for name, value in here.items()}


def used(family: Family, nets: Nets) -> Nets:
    return {name: view(nets, None)[name].eval() for name in family.samplers}


def test_an_operation_on_two_devices_is_seen() -> None:
    here, there = torch.ones(2), torch.ones(2, device=DEVICE)
    with TwoDevices():
        for mixed in (
            lambda: here + there,
            lambda: torch.where(here > 0, there, there),
            lambda: torch.cat([here, there]),
            lambda: torch.stack([here[0], there[0]]),
            lambda: here[there.long()],
            lambda: torch.nn.functional.linear(here, there),
            lambda: torch.nn.functional.embedding(here.long(), there[None]),
        ):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()
        assert (here[0] + there).device == DEVICE
        assert there[here.long()].device == DEVICE
        assert there.cpu().tolist() == [0.0, 0.0]


def test_training_keeps_to_the_device(family: Family, nets: Nets, rows: Batch) -> None:
    for phase in family.phases:
        rng = MovedRng([Piece(0, 0, ROWS)], rows_per_stream=ROWS, seed=5, images=64, phase=phase.name)
        with TwoDevices():
            if isinstance(family, InitialisesFromData):
                with torch.no_grad():
                    family.initialise(view(nets, None), rows, rng)
            with torch.no_grad():
                prepared = family.prepare(view(nets, None), rows, progress_of(family, DEVICE), rng)
            out = phase.loss(view(nets, phase.trains), prepared, progress_of(family, DEVICE), rng)
            out.loss_B.mean().backward()
            means = Means()
            for name, value in {"loss": out.loss_B, **out.metrics}.items():
                means.add(name, value, ROWS)
            means.commit(torch.ones((), dtype=torch.bool, device=DEVICE))
        assert out.loss_B.device == DEVICE
        assert {value.device for value in out.metrics.values()} <= {DEVICE}
        assert all(weight.grad is not None for weight in nets[phase.trains].parameters())


@of(having(HasLikelihood, ALL))
@torch.no_grad()
def test_likelihood_keeps_to_the_device(family: Family, nets: Nets, rows: Batch) -> None:
    assert isinstance(family, HasLikelihood)
    with TwoDevices():
        bits = family.bits_per_dim(
            used(family, nets), rows, progress_of(family, DEVICE), SampleRng(1, range(ROWS))
        )
    assert bits.device == DEVICE


@of([member for member, config in ALL.items() if config.samples(DATA)])
@torch.no_grad()
def test_sampling_keeps_to_the_device(
    config: FamilyConfig, family: Family, nets: Nets, data: DataSpec
) -> None:
    given = conditions_of(required(config), range(ROWS), config.conditions(data), data)
    fewest = {name: given[name] for name in required(config)}
    for conditions in (given, fewest):
        request = SampleRequest(num=ROWS, conditions=conditions, options=config.sampling)
        with TwoDevices(), suppress(() if conditions is given else ConfigError):  # some ask for labels
            images = family.sample(
                used(family, nets), request, progress_of(family, DEVICE), SampleRng(7, range(ROWS))
            )
            assert images.device == DEVICE and images.shape == (ROWS, *data.shape)
    if isinstance(family, HasLatent):
        request = SampleRequest(num=ROWS, conditions=given, options=config.sampling)
        with TwoDevices():
            z_ND = family.latents(
                used(family, nets), config.sampling, progress_of(family, DEVICE), SampleRng(7, range(ROWS))
            )
            assert (
                family.decode_latents(used(family, nets), z_ND, request, progress_of(family, DEVICE)).device
                == DEVICE
            )


@of(having(Reconstructs, ALL))
@torch.no_grad()
def test_reconstruction_keeps_to_the_device(family: Family, nets: Nets, rows: Batch) -> None:
    assert isinstance(family, Reconstructs)
    with TwoDevices():
        images = family.reconstruct(
            used(family, nets), rows, progress_of(family, DEVICE), SampleRng(1, range(ROWS))
        )
    assert images.device == DEVICE
