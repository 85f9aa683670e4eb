"""What a pipeline decides without running anything: order, references, conditions, what may start."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfumato.errors import ConfigError
from sfumato.runtime.pipeline import graph, references
from sfumato.runtime.pipeline.conditions import Condition
from sfumato.runtime.pipeline.kinds.gate import better
from sfumato.runtime.pipeline.plan import differences
from sfumato.runtime.pipeline.schedule import Demand, room_for, startable


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, frozenset[str]]:
    """Graphs without circles, their stages listed in any order."""
    names = [f"s{number}" for number in range(draw(st.integers(1, 7)))]
    edges = {
        name: frozenset(draw(st.sets(st.sampled_from(names[:i] or names)))) - {name}
        for i, name in enumerate(names)
    }
    first = {names[0]: frozenset[str]()}
    shuffled = draw(st.permutations(list({**edges, **first}.items())))
    return dict(shuffled)


def reachable(needs: dict[str, frozenset[str]], start: str, goal: str) -> bool:
    """Brute force: whether `start` needs `goal` along some path."""
    return start == goal or any(reachable(needs, other, goal) for other in needs[start])


@given(graphs())
def test_stages_come_after_what_they_need_and_descendants_are_all_found(
    needs: dict[str, frozenset[str]],
) -> None:
    order = graph.ordered(needs)
    assert sorted(order) == sorted(needs)
    for name in order:
        assert all(order.index(other) < order.index(name) for other in needs[name])
    for first in needs:
        assert graph.after(needs, [first]) == {name for name in needs if reachable(needs, name, first)}


def test_stages_that_do_not_depend_on_one_another_keep_their_order() -> None:
    needs = {"c": frozenset[str](), "b": frozenset({"a"}), "a": frozenset[str]()}
    assert graph.ordered(needs) == ["c", "a", "b"]


def test_a_circle_and_a_missing_stage_are_one_line() -> None:
    circle = {"a": frozenset({"c"}), "b": frozenset({"a"}), "c": frozenset({"b"})}
    with pytest.raises(ConfigError, match=r"cycle: (a -> b -> c|b -> c -> a|c -> a -> b|.*->.*->.*->)"):
        graph.ordered(circle)
    with pytest.raises(
        ConfigError, match=r"stages\.b\.needs: there is no stage 'imagse'; did you mean 'images'\?"
    ):
        graph.ordered({"images": frozenset[str](), "b": frozenset({"imagse"})})


def test_references_are_found_and_filled_in_at_any_depth() -> None:
    content = {
        "set": {"data.path": "${images.data}/x", "deep": [{"a": "${vae.model}"}], "n": 3},
        "plain": "$x {y}",
    }
    assert sorted(references.find(content)) == [("images", "data"), ("vae", "model")]
    filled = references.replace(content, lambda stage, output: f"/{stage}/{output}")
    assert filled == {
        "set": {"data.path": "/images/data/x", "deep": [{"a": "/vae/model"}], "n": 3},
        "plain": "$x {y}",
    }
    assert list(references.find(filled)) == []


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("fd_classifier < 1.0", 0.99, True),
        ("fd_classifier < 1.0", 1.0, False),
        ("fd_classifier<=1", 1.0, True),
        ("recall >= .5", 0.5, True),
        ("recall > 5e-1", 0.5, False),
        ("recall > 0.5", float("nan"), False),
        ("fd_classifier < 1.0", float("nan"), False),
    ],
)
def test_conditions(text: str, value: float, holds: bool) -> None:
    condition = Condition.parse(text)
    assert (condition.failure({condition.metric: value}, {}) is None) == holds


@pytest.mark.parametrize(
    "text", ["recall", "recall = 3", "recall > high", "> 3", "a > 1 and b > 2", "__import__('os')"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not"):
        Condition.parse(text)


@pytest.mark.parametrize(
    ("ours", "theirs", "higher", "expected"),
    [
        ((0.8, 0.9), (0.6, 0.7), True, True),
        ((0.8, 0.9), (0.6, 0.7), False, False),
        ((0.6, 0.7), (0.8, 0.9), False, True),
        ((0.6, 0.85), (0.8, 0.9), False, False),
        ((0.8, 0.9), (0.8, 0.9), True, False),
        ((0.7, 0.9), (0.6, 0.7), True, False),
    ],
)
def test_better_means_beyond_the_intervals(
    ours: tuple[float, float], theirs: tuple[float, float], higher: bool, expected: bool
) -> None:
    assert better(ours, theirs, higher=higher) == expected


demands = st.builds(
    Demand,
    cpus=st.integers(0, 4).map(float),
    gpus=st.integers(0, 2).map(float),
    run=st.sampled_from([None, "a", "b"]),
)


@given(st.lists(demands, max_size=5), st.lists(demands, max_size=3), st.integers(1, 4))
def test_what_starts_together_has_room_and_no_run_has_two_writers(
    waiting: list[Demand], running: list[Demand], at_once: int
) -> None:
    room = Demand(6, 2)
    stages = {f"w{number}": demand for number, demand in enumerate(waiting)}
    active = {f"r{number}": demand for number, demand in enumerate(running)}
    started = startable(stages, active, room=room, at_once=at_once)
    after = [*running, *(stages[name] for name in started)]
    if started and len(after) > 1:
        assert len(after) <= at_once
        assert sum(d.cpus for d in after) <= room.cpus and sum(d.gpus for d in after) <= room.gpus
        for name, (one, other) in itertools.product(started, itertools.combinations(after, 2)):
            assert stages[name] not in (one, other) or one.run is None or one.run != other.run
    if waiting and not running:
        assert started, "something always goes on"


def test_a_small_stage_passes_a_large_one_that_has_no_room() -> None:
    waiting = {"large": Demand(4), "small": Demand(1)}
    assert startable(waiting, {"now": Demand(3)}, room=Demand(4), at_once=3) == ["small"]
    assert startable(waiting, {"now": Demand(3)}, room=Demand(8), at_once=2) == ["large"]
    assert startable(waiting, {"now": Demand(0, 0, "x")}, room=Demand(8), at_once=1) == []
    assert startable({"alone": Demand(99)}, {}, room=Demand(4), at_once=1) == ["alone"]


def test_the_least_room_holds_the_largest_that_run_together() -> None:
    assert room_for([Demand(4, 1), Demand(1), Demand(3, 2)], 2) == Demand(7, 2)
    assert room_for([Demand(0)], 2) == Demand(0, 0)


def test_differences_are_named_by_their_fields() -> None:
    old = {"recipe": {"train": {"images": 8, "batch": 4}, "seed": 0}, "data": ["a" * 64], "needs": {"x": "1"}}
    new = {"recipe": {"train": {"images": 9, "batch": 4}, "seed": 0}, "data": ["b" * 64], "needs": {"x": "2"}}
    assert differences(old, new) == ["train.images: 8 -> 9", "data changed", "x produced another output"]
    assert differences({}, {str(n): n for n in range(9)})[-1] == "and 6 more"
    assert differences(old, old) == []
