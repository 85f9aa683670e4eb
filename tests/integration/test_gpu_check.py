"""The check of a GPU, at small sizes on the CPU, where neither Ray nor MLflow can be imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from repository import ROOT

HIDDEN = """
import runpy, sys
sys.modules.update(dict.fromkeys(("ray", "mlflow")))
sys.argv = ["gpu_check.py", "--tiny", "--device", "cpu"]
sys.path.insert(0, "tests/benchmarks/gpu")
runpy.run_path("tests/benchmarks/gpu/gpu_check.py", run_name="__main__")
"""


def test_every_part_runs_without_ray_and_mlflow() -> None:
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT / "tests/support")])
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HIDDEN],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    results = json.loads(found.stdout.splitlines()[-1])["results"]
    passed = [(result["part"], result["passed"]) for result in results]
    assert {part for part, _ in passed} == {"members", "training", "speed", "upload", "features"}
    assert {part for part, yes in passed if yes} == {"members", "training", "upload", "features"}
    speeds = [r["figures"] for r in results if r["part"] == "speed" and "ms" in r["figures"]]
    assert speeds
    assert all(figures["images_per_s"] > 0 and figures["over_bare"] > 0 for figures in speeds)
