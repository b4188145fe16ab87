"""What a job or benchmark leaves behind: one JSON file of a fixed shape, so that a program can compare two runs."""

import json
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat

from cluster.files import write_atomically
from cluster.provenance import git_commit, machine, versions


class Report(BaseModel):
    """The last run of `name` lies in `$TOWERLINE_HOME/reports/<name>.json`, every run beside it by time."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    started: datetime
    seconds: float
    """Wall time of the run."""
    config: dict[str, Any]
    """Resolved configuration."""
    protocol: str
    """How the figures were measured."""
    data_version: str
    versions: dict[str, str]
    git_commit: str
    machine: dict[str, str | int | float]
    figures: dict[str, FiniteFloat]
    """Flat, `<metric>/<subject>` to number; the names are stable. JSON has no NaN and no infinity."""

    def write(self, home: Path) -> Path:
        """Write both files; returns the one that is always the last run."""
        folder = home / "reports"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"
        for path in (folder / f"{self.name}-{self.started:%Y%m%dT%H%M%S}.json", folder / f"{self.name}.json"):
            write_atomically(path, text)
        return folder / f"{self.name}.json"


class ReportClock:
    """Notes when a run began and fills in what every report has in common."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started = datetime.now(UTC)
        self._start = time.monotonic()

    def finish(
        self, *, config: Mapping[str, Any], protocol: str, data_version: str, figures: Mapping[str, float]
    ) -> Report:
        """The report of the run that ends now."""
        return Report(
            name=self._name,
            started=self._started,
            seconds=round(time.monotonic() - self._start, 3),
            config=dict(config),
            protocol=protocol,
            data_version=data_version,
            versions=versions(),
            git_commit=git_commit(),
            machine=machine(),
            figures=dict(figures),
        )
