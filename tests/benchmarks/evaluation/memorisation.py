"""Are repeated training images learned by heart, does a gate notice, and does removing near duplicates help?

Twenty digits, two of each class, are repeated 200 times among 1,377 others; 400 more are held out. Two
pipelines, which differ in `dedupe` alone, pack this set, train the same small diffusion model for the same
number of images, measure `extraction` against what was packed, and register the model if a gate lets it pass:
`extraction_excess.high < 0.1`. Prints a table; exits with 1 unless the gate stops the first model and lets
the second pass.

    make bench-memorisation                      # about 5 minutes on two free cores
    ... ARGS="--images 40000 --samples 1000 --out DIR"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.datasets import load_digits

REPEATS, PER_CLASS, HELD_OUT = 200, 2, 400
MOST = "extraction_excess.high < 0.1"
RECIPE = Path(__file__).parents[3] / "pipelines" / "digits" / "ddpm.yaml"
SETS: dict[str, dict[str, Any]] = {"planted": {}, "deduplicated": {"dedupe": 0}}


def plant(folder: Path) -> set[bytes]:
    """Write planted.npz and held.npz; returns the pixels of the repeated images."""
    digits = load_digits()
    pixels, labels = np.rint(digits.images * 255 / 16).astype(np.uint8), digits.target
    order = np.random.default_rng(0).permutation(len(pixels))
    held, rest = order[:HELD_OUT], order[HELD_OUT:]
    planted = np.concatenate([rest[labels[rest] == digit][:PER_CLASS] for digit in range(10)])
    train = np.concatenate([np.setdiff1d(rest, planted), np.repeat(planted, REPEATS)])
    for name, rows in (("planted", train), ("held", held)):
        np.savez(folder / f"{name}.npz", images=pixels[rows][..., None], labels=labels[rows])
    return {image.tobytes() for image in pixels[planted]}


def sfumato(folder: Path, *arguments: str) -> dict[str, Any]:
    """The report of a command, which a closed gate ends with an error; progress goes to standard error."""
    call = [sys.executable, "-m", "sfumato", *arguments, "--json"]
    done = subprocess.run(call, cwd=folder, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:
        raise SystemExit(f"{' '.join(arguments)} ended with {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def pipeline(name: str, images: int, samples: int) -> dict[str, Any]:
    """From the images to the registry."""
    return {
        "name": name,
        "stages": {
            "images": {
                "kind": "pack",
                "source": {"kind": "npz", "path": "planted.npz", **SETS[name]},
                "dest": f"data/{name}",
            },
            "diffusion": {
                "kind": "train",
                "recipe": str(RECIPE),
                "set": {
                    "name": name,
                    "data.path": "${images.data}",
                    "data.source": None,
                    "data.read_tasks": 0,
                    "train.images": images,
                    "train.micro_batch": 128,
                    "train.preview_samples": 0,
                    "model.network.channels": [16, 32],
                    "parallel.workers": 1,
                    "parallel.strategy": "single",
                },
            },
            "quality": {
                "kind": "evaluate",
                "run": "${diffusion.run}",
                "set": {
                    "samples": samples,
                    "metrics": ["extraction", "extraction_excess"],
                    "features": ["thumbnail"],
                    "held_out": "data/held",
                    "actors": 1,
                },
            },
            "gate": {
                "kind": "gate",
                "report": "${quality.report}",
                "model": "${quality.model}",
                "name": name,
                "require": [MOST],
            },
            "register": {
                "kind": "register",
                "run": "${diffusion.run}",
                "name": "${gate.name}",
                "alias": "${gate.alias}",
            },
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000, help="Images seen in each training.")
    parser.add_argument("--samples", type=int, default=1_000, help="Samples measured of each model.")
    parser.add_argument("--out", type=Path, default=Path("memorisation"), help="Folder to work in.")
    parser.add_argument("--only", nargs="+", choices=list(SETS), default=list(SETS))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    repeated = plant(options.out)
    if not (options.out / "data" / "held").exists():
        sfumato(options.out, "pack", "held.npz", "data/held")
    print("| trained on | images | extraction | held-out images | excess | repeated ones found | gate |")
    print("|---|---|---|---|---|---|---|")
    passed = {}
    for name in options.only:
        path = options.out / f"{name}.yaml"
        path.write_text(yaml.safe_dump(pipeline(name, options.images, options.samples), sort_keys=False))
        stages = sfumato(options.out, "run", path.name)["stages"]
        passed[name] = stages["register"]["outputs"] is not None
        if stages["quality"]["outputs"] is None:
            raise SystemExit(f"{name}: {next(one['error'] for one in stages.values() if one['error'])}")
        print(row(options.out, name, stages, repeated), flush=True)
    if passed != {name: name == "deduplicated" for name in options.only}:
        raise SystemExit("the gate did not do what this benchmark expects of it")


def row(folder: Path, name: str, stages: dict[str, Any], repeated: set[bytes]) -> str:
    """What was found in a pipeline's model."""
    made = {stage: content["outputs"] for stage, content in stages.items()}
    whole = json.loads((Path(made["quality"]["report"]) / "report.json").read_text())
    cells = [name, f"{made['images']['samples']:,}"]
    for metric in ("extraction", "extraction_excess"):
        ends = whole["intervals"][metric]
        cells.append(f"{whole['metrics'][metric]:.3f} ({ends['low']:.3f} to {ends['high']:.3f})")
    details = whole["details"]["extraction"]
    cells.insert(3, f"{details['rate_of_no_copies']:.3f}")
    cells.append(f"{found_of(folder / 'data' / name, details, repeated)} of {len(repeated)}")
    end = f"closed, registration {stages['register']['state']}"
    if made["register"] is not None:
        end = f"passed, registered as version {made['register']['version']}"
    cells.append(end)
    return f"| {' | '.join(cells)} |"


def found_of(data: Path, details: dict[str, list[dict[str, int]]], repeated: set[bytes]) -> int:
    """How many of the repeated images at least two samples repeat."""
    from sfumato.evaluation.subjects.images import open_images

    pixels = np.concatenate([block for block, _ in open_images(str(data)).blocks()])
    twice = [entry["training_image"] for entry in details["most_extracted"] if entry["samples"] >= 2]
    return len({pixels[row].tobytes() for row in twice} & repeated)


if __name__ == "__main__":
    main()
