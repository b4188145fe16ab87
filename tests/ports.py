"""Ports for servers that a test starts by their number, and may start again on it."""

import random
import socket
from pathlib import Path

FIRST = 20_000
"""Ray gives its workers those below."""


def free_port() -> int:
    """A port on which nobody listens, and which nobody gets by chance: the kernel draws those of outgoing connections,
    and those that are asked for as port 0, from a range above."""
    above = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(FIRST, above), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"100 ports between {FIRST} and {above} were in use")
