"""What training from stored weights holds, against networks that were built; runs that are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adapting import DATA, looked_up, nets_of
from tiny_pipelines import save_pipeline

from sfumato import recipe
from sfumato.core.stored import matches
from sfumato.errors import ConfigError
from sfumato.recipe import Recipe
from sfumato.runtime.runs import memory


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("memory") / "sd", "sd")


def recipe_of(sd: Path, parallel: dict[str, Any] | None = None, **model: Any) -> Recipe:
    found = recipe.parse(
        {
            "name": "memory",
            "data": {"path": "none", "columns": ["text", "edge"]},
            "model": {"family": "diffusion", "pretrained": {"folder": str(sd)}, **model},
            "train": {"images": 8, "batch": 8},
            "parallel": {"strategy": "single", **(parallel or {})},
        }
    )
    return found.model_copy(update={"model": looked_up(sd.parent, pretrained={"folder": str(sd)}, **model)})


@pytest.mark.parametrize("adapter", [{"kind": "lora", "rank": 2}, None])
def test_it_counts_what_is_held(sd: Path, adapter: dict[str, Any] | None) -> None:
    model = {} if adapter is None else {"adapter": adapter}
    job = recipe_of(sd, **model)
    nets: Any = nets_of(job.model)  # type: ignore[arg-type]
    sizes = {name: 4 * value.numel() for name, value in nets["network"].named_parameters()}
    patterns = ("*",) if adapter is None else ("*.lora_A.*", "*.lora_B.*")
    trained = {name: size for name, size in sizes.items() if matches(name, patterns)}
    held = memory.held_by(job, job.model.build(DATA))
    assert held is not None
    assert held.gradients == held.averages - 4 * (adapter is None or 1) == sum(trained.values())
    assert held.parameters == pytest.approx(sum(sizes.values()), rel=0.01), "and the scale of latents"
    counters = 4 * len(trained)
    assert held.optimizer == 2 * sum(trained.values()) + counters, "Adam keeps two moments and a count"
    still = [nets[name] for name in ("text_encoder", "first_stage")]
    tensors = [each for net in still for each in (*net.parameters(), *net.buffers())]
    assert held.frozen == sum(each.numel() * each.element_size() for each in tensors), "with the tokenizer"


def test_what_does_not_fit_is_refused_in_one_line(sd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.check(recipe_of(sd), DATA)
    monkeypatch.setattr(memory, "_room", lambda job: 50_000.0 * job.parallel.workers)
    with pytest.raises(
        ConfigError, match=r"a worker needs 0.0 GiB .* before activations, and this machine has"
    ) as told:
        memory.check(recipe_of(sd), DATA)
    assert "\n" not in str(told.value)
    memory.check(recipe_of(sd, {"check_memory": False}), DATA)
