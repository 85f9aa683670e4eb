"""CPU seconds of each test, with those of all processes that it starts: `make test ARGS="--cpu-seconds 30"`.

Unlike durations, they say the same on a busy machine. What a test starts and leaves running, as a cluster of
Ray, is counted in the tests during which it works.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Generator
from typing import Any

import psutil
import pytest


def used() -> float:
    """CPU seconds so far of this process and of all that descend from it, those that have ended included.

    What a process leaves to init when it ends is not found any more.
    """
    total, here = 0.0, psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with contextlib.suppress(psutil.Error):  # it may end meanwhile: then its parent has its seconds
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


class CpuSeconds:
    """A plugin that measures every test and lists the dearest, by file and by test, at the end."""

    def __init__(self, shown: int) -> None:
        self._shown, self._before = shown, used()
        self._of_test: Counter[str] = Counter()

    def pytest_collection_finish(self) -> None:
        """What importing the tests has taken is nobody's."""
        self._before = used()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, Any, Any]:
        """A test's last report has the seconds since the test before; it goes to the process that counts.

        Looked up once a test: that takes milliseconds, and there are thousands of tests.
        """
        report = yield
        if report.when == "teardown":
            now = used()
            report.cpu_seconds, self._before = now - self._before, now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._of_test[report.nodeid] += getattr(report, "cpu_seconds", 0.0)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        of_file: Counter[str] = Counter()
        for test, seconds in self._of_test.items():
            of_file[test.partition("::")[0]] += seconds
        for what, found in (("files", of_file), ("tests", self._of_test)):
            total = sum(self._of_test.values())
            terminalreporter.section(f"CPU seconds: {total:,.0f} of all tests; the dearest {what}")
            for name, seconds in found.most_common(self._shown):
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
