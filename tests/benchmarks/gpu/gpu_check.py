"""Does everything that trains and samples work on this GPU, how fast, and what is in the way?

    make gpu-check
    make gpu-check ARGS="--parts members speed --minutes 4 --json out.json"

A line for each thing checked, as soon as it is known; then one line of JSON with everything and the machine.
The exit status is 1 if a check failed. It needs PyTorch and the packages that networks are made of
(diffusers, transformers, safetensors, pydantic), and neither Ray nor MLflow. Parts run in the order below,
the most useful first, and what the time does not allow is reported as left out.

- members: every member's loss, gradient and samples on the GPU against the CPU, in float32 and bf16
- training: a run continued from its middle, under single, ddp and fsdp, against one without a break; averages
- speed: images a second, share of the GPU's arithmetic and memory of five networks of published size, against
  a bare loop of the same network; eager, compiled, recomputing; which attention runs
- upload: 8-bit images to the device while a step runs, and the stall of copying weights back
- features: images a second through the feature network of evaluation

Without a GPU it runs on the CPU, for which `--tiny` chooses small sizes: so does the test suite.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import check_features_rate
import check_members
import check_speed
import check_training
import check_upload
import torch


@dataclass(frozen=True, slots=True)
class Result:
    """One line."""

    part: str
    what: str
    passed: bool | None
    """None for a figure that nothing is expected of."""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Check:
    """Where and how large, and until when."""

    device: torch.device
    tiny: bool
    until: float

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.until

    def synchronise(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def line(result: Result) -> str:
    """For people."""
    word = {True: "ok", False: "FAILED", None: ""}[result.passed]
    figures = "  ".join(f"{name} {value}" for name, value in result.figures.items())
    return f"{result.part:9} {result.what:44} {word:6} {figures}"


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {
        "host": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "gpu": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return found


def guarded(name: str, part: Callable[[Any], Iterator[Any]], check: Check) -> Iterator[Result]:
    """The results of a part; an error is one more, and the next part runs."""
    try:
        for what, passed, figures in part(check):
            yield Result(name, what, passed, figures)
            if check.late:
                yield Result(name, "the rest: left out, the time is over", None)
                return
    except Exception as error:  # noqa: BLE001 - a check reports what breaks and continues
        yield Result(name, f"{type(error).__name__}: {str(error).splitlines()[0][:160]}", False)


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; 0 if nothing failed."""
    parts = {
        "members": check_members.run,
        "training": check_training.run,
        "speed": check_speed.run,
        "upload": check_upload.run,
        "features": check_features_rate.run,
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--minutes", type=float, default=8.0, help="end after so many minutes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")
    parser.add_argument("--json", type=Path, help="write the last line to this file, too")
    chosen = parser.parse_args(arguments)
    device = torch.device(chosen.device)
    if device.type == "cpu" and not chosen.tiny:
        print("gpu-check: no GPU is visible to PyTorch; on a CPU use --tiny", file=sys.stderr)
        return 2
    check = Check(device, chosen.tiny, time.monotonic() + 60 * chosen.minutes)
    results: list[Result] = []
    for name in chosen.parts:
        if check.late:
            results.append(Result(name, "left out: the time is over", None))
            print(line(results[-1]), flush=True)
            continue
        for result in guarded(name, parts[name], check):
            results.append(result)
            print(line(result), flush=True)
    content = {"machine": machine(device), "tiny": chosen.tiny, "results": [asdict(r) for r in results]}
    text = json.dumps(content)
    if chosen.json is not None:
        chosen.json.write_text(text + "\n")
    print(text)
    return int(any(result.passed is False for result in results))


if __name__ == "__main__":
    sys.exit(main())
