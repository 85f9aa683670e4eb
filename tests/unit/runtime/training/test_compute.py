"""What training used: the ledger against clocks and counters that the test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.parallel.config import ParallelSettings
from sfumato.runtime.runs.run_folder import RunFolder
from sfumato.runtime.training import compute
from sfumato.training.ranks import Ranks

LIMIT = 262_143_328_850


def _rapl(folder: Path, **microjoules: int) -> None:
    """The files that Linux shows for zones with these names and counters."""
    for number, (name, value) in enumerate(microjoules.items()):
        zone = folder / f"intel-rapl:{number}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "name").write_text(f"{name.replace('_', '-')}\n")
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text(f"{LIMIT}\n")


def test_energy_of_the_packages_is_what_their_counters_gained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "powercap"
    monkeypatch.setattr(compute, "RAPL", place)
    _rapl(place, package_0=100_000_000, core=7, dram=50_000_000, package_1=LIMIT - 999_999)
    folder = RunFolder(tmp_path / "run")
    ledger = compute.Ledger(folder, "1-a", Ranks(), ParallelSettings(cpus_per_worker=2), gpu=False)
    # Parts of a package are in it already; the last counter passes its limit, and starts again at 0.
    _rapl(place, package_0=130_000_000, core=900_000_000, dram=52_000_000, package_1=2_000_000)
    ledger.note(640, last=True)
    (record,) = compute.records_of(folder)
    assert record["attempt"] == "1-a" and record["images"] == 640
    assert record["package_joules"] == pytest.approx(30 + 2 + 3)
    totals = compute.totals([record])
    assert totals["package_joules"] == pytest.approx(35.0) and totals["gpu_joules"] is None
    assert totals["core_seconds"] == pytest.approx(2 * record["seconds"])


def test_energy_without_counters_is_unknown_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "RAPL", tmp_path / "none")
    folder = RunFolder(tmp_path / "run")
    ledger = compute.Ledger(folder, "1-a", Ranks(), ParallelSettings(), gpu=False)
    ledger.note(64)
    ledger.note(128)  # within ten seconds: the file stays as it is
    totals = compute.totals(compute.records_of(folder))
    assert totals["package_joules"] is None
    assert any("RAPL" in why for why in totals["energy_unknown"])
    assert compute.records_of(folder)[0]["images"] == 64


def test_attempts_add_up_and_a_machine_counts_its_packages_once() -> None:
    record = {
        "host": "a", "cpus": 2.0, "gpus": 1.0, "device": "X", "seconds": 5.0, "cpu_seconds": 4.0,
        "gpu_joules": 100.0, "unread": {},
    }  # fmt: skip
    records = [
        {**record, "attempt": attempt, "rank": rank, "package_joules": joules}
        for attempt, rank, joules in (("1", 0, 30.0), ("1", 1, 31.0), ("2", 0, 7.0))
    ]
    totals = compute.totals(records)
    assert totals["attempts"] == 2 and totals["wall_seconds"] == 10.0
    assert totals["core_seconds"] == 30.0 and totals["gpu_seconds"] == 15.0
    assert totals["gpu_joules"] == 300.0 and totals["package_joules"] == 38.0
