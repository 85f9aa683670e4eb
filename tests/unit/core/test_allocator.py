"""Memory that was freed is used again without page faults."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from sfumato.core.allocator import keep_freed_memory
how, mib = sys.argv[1], int(sys.argv[2])
print(keep_freed_memory(of_any_size=how == "of any size") if how != "as it is" else False)
def step():
    return [np.ones(mib << 17) for _ in range(4)]
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10)
"""


def faults_a_step(how: str, mib: int = 20, **environment: str) -> tuple[str, float]:
    """Whether memory is kept, and the page faults of a step that allocates four blocks of this size."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how, str(mib)],
        env={**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    said, faults = done.stdout.split()
    return said, float(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept() -> None:
    _, before = faults_a_step("as it is")
    said, kept = faults_a_step("kept")
    assert said == "True"
    assert before > 1_000 > 100 > kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_blocks_that_glibc_maps_are_kept_where_memory_of_any_size_is() -> None:
    _, before = faults_a_step("kept", 50)
    said, kept = faults_a_step("of any size", 50)
    assert said == "True"
    assert before > 1_000 > 100 > kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_environment_decides() -> None:
    said, _ = faults_a_step("kept", MALLOC_TRIM_THRESHOLD_="131072")
    assert said == "False"
