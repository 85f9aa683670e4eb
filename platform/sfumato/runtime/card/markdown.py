"""A card as Markdown, with the YAML head of Hugging Face's model cards, which hubs read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

Facts = Mapping[str, Any]
_SHORT = 4_800
"""MLflow keeps 5,000 characters of a version's description."""
_TITLES = {
    "quality": "Quality",
    "memorisation": "Memorisation",
    "bias": "Bias",
    "detection": "Telling its images from real ones",
}


def text_of(facts: Facts) -> str:
    """The whole card."""
    return (
        _head(facts)
        + "\n".join(
            [
                *_intro(facts),
                *_section("Data", _data(facts)),
                *_section("Training", _training(facts)),
                *_section("Compute", _compute(facts)),
                *_figures(facts),
                *_section("Provenance", _provenance(facts)),
                *_section("Known limits", [f"- {_line(limit)}" for limit in facts["limits"]]),
                *_section(
                    "Recipe", ["```yaml", yaml.safe_dump(facts["recipe"], sort_keys=False).rstrip(), "```"]
                ),
            ]
        )
        + "\n"
    )


def summary_of(facts: Facts) -> str:
    """The beginning of the card, for places that keep little text: figures and limits, no recipe."""
    parts = [*_intro(facts), *_figures(facts)]
    parts += _section("Known limits", [f"- {_line(limit)}" for limit in facts["limits"]])
    parts.append("The whole card is among the run's artifacts, `card/README.md`, and in the model's folder.")
    text = "\n".join(parts)
    return text if len(text) <= _SHORT else text[: text.rindex("\n", 0, _SHORT)] + "\n…"


def _head(facts: Facts) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    report = facts["evaluation"]
    data = facts["data"][0]
    results = [
        EvalResult(
            task_type="unconditional-image-generation",
            dataset_type=data.get("name", data["path"]),
            dataset_name=data.get("name", data["path"]),
            metric_type=figure,
            metric_value=value,
        )
        for figure, value in (report["metrics"] if report else {}).items()
    ]
    head = ModelCardData(
        license=facts["model"]["licence"] or None,
        library_name="sfumato",
        pipeline_tag="unconditional-image-generation",
        tags=["image-generation", str(facts["model"]["family"]).rpartition(":")[2]],
        model_name=facts["model"]["name"] if results else None,
        eval_results=results or None,
    )
    return f"---\n{head.to_yaml()}\n---\n\n"


def _intro(facts: Facts) -> Iterator[str]:
    model = facts["model"]
    registered = facts["registered"]
    yield f"# {_line(model['name'])}"
    yield ""
    if model["description"]:
        yield from (_line(model["description"]), "")
    height, width, channels = (model["data"].get(key) for key in ("height", "width", "channels"))
    yield from _table(
        {
            "Family": model["family"],
            "Images": f"{width} x {height}, {channels} channel{'s' if channels != 1 else ''}",
            "Images seen in training": f"{model['images']:,}",
            "Parameters": ", ".join(f"{net} {count:,}" for net, count in model["parameters"].items()),
            "Licence": model["licence"] or "not said",
            "Run": model["run"],
            **({"Registered": f"{registered['name']} version {registered['version']}"} if registered else {}),
            "Digest of the model": model["digest"],
            "Digest of the recipe": model["recipe_digest"],
            "Sfumato": model["trained_with"],
            **{f"Note: {name}": note for name, note in model["notes"].items()},
        }
    )


def _data(facts: Facts) -> Iterator[str]:
    for data in facts["data"]:
        if "missing" in data:
            yield f"{_line(data['path'])}: {_line(data['missing'])}"
            continue
        yield f"### {_line(data['name'])}"
        yield ""
        left_out, image = data.get("left_out"), data["image"]
        yield from _table(
            {
                "Source": data["source"] or "not said",
                "Split": data["split"] or "all",
                "Images": f"{data['samples']:,}, {image['width']} x {image['height']}, "
                f"{data['bytes']:,} bytes in {data['shards']} shards",
                "Classes": ", ".join(data["classes"]) or "none",
                "Captions": f"{data['captions']:,}",
                "Further columns": ", ".join(data["columns"]) or "none",
                "Encoders": ", ".join(data["encoders"]) or "none",
                "Licence": data["licence"] or "not said",
                "Licences of single images": _counts(data.get("licences", {})) or "not recorded",
                "Left out": _left_out(left_out),
                "Weight": f"{data['weight']:g}",
                "Digest": data["digest"],
            }
        )


def _left_out(left_out: Mapping[str, Any] | None) -> str:
    if not left_out:
        return "nothing: no opt-out list, no removal of near duplicates"
    lists = [
        f"list {one['name']} (sha256 {one['sha256'][:12]}, {one['entries']:,} entries)"
        for one in left_out["lists"]
    ]
    return "; ".join([*lists, _counts(left_out["counts"]) or "nothing matched"])


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'none given'}: {count:,}" for name, count in counts.items())


def _training(facts: Facts) -> Iterator[str]:
    training, recipe = facts["training"], facts["recipe"]
    if training is None:
        yield "The record of the training is not there."
        return
    yield from _table({key.replace("_", " "): _value(value) for key, value in training.items()})
    parallel = recipe["parallel"]
    yield ""
    yield (
        f"Seed {recipe['seed']}, batches of {recipe['train']['batch']}, {parallel['workers']} "
        f"worker{'s' * (parallel['workers'] > 1)} under {parallel['strategy']}. "
        "The whole recipe is at the end of this card."
    )


def _compute(facts: Facts) -> Iterator[str]:
    used = facts["compute"]
    if used is None:
        yield "Not recorded: the run was trained by a version that kept no record."
        return
    rows = {
        "Core-seconds reserved": f"{used['core_seconds']:,.0f}",
        "Core-seconds used by the workers": f"{used['cpu_seconds']:,.0f}",
        "GPU-seconds reserved": f"{used['gpu_seconds']:,.0f}",
        "Wall time": f"{used['wall_seconds']:,.0f} s in {used['attempts']} attempts",
        "Devices": ", ".join(used["devices"]),
    }
    for name, key in (("Energy of the GPUs", "gpu_joules"), ("Energy of the CPU packages", "package_joules")):
        rows[name] = "unknown" if used[key] is None else f"{used[key] / 3.6e6:.4g} kWh"
    if used["energy_unknown"]:
        rows["Why energy is unknown"] = "; ".join(used["energy_unknown"])
    if used["package_joules"] is not None:
        rows["What the packages' energy counts"] = "everything that ran on these machines meanwhile"
    yield from _table(rows)
    yield ""
    yield "Of training alone, with the attempts that ended early; evaluation is not in it."


def _figures(facts: Facts) -> Iterator[str]:
    report = facts["evaluation"]
    for topic, title in _TITLES.items():
        names = facts["topics"].get(topic, [])
        if report is None or not names:
            yield from _section(title, ["Not measured."])
            continue
        yield from _section(title, _topic(report, names, facts["data"][0].get("classes", ())))
    if report is not None:
        yield ""
        yield _measured(report)


def _topic(report: Mapping[str, Any], names: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    yield "| figure | value | interval | better | on |"
    yield "|---|---|---|---|---|"
    for name in names:
        interval = report["intervals"].get(name)
        covers = "none"
        if interval:
            share = f"{interval['confidence']:.0%}, {interval['method']}"
            covers = f"{_value(interval['low'])} to {_value(interval['high'])} ({share})"
        better = "higher" if report["higher_is_better"].get(name) else "lower"
        on = report["computed_on"].get(name, ["", ""])[1] or "images"
        weak = " (weak)" if report["marks"].get(name) else ""
        value = _value(report["metrics"][name]) + weak
        yield f"| {_code(name)} | {value} | {_cell(covers)} | {better} | {on} |"
    for name in names:
        details = report["details"].get(name, {})
        yield from _details(name, details)
        yield from _balance(details, classes)


def _details(name: str, details: Mapping[str, Any]) -> Iterator[str]:
    """The plain values behind a figure, on a line; tables of any depth stay in the JSON."""
    plain = {key: held for key, held in details.items() if not isinstance(held, Mapping | list)}
    if plain:
        yield ""
        said = ", ".join(f"{key.replace('_', ' ')} {_value(value)}" for key, value in plain.items())
        yield f"{_code(name)}: {_line(said)}."


def _balance(details: Mapping[str, Any], classes: Sequence[str]) -> Iterator[str]:
    """Shares against those wanted, with the attribute or class in a row each."""
    found = details.get("attributes")
    parts: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    if "shares" in details:
        parts = {"class": details}
    if not parts:
        return
    yield from ("", "| of | value | share | interval | wanted | |", "|---|---|---|---|---|---|")
    for name, part in parts.items():
        for value, share in part["shares"].items():
            shown = classes[int(value)] if name == "class" and int(value) < len(classes) else value
            mark = "beyond" if value in part["beyond"] else ""
            interval = f"{_value(share['low'])} to {_value(share['high'])}"
            yield (
                f"| {_cell(name)} | {_cell(shown)} | {_value(share['share'])} | {interval} | "
                f"{_value(share['target'])} | {mark} |"
            )


def _measured(report: Mapping[str, Any]) -> str:
    features = "; ".join(
        f"{name} ({_code(str(found.get('digest', ''))[:12])})" for name, found in report["features"].items()
    )
    return (
        f"{report['samples']:,} {report['kind']} (seed {report['seed']}) against "
        f"{report['reference_samples']:,} images ({_code(report['reference_digest'][:12])}); features: "
        f"{features or 'none'}; {report['seconds_per_image']:.3g} s per image on one worker."
    )


def _provenance(facts: Facts) -> Iterator[str]:
    provenance = facts["provenance"]
    if not provenance:
        yield "The recipe asks for no marks in the images."
        return
    yield "What the recipe asks of every image that leaves:"
    yield ""
    yield from ("```yaml", yaml.safe_dump(provenance, sort_keys=False).rstrip(), "```")


def _section(title: str, lines: Any) -> Iterator[str]:
    yield from ("", f"## {title}", "")
    yield from lines


def _table(rows: Mapping[str, Any]) -> Iterator[str]:
    yield "| | |"
    yield "|---|---|"
    for name, value in rows.items():
        yield f"| {_cell(name)} | {_cell(str(value))} |"


def _value(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _cell(str(value))


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")


def _code(text: object) -> str:
    """A name or digest as code."""
    return f"`{' '.join(str(text).replace('`', '').split())}`"


def _line(text: object) -> str:
    """Text of others on one line, without Markdown or HTML of its own."""
    return re.sub(r"([<>*_`\[\]#])", r"\\\1", " ".join(str(text).split()))
