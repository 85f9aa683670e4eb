"""Read tasks run in processes of their own, which start several seconds sooner without torch."""

from __future__ import annotations

import subprocess
import sys


def test_reading_needs_no_torch() -> None:
    program = "import sys, sfumato.data.reading.ray_reader; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
