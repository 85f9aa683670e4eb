"""What a rank holds of a frozen network and of an adapter's base, as `make bench-memory` counts it."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from repository import ROOT

SCRIPT = ROOT / "tests/benchmarks/memory/bench_memory.py"
WIDTH = 64
NUMBERS = 48 * (WIDTH * WIDTH + WIDTH)


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, int]]:
    spec = importlib.util.spec_from_file_location("bench_memory", SCRIPT)
    assert spec is not None and spec.loader is not None
    bench: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("BENCH_WIDTH", str(WIDTH))
        return {row["strategy"]: row for row in bench.launch(2, ["ddp", "fsdp"])}


def test_a_sharded_frozen_network_is_held_by_half(rows: dict[str, dict[str, int]]) -> None:
    assert rows["ddp"]["frozen"] == 2 * NUMBERS
    assert rows["fsdp"]["frozen"] == NUMBERS


def test_the_average_of_an_adapter_shares_its_base(rows: dict[str, dict[str, int]]) -> None:
    layer = WIDTH * WIDTH + WIDTH
    assert rows["ddp"]["adapter"] == 4 * (NUMBERS + layer)
    assert rows["fsdp"]["adapter"] == 2 * (NUMBERS + layer)
