"""Model cards: whatever a run has recorded is in its card, and text of others cannot break out of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sfumato.data.format.manifest import Manifest
from sfumato.runtime.card.facts import facts_of
from sfumato.runtime.card.markdown import summary_of, text_of
from sfumato.runtime.card.write import DATA, TEXT, write_card
from sfumato.runtime.runs.run_folder import RunFolder

Earlier = Callable[[str, Path], Path]
ATTEMPT = {
    "rank": 0,
    "workers": 2,
    "host": "here",
    "cpus": 1.5,
    "gpus": 0.0,
    "device": "cpu",
    "images": 1_280,
    "seconds": 10.0,
    "cpu_seconds": 7.0,
    "gpu_joules": None,
    "package_joules": 7.2e6,
    "unread": {"gpu": "no GPU"},
}


@pytest.fixture
def run(earlier_run: Earlier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A finished run with two ranks' records of what training used, and an author's words in its recipe."""
    folder = RunFolder(earlier_run("runs", tmp_path))
    monkeypatch.chdir(tmp_path)
    folder.write_json("compute/7-ab-0.json", ATTEMPT)
    folder.write_json("compute/7-ab-1.json", {**ATTEMPT, "rank": 1, "package_joules": 7.1e6})
    recipe = yaml.safe_load((folder.path / "recipe.yaml").read_text())
    recipe["registry"] |= {"licence": "mit", "description": "Tiny digits.", "limits": ["Only eights."]}
    folder.write_text("recipe.yaml", yaml.safe_dump(recipe))
    return folder


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every plain value below a JSON value, with its place."""
    if isinstance(value, Mapping):
        for key, held in value.items():
            yield from leaves(held, (*path, str(key)))
    elif isinstance(value, list):
        for number, held in enumerate(value):
            yield from leaves(held, (*path, str(number)))
    else:
        yield path, value


def test_every_field_that_the_run_recorded_is_in_the_card(run: RunFolder) -> None:
    facts = write_card(run)
    stored = json.loads((run.model / DATA).read_text())
    assert stored == json.loads(json.dumps(facts)) == json.loads((run.path / "card" / DATA).read_text())
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    for address in ("schema", "storage", "tracking", "tune"):
        recipe.pop(address, None)
    manifest = Manifest.load("data/digits")
    data = manifest.model_dump(mode="json", exclude={"shards"}) | {"digest": manifest.digest}
    model = json.loads((run.model / "config.json").read_text())
    model = {key: value for key, value in model.items() if key not in ("config", "sfumato")}
    recorded = {
        "recipe": recipe,
        "evaluation": json.loads((run.path / "evaluation" / "report.json").read_text()),
        "training": run.read_json("stages/train.json")["result"],
        "registered": run.read_json("stages/register.json")["result"],
        "model": model,
    }
    missing = []
    for part, content in (*recorded.items(), ("data", data)):
        found = dict(leaves(stored[part][0] if part == "data" else stored[part]))
        for place, value in leaves(content):
            shown = Path(value).name if isinstance(value, str) and value.startswith("/") else value
            if place not in found or found[place] != shown:
                missing.append((part, *place))
    assert not missing


def test_the_text_shows_figures_with_intervals_data_compute_and_limits(run: RunFolder) -> None:
    facts = write_card(run)
    text = (run.model / TEXT).read_text()
    report = facts["evaluation"]
    assert len(report["metrics"]) >= 4
    for figure, value in report["metrics"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"| `{figure}` |"))
        interval = report["intervals"][figure]
        assert f"{value:.4g}" in line and interval["method"] in line
        assert f"{interval['low']:.4g} to {interval['high']:.4g}" in line
    for data in facts["data"]:
        for field in ("source", "digest", "licence"):
            assert not data[field] or data[field] in text
    assert "| Core-seconds reserved | 30 |" in text  # two ranks of 10 s on 1.5 cores
    assert "| Energy of the CPU packages | 2 kWh |" in text  # of one machine, once
    assert "| Energy of the GPUs | unknown |" in text and "no GPU" in text
    assert "- Only eights." in text and "Tiny digits." in text
    for limit in facts["limits"]:
        assert limit in text.replace("\\", "")
    (block,) = (part for part in text.split("```yaml\n")[1:] if part.startswith("name:"))
    assert yaml.safe_load(block.split("```")[0]) == facts["recipe"]


def test_hubs_read_the_head(run: RunFolder) -> None:
    from huggingface_hub import ModelCard

    write_card(run)
    card = ModelCard.load(run.model / TEXT)
    assert card.data.license == "mit" and card.data.library_name == "sfumato"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results or ()}
    assert results == facts_of(run)["evaluation"]["metrics"]


def test_words_of_others_stay_on_their_line(run: RunFolder) -> None:
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    attack = "x |\n\n# Licence\n<script>alert(1)</script> ```\n---\nlicense: stolen"
    recipe["registry"] |= {"description": attack, "limits": [attack], "licence": "mit\nlicense: stolen"}
    run.write_text("recipe.yaml", yaml.safe_dump(recipe))
    manifest = json.loads(Path("data/digits/manifest.json").read_text())
    Path("data/digits/manifest.json").write_text(json.dumps({**manifest, "source": attack}))
    text = text_of(facts_of(run))
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "mit\nlicense: stolen"  # one value, however odd
    before = text[text.index("# digits") : text.index("## Recipe")]
    assert "\n# Licence" not in before and "<script" not in before.replace("\\<", "")
    rows = [line for line in before.splitlines() if line.startswith("| Source")]
    assert len(rows) == 1 and rows[0].replace("\\|", "").count("|") == 3


def test_the_summary_fits_where_mlflow_shows_it(run: RunFolder) -> None:
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    recipe["registry"]["limits"] = ["Long. " * 100] * 20
    run.write_text("recipe.yaml", yaml.safe_dump(recipe))
    assert len(summary_of(facts_of(run))) <= 5_000


def test_marks_that_the_recipe_asks_for_are_in_the_card(run: RunFolder) -> None:
    unmarked = "The recipe asks for no mark in the images"
    assert any(limit.startswith(unmarked) for limit in facts_of(run)["limits"])
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    run.write_text("recipe.yaml", yaml.safe_dump(recipe | {"provenance": {"metadata": True}}))
    facts = facts_of(run)
    assert facts["provenance"]["metadata"] is True
    assert not any(limit.startswith(unmarked) for limit in facts["limits"])
    assert "metadata: true" in text_of(facts).split("## Provenance")[1].split("## Known limits")[0]


def test_secrets_stay_out_of_the_card(run: RunFolder) -> None:
    """Whoever has the secret of a mark can forge it; cards are published."""
    recipe = yaml.safe_load((run.path / "recipe.yaml").read_text())
    marks = {
        "watermark": {"kind": "spread", "secret": "hush"},
        "noise": {"kind": "tree_ring", "secret": "hush"},
    }
    run.write_text("recipe.yaml", yaml.safe_dump(recipe | {"provenance": marks}))
    facts = facts_of(run)
    assert facts["provenance"]["watermark"]["secret"] == "[hidden]"
    assert "hush" not in json.dumps(facts) + text_of(facts)


def test_a_run_that_measured_nothing_says_so(run: RunFolder) -> None:
    (run.path / "evaluation" / "report.json").unlink()
    for file in (run.path / "compute").iterdir():
        file.unlink()
    facts = facts_of(run)
    assert facts["evaluation"] is None and facts["compute"] is None
    assert "The model was not evaluated: nothing is known of its quality." in facts["limits"]
    assert text_of(facts).count("Not measured.") == 4


def test_the_command_prints_it_and_exports_carry_it(
    run: RunFolder, sfumato_here: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    status, out, _ = sfumato_here("card", str(run.path))
    assert status == 0 and out.startswith("---\n") and "## Known limits" in out
    for kind in ("safetensors", "diffusers"):
        dest = tmp_path / kind
        assert sfumato_here("export", str(run.path), str(dest), "--format", kind)[0] == 0
        assert (dest / TEXT).read_text().rstrip() == out.rstrip()
        assert json.loads((dest / DATA).read_text())["model"]["run"] == run.id
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "safetensors").rename(elsewhere)
    status, said, _ = sfumato_here("card", str(elsewhere))
    assert status == 0 and said.rstrip() == out.rstrip()
    (elsewhere / TEXT).unlink()
    status, _, error = sfumato_here("card", str(elsewhere))
    assert status == 1 and "has no card" in error and "Traceback" not in error
