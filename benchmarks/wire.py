"""Bytes that a process has sent to others, as the kernel counts them."""

import os
import socket
import struct
from pathlib import Path

_BYTES_ACKED_AT = 120
"""Of `tcpi_bytes_acked` in Linux's `struct tcp_info` (linux/tcp.h): a u64, there since 4.1."""


def bytes_sent() -> int:
    """What the other ends of this process's open TCP connections have acknowledged.

    Of this process alone: the counters of a network interface would hold what else the machine does.
    """
    return sum(_acknowledged(descriptor) for descriptor in Path("/proc/self/fd").iterdir())


def _acknowledged(descriptor: Path) -> int:
    try:
        if not str(descriptor.readlink()).startswith("socket:"):
            return 0
        connection = socket.socket(fileno=os.dup(int(descriptor.name)))
    except FileNotFoundError:  # It was that of the listing itself, or another thread closed it.
        return 0
    with connection:
        if connection.type != socket.SOCK_STREAM or connection.family not in {socket.AF_INET, socket.AF_INET6}:
            return 0
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED_AT + 8)
    return int(struct.unpack_from("=Q", info, _BYTES_ACKED_AT)[0])
