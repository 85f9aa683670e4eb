"""What texts cost in training: beside diffusers' example, beside no texts, and with states stored beforehand.

    make bench-text ARGS="--script PATH/train_text_to_image.py"

`peer`: diffusers' `examples/text_to_image/train_text_to_image.py`, of the tag of the installed version, run
as it is on a tiny Stable Diffusion, and our training of the same folder on the same pictures. It prints no
speed, so it runs twice, for few and for many steps, and the difference counts. It needs datasets, accelerate
and torchvision in the interpreter that `--python` names. `attention`: the U-Net of texts against the same
without its transformers, and what these and the text encoder cost when they run alone. `precomputed`: a
frozen text encoder on the fly against its stored states, in steps a second and resident memory. Sides run in
turn, `--rounds` times. The last line is JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import text_example
import torch
import train_loops
import yaml
from PIL import Image

WARM = 4
"""Steps that do not count."""
BATCH, SIDE, IMAGES = 8, 32, 128


def write_pictures(folder: Path) -> None:
    """Noise with captions, as diffusers' example and `sfumato pack` read it."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    lines = []
    for number in range(IMAGES):
        pixels = draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
        text = " ".join(draw.choice(["red", "blue", "large", "small", "cube", "ball"], 5))
        lines.append(json.dumps({"file_name": f"{number:04d}.png", "text": text}))
        (folder / f"{number:04d}.txt").write_text(text)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def recipe_of(data: Path, model: dict[str, Any], steps: int) -> dict[str, Any]:
    """A recipe without pictures, checkpoints and curves on the way."""
    return {
        "name": "text",
        "data": {"path": str(data), "columns": ["text"], "streams": 8, "shuffle_window": 64, "read_tasks": 0},
        "model": {"family": "diffusion", **model},
        "train": {"images": steps * BATCH, "batch": BATCH, "log_every": BATCH, "preview_samples": 0},
    }


def one(path: Path, steps: int, threads: int) -> dict[str, float]:
    """The recipe in a process of its own: steps a second, and the most memory that it held."""
    command = [sys.executable, __file__, "--one", str(path), "--steps", str(steps), "--threads", str(threads)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measured(path: Path, steps: int) -> dict[str, float]:
    """In this process: the real loop, a reader of its own, one rank."""
    from sfumato import recipe as recipes
    from sfumato.data.columns import spec_of
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.reading import local_reader
    from sfumato.parallel import Placement
    from sfumato.parallel.strategies.single import Single
    from sfumato.runtime.runs import from_data, pretrained
    from sfumato.training.loop import Trainer, install

    recipe = pretrained.resolved(recipes.load(path), Path("/"))
    manifest = Manifest.load(recipe.data.path)
    recipe = from_data.learnt(recipe, manifest, lambda text: None)
    family, strategy, times = recipe.model.build(spec_of(recipe.data, manifest)), Single(Placement()), []
    install(family, strategy, seed=0, first=lambda: None)
    trainer = Trainer(
        family,
        strategy,
        recipe.train,
        seed=0,
        streams=recipe.data.streams,
        report=lambda progress, metrics: times.append(time.perf_counter()),
    )
    trainer.run(local_reader.read(recipe.data, manifest, seed=0, batch=BATCH))
    spent = np.diff(times)[WARM:]
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"steps_per_second": 1 / float(np.median(spent)), "resident_mib": held}


def attention(root: Path, data: Path, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of a step with texts and without, and of what the texts add, alone."""
    widths = {"channels": [32, 64], "layers_per_block": 1, "norm_groups": 8}
    text = {"dropout": 0.1, "encoders": [{"kind": "joint", "tokens": 16, "width": 64, "depth": 2}]}
    cross = {"kind": "unet_text", "attention": [1], "head_dim": 32, **widths}
    models = {
        "text": {"text": text, "network": cross},
        "none": {"condition": "none", "network": {"kind": "unet", "attention": [], **widths}},
    }
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            path = root / f"{name}.yaml"
            path.write_text(yaml.safe_dump(recipe_of(data, model, steps)))
            seconds[name].append(1 / one(path, steps, threads)["steps_per_second"])
    own = text_example.transformers_alone(root / "text.yaml", BATCH, steps)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "what": "texts",
        "with_texts_s": found["text"],
        "without_s": found["none"],
        "attention_and_encoder_alone_s": own,
        "added_over_alone": round((found["text"] - found["none"]) / own, 3),
    }


def precomputed(root: Path, data: Path, steps: int, rounds: int, threads: int) -> dict[str, Any]:
    """A frozen encoder of 12 layers on the fly, and its states from the data set."""
    encoder = text_example.save_encoder(root / "encoder")
    model = {
        "text": {
            "dropout": 0,
            "encoders": [{"kind": "folder", "weights": {"folder": str(encoder)}, "tokens": 32}],
        },
        "network": {
            "kind": "unet_text",
            "channels": [32, 64],
            "attention": [1],
            "layers_per_block": 1,
            "norm_groups": 8,
        },
    }
    live, stored = root / "live.yaml", root / "stored.yaml"
    live.write_text(yaml.safe_dump(recipe_of(data, model, steps)))
    text_example.compute(live, data, root / "states")
    content = recipe_of(root / "states", model, steps)
    del content["data"]["columns"]
    stored.write_text(yaml.safe_dump(content))
    found: dict[str, list[dict[str, float]]] = {"live": [], "stored": []}
    for _ in range(rounds):
        for name, path in (("live", live), ("stored", stored)):
            found[name].append(one(path, steps, threads))
    row: dict[str, Any] = {"what": "states beforehand"}
    for name, runs in found.items():
        for key in ("steps_per_second", "resident_mib"):
            row[f"{name}_{key}"] = round(statistics.median(run[key] for run in runs), 2)
    row["speed_ratio"] = round(row["stored_steps_per_second"] / row["live_steps_per_second"], 3)
    return row


def peer(root: Path, pictures: Path, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Images a second of both, and the ratio of their times."""
    if reason := text_example.missing(options.script, options.python):
        return {"what": "diffusers' example", "skipped": reason}
    pipeline = text_example.save_pipeline(root / "sd", SIDE)
    model = {"pretrained": {"folder": str(pipeline)}, "optimizer": {"name": "adamw", "lr": {"peak": 1.0e-5}}}
    pairs = []
    for number in range(options.rounds):
        scratch = root / f"peer-{number}"
        theirs = text_example.rate(options, pipeline, pictures, SIDE, BATCH, scratch)
        content = recipe_of(data, model, 12 * options.steps)
        content["parallel"] = {"workers": 1, "threads_per_worker": options.threads}
        content["storage"] = str(root / f"runs-{number}")
        path = root / "peer.yaml"
        path.write_text(yaml.safe_dump(content))
        from sfumato import recipe as recipes

        pairs.append((theirs, train_loops.ours(recipes.load(path), root, WARM * BATCH)))
        print(f"diffusers' example: {pairs[-1][0]:.1f} images/s, ours {pairs[-1][1]:.1f}", flush=True)
    return {
        "what": "diffusers' example",
        "theirs": statistics.median(theirs for theirs, _ in pairs),
        "ours": statistics.median(ours for _, ours in pairs),
        "speed_ratio": round(statistics.median(ours / theirs for theirs, ours in pairs), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("peer", "attention", "precomputed")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--script", type=Path, help="diffusers' train_text_to_image.py")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the script")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40, help="of each measurement")
    parser.add_argument("--threads", type=int, default=1, help="of each training process")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one is not None:
        print(json.dumps(measured(options.one, options.steps)))
        return
    from sfumato.data.packing.pack import pack

    rows: list[dict[str, Any]] = []

    def told(row: dict[str, Any]) -> None:
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)

    with tempfile.TemporaryDirectory(prefix="sfumato-bench-text-") as folder:
        root = Path(folder)
        pictures, data = root / "pictures", root / "data"
        write_pictures(pictures)
        pack(str(pictures), data)
        sizes = options.steps, options.rounds, options.threads
        if "peer" in options.parts:
            told(peer(root, pictures, data, options))
        if "attention" in options.parts:
            told(attention(root, data, *sizes))
        if "precomputed" in options.parts:
            told(precomputed(root, data, *sizes))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(json.dumps({"benchmark": "text", "rows": rows, "threads": options.threads, "machine": machine}))


if __name__ == "__main__":
    main()
