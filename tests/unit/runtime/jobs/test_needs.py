"""What a recipe needs, what a cluster lacks, and pods that are neither too few nor too small."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from sfumato import recipe as recipes
from sfumato.families.diffusion import Config
from sfumato.runtime.cluster.use import Use
from sfumato.runtime.jobs import needs
from sfumato.runtime.jobs.command import Command
from sfumato.runtime.jobs.groups import groups_of


def command(
    name: str = "run", parallel: dict[str, object] | None = None, evaluate: dict[str, object] | None = None
) -> Command:
    content = {
        "name": "tiny",
        "data": {"path": "/data", "streams": 64},
        "model": Config.tiny().model_dump(mode="json"),
        "train": {"images": 512, "batch": 128},
        "parallel": parallel or {},
        "evaluate": evaluate or {},
    }
    return of(Use(recipe=recipes.parse(content), trains=name != "evaluate", measures=name != "train"))


def of(*uses: Use) -> Command:
    return Command(name="run", said="run tiny.yaml", title="tiny", digest="0" * 64, uses=uses)


def test_what_is_missing_is_said_with_the_fields_to_change() -> None:
    wanted = needs.needs_of(command(parallel={"workers": 2, "cpus_per_worker": 3}))
    assert needs.lacking(wanted, [{"CPU": 8.0}, {"CPU": 2.0}]) == []
    (few,) = needs.lacking(wanted, [{"CPU": 8.0}])
    assert few.startswith("10 CPUs are needed") and "data.read_tasks" in few
    # Enough in all, and in no place enough for a worker.
    (split,) = needs.lacking(wanted, [{"CPU": 2.0}] * 5)
    assert "2 training workers of 3 CPUs each are needed, and no node has room for one" in split
    (one,) = needs.lacking(wanted, [{"CPU": 4.0}, *[{"CPU": 2.0}] * 3])
    assert "there is room for 1" in one
    assert needs.lacking(wanted, []) != [] and needs.text_of([]) == "no node"


def test_an_elastic_training_needs_no_more_than_its_fewest_workers() -> None:
    elastic = needs.needs_of(
        command("train", parallel={"workers": 4, "min_workers": 2, "cpus_per_worker": 3})
    )
    fewest = needs.needs_of(command("train", parallel={"workers": 2, "cpus_per_worker": 3}))
    assert elastic[0].cpus == fewest[0].cpus
    assert needs.lacking(elastic, [{"CPU": 10.0}]) == []
    (line,) = needs.lacking(elastic, [{"CPU": 5.0}, *[{"CPU": 2.0}] * 3])
    assert line.startswith("2 training workers") and "lower parallel.min_workers" in line


def test_custom_resources_and_shares_of_a_gpu() -> None:
    share = {"workers": 10, "gpus_per_worker": 0.1, "cpus_per_worker": 0.1}
    wanted = needs.needs_of(command("train", parallel={**share, "resources_per_worker": {"trainer": 0.5}}))
    node = {"CPU": 30.0, "GPU": 1.0, "trainer": 5.0, "memory": 1e9, "node:10.0.0.1": 1.0}
    assert needs.lacking(wanted, [node]) == [], "a tenth fits ten times"
    (line,) = needs.lacking(wanted, [{**node, "trainer": 4.5}])
    assert "there is room for 9" in line and "0.5 trainer" in line
    assert needs.text_of([node]) == "30 CPUs, 1 GPUs and 5 trainer"


@pytest.mark.parametrize("name", ["CPU", "GPU"])
def test_a_custom_resource_is_none_of_rays_own(name: str) -> None:
    with pytest.raises(recipes.ConfigError, match=f"holds {name}; set parallel.{name.lower()}s_per_worker"):
        command(parallel={"resources_per_worker": {name: 1}})


@given(
    name=some.sampled_from(["run", "train", "evaluate"]),
    workers=some.integers(1, 17),
    cpus=some.sampled_from([0.5, 1.0, 3.0, 12.0]),
    gpus=some.sampled_from([0.0, 0.25, 0.3, 1.0, 2.0]),
    custom=some.sampled_from([{}, {"trainer": 0.5}]),
    actors=some.one_of(some.just("auto"), some.integers(1, 9)),
    per_actor=some.sampled_from([(1.0, 0.0), (0.5, 0.5), (10.0, 0.0), (2.0, 1.0)]),
    during=some.one_of(some.none(), some.integers(1, 3)),
)
@settings(max_examples=120, deadline=None)
def test_the_pods_of_a_recipe_hold_it_and_none_is_idle(
    name: str,
    workers: int,
    cpus: float,
    gpus: float,
    custom: dict[str, float],
    actors: object,
    per_actor: tuple[float, float],
    during: int | None,
) -> None:
    evaluate = {"actors": actors, "cpus_per_actor": per_actor[0], "gpus_per_actor": per_actor[1]}
    if during is not None:
        evaluate |= {"every": 128, "actors_during": during}
    parallel = {"workers": workers, "cpus_per_worker": cpus, "gpus_per_worker": gpus}
    asked = command(name, {**parallel, "resources_per_worker": custom}, evaluate)
    groups = groups_of(asked)
    nodes = [group.resources() for group in groups for _ in range(group.replicas)]
    assert needs.lacking(needs.needs_of(asked), nodes) == []
    for group in groups:
        if group.name == "train":  # one pod fewer would not do
            rest = [group.resources()] * (group.replicas - 1)
            wanted = needs.training_workers(asked.uses[0].recipe)
            assert needs.lacking([needs.Needs(0, (wanted,))], rest) != []
