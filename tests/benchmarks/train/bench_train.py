"""What training costs beside loops written by hand, beside torchrun and beside diffusers' example.

    make bench-train ARGS="--parts families ddp"

`families`: one recipe a family against the same phases in a bare loop, and DDPM's written out in full.
`ddp`: two ranks under torchrun against two Ray Train workers. `example`: diffusers' unconditional example
(ARGS="--parts example --example PATH/train_unconditional.py"). `checkpoint` and `recovery`: what saving costs
and how long a killed run stands still. Both sides of a pair run in turn, `--rounds` times. The last line is
JSON with everything and the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import train_example
import train_faults
import train_loops
import yaml

SKIP = 2_560
"""Images of warm-up that do not count."""


class Bench:
    """Packed digits, and pairs of measurements on them."""

    def __init__(self, root: Path, rounds: int, seconds: float, threads: int) -> None:
        self.root, self.rounds, self.seconds, self.threads = root, rounds, seconds, threads
        self.data = root / "digits"

    def recipe(self, source: Path, changes: dict[str, Any], *, images: int, workers: int = 1) -> Any:
        from sfumato import recipe as recipes

        path = self.root / f"{source.stem}-{images}-{workers}.yaml"
        content = {
            "base": str(source),
            "storage": str(self.root / "runs"),
            **changes,
            "train": {
                "images": images,
                "micro_batch": None,
                "preview_samples": 0,
                "checkpoint": {"every": images},  # their cost is a part of its own
            },
            "parallel": {"workers": workers, "threads_per_worker": self.threads},
        }
        path.write_text(yaml.safe_dump(content))
        return path, recipes.load(path, [])

    def pair(
        self,
        name: str,
        theirs: Callable[[Any, Path], float],
        source: Path,
        changes: dict[str, Any],
        workers: int = 1,
    ) -> dict[str, Any]:
        """Both sides in turn; ours over as many images as the other side does in the time."""
        pairs = []
        for _ in range(self.rounds):
            path, recipe = self.recipe(source, changes, images=1_000_000, workers=workers)
            rate = theirs(recipe, path)
            every = recipe.train.log_every
            counted = max(4 * every, round(rate * self.seconds / every) * every)
            images = SKIP + round(rate * train_loops.SETTLE_S) + counted + every
            _, recipe = self.recipe(source, changes, images=images, workers=workers)
            pairs.append((rate, train_loops.ours(recipe, self.root, SKIP)))
            print(f"{name:>24} {pairs[-1][0]:>12.1f} {pairs[-1][1]:>12.1f}", flush=True)
        return {
            "what": name,
            "theirs": statistics.median(theirs for theirs, _ in pairs),
            "ours": statistics.median(ours for _, ours in pairs),
            "time_ratio": round(statistics.median(theirs / ours for theirs, ours in pairs), 4),
            "time_ratios": [round(theirs / ours, 4) for theirs, ours in pairs],
        }


def families(bench: Bench, chosen: Sequence[str]) -> list[dict[str, Any]]:
    changes = {"data": {"path": str(bench.data)}}

    def plain(recipe: Any, path: Path) -> float:
        return train_loops.Plain(recipe, bench.data).run(SKIP, bench.seconds)

    def written_out(recipe: Any, path: Path) -> float:
        return train_loops.written_out(recipe, bench.data, SKIP, bench.seconds)

    rows = [
        bench.pair(f"{family}: {name}", plain, train_loops.PIPELINES / f"{name}.yaml", changes)
        for family, name in train_loops.FAMILIES.items()
        if family in chosen
    ]
    if "diffusion" not in chosen:
        return rows
    source = train_loops.PIPELINES / "ddpm.yaml"
    return [*rows, bench.pair("ddpm written out", written_out, source, changes)]


def ddp(bench: Bench) -> list[dict[str, Any]]:
    def torchrun(recipe: Any, path: Path) -> float:
        return train_loops.under_torchrun(path, bench.data, SKIP, bench.seconds, ranks=2)

    changes = {"data": {"path": str(bench.data)}}
    source = train_loops.PIPELINES / "ddpm.yaml"
    return [bench.pair("ddpm, torchrun x 2", torchrun, source, changes, workers=2)]


def example(bench: Bench, script: Path | None, python: str) -> list[dict[str, Any]]:
    if reason := train_example.missing(script, python):
        return [{"what": "diffusers' example", "skipped": reason}]
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.packing.pack import pack
    from sfumato.data.packing.sources.folder import FolderSource

    images, data = bench.root / "png", bench.root / "colour"
    train_example.write_images(images)
    pack(FolderSource(path=str(images)), data)
    source = bench.root / "example.yaml"
    source.write_text(yaml.safe_dump(train_example.RECIPE))
    spec, unet = Manifest.load(data).spec, bench.root / "unet"

    def theirs(recipe: Any, path: Path) -> float:
        recipe.model.network.build(spec, conditional=False).save_config(unet)
        with tempfile.TemporaryDirectory(dir=bench.root) as scratch:
            command = [python, str(script)]
            return train_example.example(
                command, images, spec.height, unet, Path(scratch), threads=bench.threads
            )

    return [bench.pair("diffusers' example", theirs, source, {"data": {"path": str(data)}})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("families", "ddp", "example", "checkpoint", "recovery")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument(
        "--families", nargs="+", choices=list(train_loops.FAMILIES), default=list(train_loops.FAMILIES)
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15, help="how long a loop is measured")
    parser.add_argument("--threads", type=int, default=1, help="of each training process")
    parser.add_argument("--example", type=Path, help="diffusers' train_unconditional.py")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the example")
    options = parser.parse_args()
    from sfumato.data.packing.pack import pack

    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="sfumato-bench-") as folder:
        bench = Bench(Path(folder), options.rounds, options.seconds, options.threads)
        pack("digits", bench.data)
        print(f"{'images/s':>24} {'theirs':>12} {'ours':>12}")
        if "families" in options.parts:
            rows += families(bench, options.families)
        if "ddp" in options.parts:
            rows += ddp(bench)
        if "example" in options.parts:
            rows += example(bench, options.example, options.python)
    found: dict[str, Any] = {"benchmark": "train", "pairs": rows, "threads": options.threads}
    if "checkpoint" in options.parts:
        found["checkpoint"] = train_faults.rounded(train_faults.checkpoint(options.threads))
    if "recovery" in options.parts:
        found["recovery"] = train_faults.rounded(train_faults.recovery())
    print()
    for row in rows:
        if "skipped" in row:
            print(f"{row['what']:>24} skipped: {row['skipped']}")
        else:
            print(f"{row['what']:>24} ours / theirs in time {row['time_ratio']:.3f}")
    for name in ("checkpoint", "recovery"):
        if name in found:
            print(f"{name:>24} " + ", ".join(f"{key} {value:,.2f}" for key, value in found[name].items()))
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
