"""Clients as no service wants them, among those that only ask: slow, with huge bodies or broken chunks, or leaving."""

import asyncio
import itertools
import json
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from urllib.parse import urlsplit

import httpx

from benchmarks.checked_load import Notes, ask, http_client
from benchmarks.expected_answers import Expected
from benchmarks.serving_load import PATH

SLOW_PAUSE_S = 0.2
SLOW_PIECE = 6
"""Bytes of a slow client's body between two pauses."""
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
"""Of a huge body."""
HUGE_CHUNKS = 128
"""8 MiB, several times what is taken."""
WAITS_S = 30.0
"""For an answer."""
MOST_TRIES = 100
"""Of a request that is told to ask again later."""


@dataclass(frozen=True)
class Address:
    """Where the service listens."""

    host: str
    port: int

    def head(self, *headers: str) -> bytes:
        """The head of a request for recommendations."""
        lines = [f"POST {PATH} HTTP/1.1", f"Host: {self.host}", "Content-Type: application/json", *headers]
        return "\r\n".join([*lines, "", ""]).encode()


Abuse = Callable[[Address], Awaitable[str]]
"""One abusive request; tells the status that it was answered with, `hung up` if with none."""


async def slow(address: Address) -> str:
    """A good request, a few bytes at a time."""
    body = json.dumps({"user_id": "somebody slow", "count": 3}).encode()
    async with asyncio.timeout(WAITS_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(address.head(f"Content-Length: {len(body)}"))
        for begin in range(0, len(body), SLOW_PIECE):
            writer.write(body[begin : begin + SLOW_PIECE])
            await writer.drain()
            await asyncio.sleep(SLOW_PAUSE_S)
        return await _status(reader, writer)


async def stalled(address: Address) -> str:
    """The head of a request, and then nothing."""
    return await _send(address, address.head("Content-Length: 40"))


async def huge(address: Address) -> str:
    """A body without an end, in chunks."""
    return await _send(address, address.head("Transfer-Encoding: chunked"), *[CHUNK] * HUGE_CHUNKS)


async def declared_huge(address: Address) -> str:
    """A body of a terabyte, of which only the beginning comes."""
    return await _send(address, address.head("Content-Length: 1000000000000"), CHUNK)


async def broken_chunk(address: Address) -> str:
    """A chunk whose length is no number."""
    return await _send(address, address.head("Transfer-Encoding: chunked"), b"zz\r\n{}\r\n0\r\n\r\n")


async def no_request(address: Address) -> str:
    """Bytes that are no HTTP at all."""
    return await _send(address, b"\x16\x03\x01 no request\r\n\r\n")


async def leaver(address: Address) -> str:
    """Half a body, and then the connection is reset."""
    _, writer = await asyncio.open_connection(address.host, address.port)
    writer.write(address.head("Content-Length: 40") + b'{"user_id": "some')
    await writer.drain()
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    return "hung up"


ABUSES: Mapping[Abuse, frozenset[str]] = {
    slow: frozenset({"200"}),
    stalled: frozenset({"408"}),
    huge: frozenset({"413", "hung up"}),
    declared_huge: frozenset({"413", "hung up"}),
    broken_chunk: frozenset({"400"}),
    no_request: frozenset({"400"}),
    leaver: frozenset({"hung up"}),
}
"""How each may be answered. Who sends on after a refusal may be reset before it is read."""
ABUSIVE = 5
"""One request of so many, and one client, is abusive."""


async def _send(address: Address, *parts: bytes) -> str:
    """Send until all is sent or the other side has had enough."""
    async with asyncio.timeout(WAITS_S):
        reader, writer = await asyncio.open_connection(address.host, address.port)
        with suppress(ConnectionError):
            for part in parts:
                if reader.at_eof():
                    break
                writer.write(part)
                await writer.drain()
        return await _status(reader, writer)


async def _status(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    try:
        line = await reader.readline()
    except ConnectionError:
        line = b""
    finally:
        writer.transport.abort()
    return line.split()[1].decode() if line else "hung up"


@dataclass
class Crowd:
    """What became of a crowd of clients."""

    honest: Notes = field(default_factory=Notes)
    put_off: int = 0
    """How often an honest one was told to ask again later."""
    abusive: dict[str, Counter[str]] = field(default_factory=dict)
    """By abuse: what it was answered with."""

    def unexpected(self) -> dict[str, Counter[str]]:
        """Answers to abuse that are none of those it may have."""
        found = {}
        for abuse, allowed in ABUSES.items():
            seen = self.abusive.get(abuse.__name__, Counter())
            others = {status: count for status, count in seen.items() if status not in allowed}
            if others:
                found[abuse.__name__] = Counter(others)
        return found


def crowd(url: str, expected: Expected, requests: int, connections: int) -> Crowd:
    """So many requests, one after the other from each of so many clients; a fifth of them abusive.

    The abusive ones are in a process of their own: they are to be as slow as they mean to be, not as the others make
    them.
    """
    parts = urlsplit(url)
    address = Address(parts.hostname or "", parts.port or 80)
    abusive = requests // ABUSIVE, connections // ABUSIVE
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        answered = pool.submit(_abusive, address, *abusive)
        found = asyncio.run(_honest(url, expected, requests - abusive[0], connections - abusive[1]))
        found.abusive = answered.result()
    return found


async def _honest(url: str, expected: Expected, requests: int, connections: int) -> Crowd:
    found = Crowd()
    users = itertools.islice(itertools.cycle(expected.users), requests)

    async with http_client(url, connections) as client:

        async def take_part() -> None:
            for user in users:
                await _ask_until_answered(client, user, expected, found)

        await asyncio.gather(*(take_part() for _ in range(connections)))
    return found


async def _ask_until_answered(client: httpx.AsyncClient, user: str, expected: Expected, found: Crowd) -> None:
    for _ in range(MOST_TRIES):
        seen = await ask(client, user, expected)
        if not seen.why.startswith("429"):
            break
        found.put_off += 1
        await asyncio.sleep(1)
    found.honest.add(seen)


def _abusive(address: Address, requests: int, connections: int) -> dict[str, Counter[str]]:
    return asyncio.run(_abuse(address, requests, connections))


async def _abuse(address: Address, requests: int, connections: int) -> dict[str, Counter[str]]:
    answered: dict[str, Counter[str]] = {abuse.__name__: Counter() for abuse in ABUSES}
    abuses = itertools.islice(itertools.cycle(ABUSES), requests)

    async def take_part() -> None:
        for abuse in abuses:
            try:
                status = await abuse(address)
            except (OSError, TimeoutError) as error:
                status = type(error).__name__
            answered[abuse.__name__][status] += 1

    await asyncio.gather(*(take_part() for _ in range(connections)))
    return answered
