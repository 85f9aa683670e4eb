"""Are repeated training images learned by heart, is it noticed, and does removing near duplicates help?

Twenty digits, two of each class, are repeated 200 times among 1,377 others; 400 more are held out. The same
small diffusion model is trained on this set and on what `sfumato pack --deduplicate 0` leaves of it, for the
same number of images, and both are measured against the set with the repeats by `extraction`. Prints a table.

    make bench-memorisation                      # about 5 minutes on two free cores
    ... ARGS="--images 40000 --samples 1000 --out DIR"
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

REPEATS, PER_CLASS, HELD_OUT = 200, 2, 400
RECIPE = Path(__file__).parents[3] / "pipelines" / "digits" / "ddpm.yaml"


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


def sfumato(folder: Path, *arguments: str) -> dict[str, object]:
    """The report of a command; its progress goes to standard error."""
    call = [sys.executable, "-m", "sfumato", *arguments, "--json"]
    done = subprocess.run(call, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=40_000, help="Images seen in each training.")
    parser.add_argument("--samples", type=int, default=1_000, help="Samples measured of each model.")
    parser.add_argument("--out", type=Path, default=Path("memorisation"), help="Folder to work in.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    repeated = plant(options.out)
    for name, source, extra in (
        ("planted", "planted.npz", ()),
        ("deduplicated", "planted.npz", ("--deduplicate", "0")),
        ("held", "held.npz", ()),
    ):
        if not (options.out / "data" / name).exists():
            sfumato(options.out, "pack", source, f"data/{name}", *extra)
    print("| trained on | images | extraction | interval | held-out images | p | repeated ones found |")
    print("|---|---|---|---|---|---|---|")
    for name in ("planted", "deduplicated"):
        print(row(options.out, name, options.images, options.samples, repeated), flush=True)


def row(folder: Path, name: str, images: int, samples: int, repeated: set[bytes]) -> str:
    """Train, measure, and say what was found."""
    sfumato(
        folder, "train", str(RECIPE), f"name={name}", f"data.path=data/{name}", "data.source=null",
        "data.read_tasks=0", f"train.images={images}", "train.micro_batch=128", "train.preview_samples=0",
        "model.network.channels=[16,32]", "parallel.workers=1", "parallel.strategy=single",
    )  # fmt: skip
    report = sfumato(
        folder, "evaluate", name, "--against", "data/planted", "--samples", str(samples), "--metrics",
        "extraction", "--features", "thumbnail", "--held-out", "data/held", "--actors", "0",
        "--out", f"measured-{name}",
    )  # fmt: skip
    assert report["folder"]
    whole = json.loads((folder / f"measured-{name}" / "report.json").read_text())
    details, interval = whole["details"]["extraction"], whole["intervals"]["extraction"]
    size = json.loads((folder / "data" / name / "manifest.json").read_text())["shards"]
    found = found_of(folder, details, repeated)
    return (
        f"| {name} | {sum(shard['samples'] for shard in size):,} | {whole['metrics']['extraction']:.3f} | "
        f"{interval['low']:.3f} to {interval['high']:.3f} | {details['rate_of_no_copies']:.3f} | "
        f"{details['p']:.1g} | {found} of {len(repeated)} |"
    )


def found_of(folder: Path, details: dict[str, list[dict[str, int]]], repeated: set[bytes]) -> int:
    """How many of the repeated images at least two samples repeat."""
    from sfumato.evaluation.images import open_images

    pixels = np.concatenate([block for block, _ in open_images(str(folder / "data" / "planted")).blocks()])
    twice = [entry["training_image"] for entry in details["most_extracted"] if entry["samples"] >= 2]
    return len({pixels[row].tobytes() for row in twice} & repeated)


if __name__ == "__main__":
    main()
