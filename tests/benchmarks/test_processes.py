"""A side of a benchmark is measured with all its processes, and ended before it takes the machine down."""

import pytest

from benchmarks import processes
from benchmarks.processes import run_side
from cluster.errors import TowerlineError

TAKES_60_MB = """
import json, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; held = bytearray(b'x') * 40_000_000; time.sleep(3)"])
held = bytearray(b"x") * 20_000_000
time.sleep(3)
child.wait()
print(json.dumps({"wall_s": 3.0}))
"""


def test_memory_of_all_processes_counts() -> None:
    side = run_side(["-c", TAKES_60_MB])
    assert side is not None
    assert side.wall_s == 3.0
    assert 60 < side.peak_mb < 200


def test_a_side_that_takes_too_much_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MEMORY_SHARE", 1e-4)
    assert run_side(["-c", "import time; held = bytearray(b'x') * 90_000_000; time.sleep(60)"]) is None


def test_a_side_that_fails_says_why() -> None:
    with pytest.raises(TowerlineError, match=r"(?s)-c .* failed:.*out of luck"):
        run_side(["-c", "raise SystemExit('out of luck')"])
