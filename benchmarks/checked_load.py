"""A load of which every answer is checked: clients that ask without a pause, and a note of each that was not right."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Literal, get_args

import httpx

from benchmarks.expected_answers import Expected
from benchmarks.serving_load import PATH, PATIENCE_S

PAUSE_S = 0.05
"""After a failure, before the client asks again."""
GAP_S = 1.0
"""So long without a full answer is noted."""

Ending = Literal["full", "degraded", "wrong", "failed"]
"""`degraded`: right for an answer that says which stages it goes without. `failed`: another status, or none."""

NOT_FULL: tuple[Ending, ...] = ("degraded", "wrong", "failed")


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one request."""

    ended: float
    """Moment of `time.monotonic`."""
    ending: Ending
    why: str = ""


class Notes:
    """What became of the requests so far: those that were answered in full are counted, the others kept."""

    def __init__(self) -> None:
        self.requests = 0
        self.others: list[Seen] = []
        self.by_second: dict[Ending, Counter[int]] = {ending: Counter() for ending in get_args(Ending)}
        """Answers by the whole second of `time.monotonic` in which they came."""
        self.gaps: list[tuple[float, float]] = []
        """Begin and end of each time without a full answer."""
        self._last_full: float | None = None

    def add(self, seen: Seen) -> None:
        """One more."""
        self.requests += 1
        self.by_second[seen.ending][int(seen.ended)] += 1
        if seen.ending != "full":
            self.others.append(seen)
            return
        if self._last_full is not None and seen.ended > self._last_full + GAP_S:
            self.gaps.append((self._last_full, seen.ended))
        self._last_full = seen.ended

    def are_full_since(self, moment: float, seconds: float) -> bool:
        """Whether full answers have come for `seconds` since `moment`, and no others."""
        enough = self._last_full is not None and self._last_full > moment + seconds
        return enough and not self.since(moment, *NOT_FULL)

    def since(self, moment: float, *endings: Ending) -> list[Seen]:
        """Those with these endings that ended later."""
        return [seen for seen in self.others if seen.ended > moment and seen.ending in endings]


async def ask(client: httpx.AsyncClient, user: str, expected: Expected) -> Seen:
    """One request, and how it ended."""
    try:
        response = await client.post(PATH, json={"user_id": user, "count": expected.count})
    except httpx.TransportError as error:
        return Seen(time.monotonic(), "failed", repr(error))
    if response.status_code != 200:
        return Seen(time.monotonic(), "failed", f"{response.status_code} {response.text}")
    answer = response.json()
    if fault := expected.fault(user, answer):
        return Seen(time.monotonic(), "wrong", f"user {user!r}: {fault}")
    return Seen(time.monotonic(), "degraded" if answer["degraded"] else "full", ",".join(answer["degraded"]))


def http_client(url: str, connections: int) -> httpx.AsyncClient:
    """One that keeps so many connections."""
    limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False)


@contextmanager
def checked_load(url: str, expected: Expected, clients: int) -> Iterator[Notes]:
    """So many clients that ask, in a thread of their own, until the block ends."""
    notes, stop = Notes(), Event()
    with ThreadPoolExecutor(1, thread_name_prefix="load") as pool:
        running = pool.submit(asyncio.run, _load(url, expected, clients, notes, stop))
        try:
            yield notes
        finally:
            stop.set()
        running.result()


async def _load(url: str, expected: Expected, clients: int, notes: Notes, stop: Event) -> None:
    async with http_client(url, clients) as client:

        async def ask_on(first: int) -> None:
            for user in itertools.cycle(expected.users[first:] + expected.users[:first]):
                if stop.is_set():
                    return
                seen = await ask(client, user, expected)
                notes.add(seen)
                if seen.ending == "failed":
                    await asyncio.sleep(PAUSE_S)

        share = max(1, len(expected.users) // clients)
        await asyncio.gather(*(ask_on(number * share % len(expected.users)) for number in range(clients)))
