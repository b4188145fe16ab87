"""A process that reads features from Feast, in an environment of its own."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from benchmarks.environments import FEAST, python_with
from cluster.errors import TowerlineError
from data.online.stores.redis_connection import RedisConnection

READER = Path(__file__).with_name("feast_reader.py")
CONFIGURATION = {
    "project": "bench",
    "registry": "registry.db",
    "provider": "local",
    "entity_key_serialization_version": 3,
}


class FeastReader:
    """A process that reads from Feast."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log
        self.answer()

    def read(self, entities: int, reads: int) -> list[float]:
        """Seconds of each of some reads of random entities."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"entities": entities, "reads": reads}) + "\n")
        self._process.stdin.flush()
        seconds: list[float] = self.answer()
        return seconds

    def answer(self) -> Any:
        """What it says next, other than what Feast prints."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                return json.loads(line.removeprefix("ANSWER "))
        raise TowerlineError(
            f"the process that reads from Feast ended; see {self._log}:\n{self._log.read_text()[-2000:]}"
        )


@contextmanager
def feast_reader(
    folder: Path, rows: pl.DataFrame, entity_column: str, redis_address: str = ""
) -> Iterator[FeastReader]:
    """Feast with the same rows, in SQLite or in the Redis at an address. `rows` have `event_timestamp`."""
    folder.mkdir(parents=True)
    online = {"type": "redis", "connection_string": _connection(redis_address)} if redis_address else _sqlite()
    (folder / "feature_store.yaml").write_text(json.dumps({**CONFIGURATION, "online_store": online}))
    rows.write_parquet(folder / "features.parquet")
    command = [str(python_with(*FEAST)), str(READER), str(folder), str(folder / "features.parquet"), entity_column]
    log = folder / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        try:
            yield FeastReader(process, log)
        finally:
            process.kill()


def _sqlite() -> dict[str, str]:
    return {"type": "sqlite", "path": "online_store.db"}


def _connection(address: str) -> str:
    """Feast's way to write the address of a Redis."""
    options = RedisConnection(address).client.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']},db={options['db']}"
