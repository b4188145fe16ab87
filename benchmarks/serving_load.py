"""Load on an endpoint by `wrk`, and what came of it."""

import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import TowerlineError

SCRIPT = Path(__file__).with_name("wrk.lua")
PATH = "/v1/recommend"
COUNT = 10
"""Items that a request asks for."""
PATIENCE_S = 30
"""Seconds after which `wrk` counts a request as failed."""


@dataclass(frozen=True)
class Load:
    """What `wrk` saw."""

    requests: int
    """That were answered, whatever the status."""
    seconds: float
    p50_ms: float
    p99_ms: float
    failures: int
    """Answers of another status than 200, and requests without an answer."""

    @property
    def rps(self) -> float:
        """Good answers per second."""
        return max(0, self.requests - self.failures) / self.seconds


def write_bodies(users: Sequence[str], path: Path, seed: int = 0) -> Path:
    """One request for every user, in an order that is shuffled but always the same."""
    shuffled = sorted(users)
    random.Random(seed).shuffle(shuffled)
    path.write_text("".join(json.dumps({"user_id": user, "count": COUNT}) + "\n" for user in shuffled))
    return path


def wrk_binary() -> str:
    """Where `wrk` is. Raises TowerlineError if it is not installed."""
    binary = shutil.which("wrk")
    if binary is None:
        raise TowerlineError("wrk is not installed; `make install-servers` takes it from Debian")
    return binary


def load(url: str, bodies: Path, connections: int, seconds: int) -> Load:
    """Ask as fast as so many connections are answered, for so many seconds, from one thread."""
    command = [wrk_binary(), "--threads", "1", "--connections", str(connections), "--duration", f"{seconds}s"]
    command += ["--timeout", f"{PATIENCE_S}s", "--script", str(SCRIPT), f"{url}{PATH}", "--", str(bodies)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse(ended.stdout, f"{' '.join(command)} failed:\n{ended.stdout}{ended.stderr}")


def parse(output: str, failed: str) -> Load:
    """What `wrk` printed with our script. Raises TowerlineError(`failed`) if the summary is not there."""
    lines = [line for line in output.splitlines() if line.startswith("SUMMARY ")]
    if not lines:
        raise TowerlineError(failed)
    said = json.loads(lines[-1].removeprefix("SUMMARY "))
    return Load(
        requests=said["requests"],
        seconds=said["microseconds"] / 1e6,
        p50_ms=said["p50_us"] / 1e3,
        p99_ms=said["p99_us"] / 1e3,
        failures=said["refused"] + said["broken"],
    )
