"""What training uses: every rank keeps a record of its time and, where there are counters, its energy.

A record is a file `compute/ATTEMPT-RANK.json` in the run's folder, rewritten as training continues, so that
an attempt that was killed counts up to its last report. The model card adds the records up.

Energy of the rank's GPU is NVML's counter, read by NVIDIA's library nvidia-ml-py. That of the machine's CPU
packages and memory is RAPL's, which Linux shows as files (libraries for them bring drivers of every vendor).
It counts whole packages, with whatever else runs on them, and most systems let only root read it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sfumato.parallel.config import ParallelSettings
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.training.ranks import Ranks

FOLDER = "compute"
RAPL = Path("/sys/class/powercap")
"""Where Linux shows the counters of CPU packages."""
_NO_RAPL = "the machine shows no counter of its CPU packages (RAPL)"
_EVERY_S = 10.0
Counter = Callable[[], float]
"""Joules since some time in the past."""


class Ledger:
    """The record of one rank in one attempt at training."""

    def __init__(
        self, folder: RunFolder, attempt: str, ranks: Ranks, parallel: ParallelSettings, *, gpu: bool
    ) -> None:
        self._folder, self._name = folder, f"{FOLDER}/{attempt}-{ranks.rank}.json"
        self._fixed = {
            "rank": ranks.rank,
            "workers": ranks.world_size,
            "host": socket.gethostname(),
            "cpus": parallel.cpus_per_worker,
            "gpus": parallel.gpus_per_worker,
            "device": torch.cuda.get_device_name() if gpu else "cpu",
        }
        self._gpu, self._packages = _gpu_counter() if gpu else Unread("no GPU"), _package_counter()
        self._before = {"gpu": _read(self._gpu), "packages": _read(self._packages)}
        self._began, self._cpu, self._written = time.perf_counter(), time.process_time(), float("-inf")

    def note(self, images: int, *, last: bool = False) -> None:
        """Bring the record up to date, at most every ten seconds; `images` is how far training is."""
        now = time.perf_counter()
        if not last and now - self._written < _EVERY_S:
            return
        self._written = now
        self._folder.write_json(
            self._name,
            {
                **self._fixed,
                "images": images,
                "seconds": now - self._began,
                "cpu_seconds": time.process_time() - self._cpu,
                "gpu_joules": _spent(self._before["gpu"], _read(self._gpu)),
                "package_joules": _spent(self._before["packages"], _read(self._packages)),
                "unread": {
                    name: counter.why
                    for name, counter in (("gpu", self._gpu), ("packages", self._packages))
                    if isinstance(counter, Unread)
                },
            },
        )


@dataclass(frozen=True, slots=True)
class Unread:
    """A counter that cannot be read, and why."""

    why: str


def totals(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The sum of records: seconds of cores and GPUs, joules where they were counted, and why not elsewhere.

    `core_seconds` and `gpu_seconds` are what was reserved, `cpu_seconds` what the workers' processes used.
    Ranks on one machine read the same packages, whose energy counts once for each attempt.
    """
    packages: dict[tuple[Any, Any], float] = {}
    for record in records:
        if (joules := record["package_joules"]) is not None:
            place = (record["attempt"], record["host"])
            packages[place] = max(packages.get(place, 0.0), joules)
    gpus = [record["gpu_joules"] for record in records if record["gpu_joules"] is not None]
    return {
        "attempts": len({record["attempt"] for record in records}),
        "wall_seconds": sum(record["seconds"] for record in records if record["rank"] == 0),
        "core_seconds": sum(record["seconds"] * record["cpus"] for record in records),
        "cpu_seconds": sum(record["cpu_seconds"] for record in records),
        "gpu_seconds": sum(record["seconds"] * record["gpus"] for record in records),
        "devices": sorted({record["device"] for record in records}),
        "gpu_joules": sum(gpus) if gpus else None,
        "package_joules": sum(packages.values()) if packages else None,
        "energy_unknown": sorted({why for record in records for why in record["unread"].values()}),
    }


def records_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The records that a run has left, each with its `attempt`."""
    found = []
    for file in sorted((folder.path / FOLDER).glob("*.json")):
        record = folder.read_json(f"{FOLDER}/{file.name}")
        found.append({**record, "attempt": file.stem.rpartition("-")[0]})
    return found


def _gpu_counter() -> Counter | Unread:
    try:
        import pynvml
    except ImportError:
        return Unread("the library that reads GPUs is not installed (pip install 'sfumato[energy]')")
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(torch.cuda.current_device()).uuid
        device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except (pynvml.NVMLError, AttributeError) as error:
        return Unread(f"the GPU's counter cannot be read: {error}")
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1000


def _package_counter() -> Counter | Unread:
    try:
        zones = [_Zone(folder) for folder in sorted(RAPL.glob("intel-rapl:*")) if _counts(folder)]
    except OSError as error:
        return Unread(f"the CPU's counter (RAPL) cannot be read: {error.strerror}")
    if not zones:
        return Unread(_NO_RAPL)
    return lambda: sum(zone.joules() for zone in zones)


def _counts(folder: Path) -> bool:
    """Whether a zone is a package or the memory beside it: cores and the like are parts of their package."""
    return (folder / "name").read_text().strip().startswith(("package", "dram"))


class _Zone:
    """A counter of microjoules that starts again at its limit: a reading adds what came since the last."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._limit = int((folder / "max_energy_range_uj").read_text())
        self._last, self._total = self._now(), 0

    def joules(self) -> float:
        """Since this object was made. Must be read before the counter passes its limit twice (minutes)."""
        now = self._now()
        self._total += (now - self._last) % (self._limit + 1)
        self._last = now
        return self._total / 1e6

    def _now(self) -> int:
        return int(self._file.read_text())


def _read(counter: Counter | Unread) -> float | None:
    return None if isinstance(counter, Unread) else counter()


def _spent(before: float | None, now: float | None) -> float | None:
    return None if before is None or now is None else now - before
