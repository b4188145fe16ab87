"""A real Prometheus and a real load, both Debian's, for the tests."""

import itertools
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx

from tests.data.servers import Server


class Prometheus(Server):
    """Scrapes what its configuration finds."""

    def __init__(self, config: Path) -> None:
        super().__init__()
        self._config = config

    @property
    def command(self) -> list[str]:
        return [
            "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/-/ready").is_success
        except httpx.TransportError:
            return False

    def ask(self, query: str) -> list[float]:
        """The values of an instant query, one per series."""
        return [float(each["value"][1]) for each in self._series(query)]

    def labels(self, query: str, label: str) -> list[str]:
        """What the series of an instant query have for a label, each once."""
        return sorted({each["metric"][label] for each in self._series(query)})

    def _series(self, query: str) -> list[dict[str, Any]]:
        found = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": query})
        series: list[dict[str, Any]] = found.raise_for_status().json()["data"]["result"]
        return series


SCRIPT = """
local answered = 0
wrk.method = "POST"
wrk.body = '{"user_id": "user 1", "count": 3}'
wrk.headers["Content-Type"] = "application/json"
function response()
    answered = answered + 1
    if answered == %d then
        wrk.thread:stop()
        io.stdout:write("a thread is done\\n")
        io.stdout:flush()
    end
end
"""


def wrk(url: str, folder: Path, threads: int, requests_each: int) -> int:
    """Post requests for recommendations, each thread one after another; gives how many wrk says it sent.

    All of them must be answered with 200. wrk itself would go on until its time is over; it is told to end.
    """
    script = folder / "wrk.lua"
    script.write_text(SCRIPT % requests_each)
    command = ["wrk", f"-t{threads}", f"-c{threads}", "-d600s", "--timeout", "60s", "-s", str(script), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        done = list(itertools.islice((line for line in lines if "is done" in line), threads))
        process.send_signal(signal.SIGINT)
        said = process.stdout.read()
    assert len(done) == threads
    assert "Non-2xx" not in said, said
    assert "Socket errors" not in said, said
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    return int(found[1])
