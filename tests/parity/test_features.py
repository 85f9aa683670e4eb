"""What the table of features says is so: claimed features change no number, refused ones do not work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launch import launch_all
from matrix import DIGITS, strategies
from torch import Tensor

from sfumato.core.schedules import LearningRate
from sfumato.families import config_class
from sfumato.parallel import STRATEGIES, ParallelSettings
from sfumato.parallel.capabilities import Feature, table
from sfumato.training.capabilities import matrix_problems

MEMBER = {"family": "diffusion", "variant": "min_snr"}
"""DDPM on a transformer, which trains several times faster than on the U-Net."""
# Five steps: the rate warms up, and three would move no weight by what the effect of clipping is held to.
TRAIN = {"images": 320, "batch": 64, "micro_batch": 16, "log_every": 64, "preview_samples": 0}
# What a feature asks for, and how far it may be from one process without it.
ASKED = {
    Feature.RECOMPUTE: ({"activation_checkpointing": True}, {}, 1e-5),
    Feature.OFFLOAD: ({}, {"offload": True}, 1e-5),
    Feature.RESHARD: ({}, {"fsdp": {"reshard_after_forward": False}}, 1e-5),
    Feature.BF16: ({"precision": "bf16"}, {}, 2e-2),
    Feature.BF16_PARAMETERS: ({"precision": "bf16"}, {"fsdp": {"bf16_parameters": True}}, 2e-2),
    # So hard that what is left is small beside Adam's eps; else Adam, which divides by it, undoes it.
    Feature.CLIPPING: ({"clip_grad_norm": 1e-4}, {}, 1e-5),
}
Result = dict[str, Tensor] | str


def case(data: Path, strategy: str, feature: Feature | None) -> dict:
    train, parallel, _ = ASKED[feature] if feature is not None else ({}, {}, 0)
    return {
        **MEMBER,
        "data": str(data),
        "strategy": strategy,
        "train": {**TRAIN, **train},
        "parallel": parallel,
    }


@pytest.fixture(scope="module")
def claimed() -> list[tuple[str, Feature]]:
    return [(name, each) for name in strategies() for each in ASKED if each in STRATEGIES[name].features]


@pytest.fixture(scope="module")
def results(
    claimed: list[tuple[str, Feature]], digits_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, Feature | None], Result]:
    folder = tmp_path_factory.mktemp("features")
    alone = [("single", None), ("single", Feature.CLIPPING)]
    single = launch_all(folder / "one", [case(digits_data, *each) for each in alone], world_size=1)
    many = launch_all(folder / "two", [case(digits_data, *each) for each in claimed], world_size=2)
    return dict(zip([*alone, *claimed], [*single, *many], strict=True))


def test_claimed_features_change_no_number(
    claimed: list[tuple[str, Feature]], results: dict[tuple[str, Feature | None], Result]
) -> None:
    for strategy, feature in claimed:
        found = results[strategy, feature]
        reference = results["single", Feature.CLIPPING if feature is Feature.CLIPPING else None]
        assert not isinstance(reference, str), reference
        assert not isinstance(found, str), f"{strategy}, {feature.value}: {found}"
        tolerance = ASKED[feature][2]
        for name, expected in reference.items():
            torch.testing.assert_close(
                found[name],
                expected,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda m, n=name, s=strategy, f=feature: f"{s}, {f.value}, {n}: {m}",
            )


def test_features_have_an_effect(results: dict[tuple[str, Feature | None], Result]) -> None:
    """By far more than the tolerance above; otherwise the comparison would compare nothing."""
    plain, clipped = results["single", None], results["single", Feature.CLIPPING]
    assert not isinstance(plain, str) and not isinstance(clipped, str)
    assert any((plain[name] - clipped[name]).abs().max() > 1e-4 for name in plain if name != "losses")
    for strategy in strategies():
        found = results.get((strategy, Feature.BF16))
        assert not isinstance(found, str) and found is not None
        assert any(not torch.equal(found[name], plain[name]) for name in plain)


@pytest.mark.slow
def test_compiled_networks_train_alike(digits_data: Path, tmp_path: Path) -> None:
    """torch.compile under every strategy that claims it (minutes of a C++ compiler)."""
    job = {**MEMBER, "data": str(digits_data)}
    able = [name for name in strategies() if Feature.COMPILE in STRATEGIES[name].features]
    compiled = {**TRAIN, "images": 128, "compile": True}
    eager = {**job, "strategy": "single", "train": {**TRAIN, "images": 128}}
    (reference,) = launch_all(tmp_path / "one", [eager], world_size=1)
    found = launch_all(
        tmp_path / "two", [{**job, "strategy": name, "train": compiled} for name in able], world_size=2
    )
    for name, result in zip(able, found, strict=True):
        assert isinstance(reference, dict) and not isinstance(result, str), f"{name}: {result}"
        for key, expected in reference.items():
            torch.testing.assert_close(result[key], expected, rtol=1e-4, atol=1e-4)


def test_what_is_refused_fails(digits_data: Path, tmp_path: Path) -> None:
    """R1 by double backward under ZeRO-3, had it not been refused: an error or other numbers."""
    job = {"family": "gan", "variant": "r1", "data": str(digits_data), "train": TRAIN}
    (reference,) = launch_all(tmp_path / "one", [{**job, "strategy": "single"}], world_size=1)
    (found,) = launch_all(tmp_path / "two", [{**job, "strategy": "zero3"}], world_size=2)
    assert Feature.SECOND_ORDER not in STRATEGIES["zero3"].features
    assert isinstance(reference, dict)
    assert isinstance(found, str) or any(
        (found[name] - reference[name]).abs().max() > 1e-4 for name in reference if name != "losses"
    )


def test_muon_on_two_ranks_equals_one_process(digits_data: Path, tmp_path: Path) -> None:
    """Each update needs whole matrices: of rows on two ranks (`fsdp`), resumed from rows on one."""
    config = config_class("diffusion").variants()[MEMBER["variant"]]
    muon = config.optimizer.model_copy(update={"name": "muon", "lr": LearningRate(peak=3e-3)})
    model = config.model_copy(update={"optimizer": muon}).model_dump()
    job = {**case(digits_data, "single", None), "model": model}
    able = [name for name in strategies() if Feature.WHOLE_MATRICES in STRATEGIES[name].features]
    assert able == ["ddp", "fsdp"]
    adam, one = launch_all(
        tmp_path / "one",
        [case(digits_data, "single", None) | {"model": config.model_dump()}, job],
        world_size=1,
    )
    saves = {"checkpoints": str(tmp_path / "saved"), "train": {**TRAIN, "checkpoint": {"every": 128}}}
    launch_all(tmp_path / "broken-off", [{**job, **saves, "stop_at": 128}], world_size=1)
    resumed = {**job, **saves, "strategy": "fsdp"}
    found = launch_all(
        tmp_path / "two", [*({**job, "strategy": name} for name in able), resumed], world_size=2
    )
    assert isinstance(one, dict) and isinstance(adam, dict)
    assert max((one[name] - adam[name]).abs().max() for name in one if name != "losses") > 1e-3
    for name, result in zip([*able, "resumed"], found, strict=True):
        assert isinstance(result, dict), f"{name}: {result}"
        for key in one.keys() - {"losses"}:
            torch.testing.assert_close(
                result[key], one[key], rtol=1e-3, atol=2e-5, msg=lambda m, n=name, k=key: f"{n}, {k}: {m}"
            )


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_muon_is_refused_where_matrices_are_cut_anywhere(strategy: str) -> None:
    config = config_class("diffusion").variants()[MEMBER["variant"]]
    muon = config.optimizer.model_copy(update={"name": "muon"})
    nets = config.model_copy(update={"optimizer": muon}).build(DIGITS).nets
    (problem,) = matrix_problems(nets, ParallelSettings(strategy=strategy))
    assert problem == (
        f"the optimizer muon of network 'network': parallel.strategy={strategy} has no updates of whole "
        "matrices; change the one, or use parallel.strategy=ddp or fsdp or single"
    )


def test_the_readme_has_the_table_of_the_flags() -> None:
    import sfumato.parallel

    readme = (Path(sfumato.parallel.__file__).parent / "README.md").read_text()
    assert table(STRATEGIES.values()) in readme, "write it anew: features.table(STRATEGIES.values())"
    for strategy in STRATEGIES.values():
        assert f"| `{strategy.name}` | {strategy.about} |" in readme
