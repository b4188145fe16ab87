"""The decision log: what is needed to rebuild every answer, written beside the request path and never in its way.

Each gateway replica has one writer thread and files of its own, `<folder>/date=YYYY-MM-DD/<replica>-….jsonl`, so that
replicas share nothing. A decision is in the hands of the operating system a few milliseconds after its answer and on
the disk (fsync) within `FSYNC_SECONDS`; a replica that is killed, or a machine that loses power, loses at most the
last second. When decisions come faster than the disk takes them the queue fills up and further ones are dropped,
counted and reported by `/healthz`: answering goes first.
"""

import logging
import os
import queue
import re
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FSYNC_SECONDS = 0.5
CAPACITY = 4096
SEGMENT_BYTES = 64 * 2**20
_DRAIN = 256

logger = logging.getLogger(__name__)


class Answered(BaseModel):
    """One item of the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: str
    score: float
    explanation: str | None = None


class StoreVersion(BaseModel):
    """What an online store holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_version: str
    """Of the data set that was published to it; events that were appended since come on top."""

    fingerprints: Mapping[str, str]
    """Feature view to the hash of its definition."""


class Decision(BaseModel):
    """One answer and what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    decision_id: str
    kind: Literal["recommend", "similar"]
    at: datetime
    """The moment as of which features were computed, UTC."""

    replica: str
    variant: str
    models: Mapping[str, str]
    new_items: str = ""
    """Digest of the items that could be recommended although they came after the training; empty if there were none."""

    request: Mapping[str, Any]
    store: StoreVersion | None = None
    """What the features were read from; None if another version was published meanwhile."""

    user_features: Mapping[str, Any] = {}
    """Feature name to value, as the models saw them; `known_until`: the newest ingest_time among the events behind
    them; `brought_items`: the request's recent items that counted as events of this moment."""

    everything: Mapping[str, Any] = {}
    """Features of all events together, and their `known_until`."""

    candidates: Mapping[str, list[Any]] = {}
    """Columns of equal length, one row per candidate: item_id, retrieval_score, ranking_score, item features and their
    `known_until`."""

    answer: tuple[Answered, ...]
    prompt_version: str | None = None
    """Version of the explanation prompt's template, where there are explanations."""

    language_model: str | None = None
    """Name and fingerprint of the language model that wrote them."""

    rerank_prompt_version: str | None = None
    """Version of the prompt that the language model re-ranked by, where it did: the answer is then not in the order of
    the ranking scores."""

    degraded: tuple[str, ...] = ()
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class DecisionLogState:
    """Counters of one writer since it was opened."""

    written: int
    dropped: int
    queued: int


class DecisionLog:
    """Writes decisions from one process; threads may share it."""

    def __init__(
        self, folder: Path, replica: str, capacity: int = CAPACITY, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        """`folder` is made when the first decision comes. `replica` names this writer's files."""
        self._folder = folder
        self._replica = re.sub(r"[^A-Za-z0-9_-]", "-", replica)[:64]
        self._segment_bytes = segment_bytes
        self._queue: queue.Queue[Decision | None] = queue.Queue(capacity)
        self._written = 0
        self._refused = 0
        self._lost = 0
        self._segment: _Segment | None = None
        self._thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._thread.start()

    def write(self, decision: Decision) -> bool:
        """Queue a decision without ever waiting; False (and counted) if the queue is full."""
        try:
            self._queue.put_nowait(decision)
        except queue.Full:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                logger.warning("decision log: the queue is full, %d decisions dropped so far", self._refused)
            return False
        return True

    def state(self) -> DecisionLogState:
        """What became of the decisions so far."""
        return DecisionLogState(self._written, self._refused + self._lost, self._queue.qsize())

    def close(self) -> None:
        """Write what is queued, sync and stop. Safe to call twice."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()

    def _run(self) -> None:
        synced = time.monotonic()
        dirty = closing = False
        while not closing:
            decisions, closing = self._take()
            if decisions:
                self._append(decisions)
                dirty = True
            if dirty and (closing or time.monotonic() - synced >= FSYNC_SECONDS):
                self._sync()
                synced, dirty = time.monotonic(), False
        if self._segment is not None:
            self._segment.close()

    def _take(self) -> tuple[list[Decision], bool]:
        """What is queued, after a wait of at most `FSYNC_SECONDS`, and whether this is the end."""
        decisions: list[Decision] = []
        try:
            entry = self._queue.get(timeout=FSYNC_SECONDS)
            while entry is not None:
                decisions.append(entry)
                if len(decisions) == _DRAIN:
                    return decisions, False
                entry = self._queue.get_nowait()
        except queue.Empty:
            return decisions, False
        return decisions, True

    def _append(self, decisions: list[Decision]) -> None:
        try:
            lines = b"".join(decision.model_dump_json().encode() + b"\n" for decision in decisions)
            self._open_segment().append(lines)
        except (OSError, ValueError) as error:
            self._fail(error, len(decisions))
        else:
            self._written += len(decisions)

    def _open_segment(self) -> "_Segment":
        today = datetime.now(UTC).date()
        if self._segment is not None and (self._segment.day != today or self._segment.size >= self._segment_bytes):
            self._segment.close()
            self._segment = None
        if self._segment is None:
            self._segment = _Segment(self._folder, self._replica, today)
        return self._segment

    def _sync(self) -> None:
        try:
            if self._segment is not None:
                os.fsync(self._segment.file)
        except OSError as error:
            self._fail(error, 0)

    def _fail(self, error: Exception, lost: int) -> None:
        """Give these decisions up and begin a new file: the old one may end in half a line."""
        self._lost += lost
        logger.error("decision log: %s; %d decisions lost so far", error, self._lost)
        if self._segment is not None:
            self._segment.close()
            self._segment = None


class _Segment:
    """One file that is being appended to."""

    def __init__(self, folder: Path, replica: str, day: date) -> None:
        self.day = day
        self.size = 0
        parent = folder / f"date={day:%Y-%m-%d}"
        parent.mkdir(parents=True, exist_ok=True)
        path = parent / f"{replica}-{datetime.now(UTC):%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
        self.file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o644)

    def append(self, lines: bytes) -> None:
        rest = memoryview(lines)
        while rest:
            rest = rest[os.write(self.file, rest) :]
        self.size += len(lines)

    def close(self) -> None:
        os.close(self.file)


def read_decisions(path: Path) -> Iterator[Decision]:
    """The decisions in a file or below a folder, file by file in the order they were made."""
    return map(Decision.model_validate_json, read_lines(path))


def read_lines(path: Path) -> Iterator[bytes]:
    """The same, each as the JSON that was written.

    A line that a kill cut short is skipped with a warning; everything before and in other files is read.
    """
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    for file in files:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    yield line
                else:
                    logger.warning("%s:%d: skipped a torn line of %d bytes", file, number, len(line))
