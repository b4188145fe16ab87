"""From a stream to a handler, such as the online store: parse, validate, quarantine, hand over, commit.

A message is committed once its event has been handed over or it lies in quarantine, never before: it is delivered
again after any crash, and the handler drops what it has by event id. A message that breaks the contract reads the same
every time, so it is quarantined at once. A message that makes the handler fail *on its own* is tried three times; where
the broker counts deliveries, as Redis does, also one that takes the whole process with it. Whatever is away, broker or
store, is waited for; a store that fails in itself, or a full disk, ends the job with nothing committed.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import polars as pl
import redis

from cluster.errors import TowerlineError
from data.expectations import Expectations
from data.online.stream_progress import DELAYS_KEPT, StreamProgress
from data.online.stream_quarantine import Refused, StreamQuarantine
from data.quality.rules import Context
from data.quality.validation import validate_events
from data.schema import EVENT_TIME, EVENTS, INGEST_TIME, SOURCE_ROW
from data.sources.messages import columns_of, rows_of
from data.sources.stream import SUSPECT_FROM, Message, StreamAwayError, StreamSource, Subscription

logger = logging.getLogger(__name__)

PROTOCOL = (
    "delay: from when a message was sent, by the broker's timestamp, to when its event had been stored; percentiles of "
    f"the last {DELAYS_KEPT:,} messages"
)

T = TypeVar("T")
Handler = Callable[[pl.DataFrame], int]
"""Stores events that are new by event_id, durably when it returns; how many were new. All of them or, if it raises,
none. It stamps `ingest_time` itself, which is null here."""

TRIES = 3
"""How often a message is handed over on its own before it is quarantined."""
REFUSALS_IN_A_ROW = 100
"""If the handler refuses so many messages and accepts none between, the fault is its own."""
FIRST_WAIT_SECONDS = 0.1
LONGEST_WAIT_SECONDS = 2.0
POLL_SECONDS = 0.5
PROGRESS_SECONDS = 10.0
CLOCK_SKEW = timedelta(minutes=1)
"""By so much a producer's clock may be fast: its event then happened when it arrived."""


def is_away(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that a server does not answer or has no time."""
    if error is None or isinstance(error, redis.AuthenticationError):
        return False
    if isinstance(error, StreamAwayError | ConnectionError | TimeoutError | redis.ConnectionError | redis.TimeoutError):
        return True
    if isinstance(error, sqlite3.OperationalError):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
    return is_away(error.__cause__)


def is_of_the_store(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is one of a database or a disk that no message is guilty of."""
    if error is None or isinstance(error, sqlite3.DataError | sqlite3.IntegrityError | redis.DataError):
        return False
    return isinstance(error, sqlite3.DatabaseError | redis.RedisError | OSError) or is_of_the_store(error.__cause__)


class StopError(Exception):
    """The stream is to be left while something was being waited for."""


@dataclass(frozen=True)
class Batching:
    """When a batch is complete: whatever comes first."""

    messages: int = 2_000
    milliseconds: float = 50.0
    """After its first message."""


@dataclass
class Follower:
    """Follows a stream until it is stopped."""

    source: StreamSource
    handler: Handler
    quarantine: StreamQuarantine
    expectations: Expectations = field(default_factory=Expectations)
    context: Context = field(default_factory=Context)
    batching: Batching = field(default_factory=Batching)
    stop: threading.Event = field(default_factory=threading.Event)
    """Once it is set, the batch in hand is finished and committed; what is away is not waited for."""
    progress: StreamProgress = field(default_factory=StreamProgress)
    _subscription: Subscription = field(init=False, repr=False)
    _refusals: int = 0
    _said: int = 0
    _say_next: float = field(default_factory=lambda: time.monotonic() + PROGRESS_SECONDS)

    def run(self, *, until_empty: bool = False) -> StreamProgress:
        """Handle messages until `stop` is set or, with `until_empty`, none is left; then leave the group.

        Raises StreamAwayError if the broker is away from the beginning, and TowerlineError for what only a person can
        put right (a full disk, say); nothing is lost by it.
        """
        self._subscription = self.source.subscribe()
        try:
            while not self.stop.is_set() and not (self._step() and until_empty):
                self._say_now_and_then()
        except StopError:
            logger.info("%s: what was not committed will be delivered again", self.source.name)
        finally:
            with suppress(StreamAwayError):
                self._subscription.close()
        return self.progress

    def _step(self) -> bool:
        """Handle and commit a batch; whether there was nothing and nothing is left."""
        messages = self._patiently(self.source.name, self._gather)
        if messages:
            self._handle(messages)
            self._patiently(self.source.name, lambda: self._subscription.commit(messages))
            return False
        return self._patiently(self.source.name, self._subscription.waiting) == 0

    def _say_now_and_then(self) -> None:
        if self.progress.messages > self._said and time.monotonic() > self._say_next:
            self._said, self._say_next = self.progress.messages, time.monotonic() + PROGRESS_SECONDS
            logger.info("%s: %s", self.source.name, self.progress.line())

    def _gather(self) -> list[Message]:
        """A batch. What may have killed its consumers does not drag others along."""
        messages = self._subscription.take(self.batching.messages, POLL_SECONDS)
        deadline = time.monotonic() + self.batching.milliseconds / 1e3
        while messages and messages[0].deliveries < SUSPECT_FROM and len(messages) < self.batching.messages:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                messages += self._subscription.take(self.batching.messages - len(messages), left)
            except StreamAwayError:
                break
        return messages

    def _handle(self, messages: list[Message]) -> None:
        """Hand over what is an event, and put the rest into quarantine."""
        given_up = [each for each in messages if each.tries_before >= TRIES]
        refused = [Refused(each, "its consumer died whenever it was tried", TRIES) for each in given_up]
        events, broken = self._read([each for each in messages if each.tries_before < TRIES])
        refused += broken
        for failed, error in self._hand_over(events):
            refused += self._try_again(failed, error)
        if refused:
            self.progress.quarantined += self.quarantine.add(refused)
            where, rule = refused[0].message.position, refused[0].rule
            logger.warning("%s: %d messages quarantined, e.g. %s: %s", self.source.name, len(refused), where, rule)

    def _read(self, messages: Sequence[Message]) -> "tuple[_Events, list[Refused]]":
        """Events that keep the contract and what is expected of them, and the messages that do not."""
        now = datetime.now(UTC)
        rules = replace(self.source.rules, now=now + CLOCK_SKEW)
        chunk = rows_of(messages, range(len(messages)), rules)
        parsed, broken = validate_events(chunk.rows, chunk.lines, columns_of(rules), rules)
        events = parsed.select(EVENTS.names)
        checked = self.expectations.check(events, events[SOURCE_ROW], context=replace(self.context, now=rules.now))
        refused = [Refused(messages[row.line], row.reason, 1) for row in (*chunk.broken, *broken, *checked.broken)]
        table = checked.good.with_columns(
            pl.min_horizontal(EVENT_TIME, pl.lit(now)).dt.cast_time_unit("us").alias(EVENT_TIME),
            pl.lit(None, dtype=events.schema[INGEST_TIME]).alias(INGEST_TIME),
        )
        return _Events([messages[row] for row in table[SOURCE_ROW]], table.drop(SOURCE_ROW)), refused

    def _hand_over(self, events: "_Events") -> "list[tuple[_Events, Exception]]":
        """Hand events over, in halves if need be; those that the handler fails on when it gets them alone, and how."""
        error = self._attempt(events) if events.messages else None
        if error is None:
            return []
        if len(events.messages) > 1:
            first, second = events.halves()
            return self._hand_over(first) + self._hand_over(second)
        self._refusals += 1
        if self._refusals >= REFUSALS_IN_A_ROW:
            raise error
        return [(events, error)]

    def _try_again(self, failed: "_Events", error: Exception) -> list[Refused]:
        """Hand a message over that has failed, until it has been tried often enough."""
        message = failed.messages[0]
        last = error
        for _ in range(message.tries_before + 1, TRIES):
            self.stop.wait(FIRST_WAIT_SECONDS)
            found = self._attempt(failed)
            if found is None:
                return []
            last = found
        return [Refused(message, f"it makes the handler fail: {type(last).__name__}: {last}", TRIES)]

    def _attempt(self, events: "_Events") -> Exception | None:
        """Hand over; the error if it is one that a message can be guilty of."""
        try:
            new = self._patiently("the store", lambda: self.handler(events.table))
        except (TowerlineError, StopError):
            raise
        except Exception as error:
            if is_of_the_store(error):
                raise TowerlineError(
                    f"{self.source.name}: the store failed ({type(error).__name__}: {error}); nothing of this batch "
                    "was committed; look after the store's disk or server, then start it again"
                ) from error
            return error
        self._refusals = 0
        self.progress.handed_over(events.messages, new)
        return None

    def _patiently(self, who: str, action: Callable[[], T]) -> T:
        """What `action` gives; while `who` is away, try again and again. Raises StopError if `stop` is set by then."""
        wait, away_since = FIRST_WAIT_SECONDS, 0.0
        while True:
            try:
                result = action()
            except Exception as error:
                if not is_away(error):
                    raise
                if not away_since:
                    away_since = time.monotonic()
                    logger.warning("%s is away (%s); waiting for it", who, error)
                if self.stop.wait(wait):
                    raise StopError from error
                wait = min(wait * 2, LONGEST_WAIT_SECONDS)
                with suppress(StreamAwayError):
                    self._subscription.keep()
            else:
                if away_since:
                    logger.info("%s is back after %.1f s", who, time.monotonic() - away_since)
                return result


@dataclass(frozen=True)
class _Events:
    """Events, and the message of each."""

    messages: list[Message]
    table: pl.DataFrame

    def halves(self) -> "tuple[_Events, _Events]":
        middle = len(self.messages) // 2
        return (
            _Events(self.messages[:middle], self.table[:middle]),
            _Events(self.messages[middle:], self.table[middle:]),
        )
