"""Do 95 % intervals cover 95 %, and do tests at 5 % reject 5 % of equal models? By simulation.

    make check-intervals                                   half an hour to an hour on two cores
    make check-intervals ARGS="--repetitions 100"          quicker and rougher
    make check-intervals ARGS="--only recall --seconds 300 --processes 1"

Every trial is written to the record (`--record`) as it ends: an interrupted or timed call continues there. A
figure's own error is the binomial one. What is drawn, and from what: `tests/support/interval_trials.py`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")

import torch
from interval_trials import (
    METRICS,
    Case,
    Share,
    coverage,
    difference_cases,
    interval_cases,
    rejections,
    trial,
)

RECORD = Path(".check-intervals.jsonl")
TABLES = ("intervals", "tests")
BATCH = 10
SAY_EVERY_S = 15.0
Record = dict[str, dict[int, dict[str, float]]]


def main() -> int:
    arguments = _arguments()
    torch.set_num_threads(1)
    every = {"intervals": interval_cases(), "tests": difference_cases()}
    cases = [
        case
        for table in arguments.tables
        for case in every[table]
        if not arguments.only or case.metric in arguments.only
    ]
    record = _read(arguments.record)
    todo = [
        (case, number)
        for first in range(0, arguments.repetitions, BATCH)
        for case in cases
        for number in range(first, min(first + BATCH, arguments.repetitions))
        if number not in record[case.name]
    ]
    _run(todo, record, arguments)
    _print(cases, record)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=1000, help="of every row (default 1000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=METRICS, help="these metrics")
    parser.add_argument("--tables", nargs="*", choices=TABLES, default=TABLES, help="default: both")
    parser.add_argument("--record", type=Path, default=RECORD)
    return parser.parse_args()


def _run(todo: list[tuple[Case, int]], record: Record, arguments: argparse.Namespace) -> None:
    start, done, told = time.monotonic(), 0, 0.0
    with arguments.record.open("a") as file:
        for case, number, found in _results(todo, arguments.processes):
            record[case.name][number] = found
            file.write(json.dumps({"case": case.name, "number": number, "found": found}) + "\n")
            file.flush()
            done += 1
            spent = time.monotonic() - start
            left = spent / done * (len(todo) - done)
            if spent > told + SAY_EVERY_S:
                print(f"{done:,} of {len(todo):,} trials, {left:.0f} s left", file=sys.stderr)
                told = spent
            if spent > arguments.seconds:
                break


def _results(todo: list[tuple[Case, int]], processes: int) -> Iterator[tuple[Case, int, dict[str, float]]]:
    if processes == 1:
        yield from map(_one, todo)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        yield from pool.imap(_one, todo, chunksize=2)


def _one(task: tuple[Case, int]) -> tuple[Case, int, dict[str, float]]:
    return *task, trial(*task)


def _read(path: Path) -> Record:
    """What earlier calls found; a line that was cut off is left out."""
    record: Record = defaultdict(dict)
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        record[entry["case"]][entry["number"]] = entry["found"]
    return record


def _print(cases: list[Case], record: Record) -> None:
    print("| figure | covered | like the data | independent | false positives | paired | power | trials |")
    print("|---|---|---|---|---|---|---|---|")
    for metric in dict.fromkeys(case.metric for case in cases):
        row = [
            Case("interval", metric, "apart"),
            Case("interval", metric, "alike"),
            Case("interval", metric, "apart", of_classes=False),
            *(case for case in difference_cases() if case.metric == metric),
        ]
        trials = sorted({len(record[case.name]) for case in row if record[case.name]})
        number = " to ".join(map(str, dict.fromkeys((trials[0], trials[-1])))) if trials else "0"
        print(f"| `{metric}` | {' | '.join(_cell(record, case) for case in row)} | {number} |")


def _cell(record: Record, case: Case) -> str:
    found = list(record.get(case.name, {}).values())
    share: Share = coverage(found) if case.kind == "interval" else rejections(found)
    return f"{100 * share.share:.1f} ± {100 * share.error:.1f}" if share.trials else "–"


if __name__ == "__main__":
    sys.exit(main())
