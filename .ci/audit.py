"""`make audit`: the locked dependencies against the package index's list of known vulnerabilities.

Exit status 0: none is known; 1: there are some; 2: the list could not be read, for all packages or for a few,
so that nothing can be said of those. pip-audit by itself calls packages that it could not look up no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCKED = Path(__file__).parents[1] / "constraints.txt"


def main() -> int:
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(LOCKED), "--disable-pip", "--no-deps"),
        *("--format", "json", "--progress-spinner", "off"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        print(f"audit: nothing was audited, since pip-audit failed: {said[-1]}", file=sys.stderr)
        return 2
    audited = [package for package in found if "skip_reason" not in package]
    for package in audited:
        for problem in package["vulns"]:
            mended = ", ".join(problem.get("fix_versions") or ["none yet"])
            print(f"{package['name']} {package['version']}: {problem['id']}, mended in {mended}")
    vulnerable = sum(bool(package["vulns"]) for package in audited)
    print(f"audit: {len(audited)} of {len(found)} packages audited, {vulnerable} with known vulnerabilities")
    if len(audited) < len(found):
        reason = next(package["skip_reason"] for package in found if "skip_reason" in package)
        print(
            f"audit: the index's list of vulnerabilities could not be read for {len(found) - len(audited)} "
            f"packages, of which nothing can be said ({reason})",
            file=sys.stderr,
        )
        return 1 if vulnerable else 2
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
