"""Bytes that a process has sent to others, as the kernel counts them."""

import os
import socket
import struct
from pathlib import Path

_NOT_SENT_AT, _SENT_AT = 144, 200
"""In Linux's `struct tcp_info` (linux/tcp.h): a u32 of bytes that wait in the socket, and, since Linux 4.19, two u64 of
bytes that were sent and of those among them that were sent again."""


def bytes_sent() -> int:
    """What this process has written to its open TCP connections, under way or arrived.

    Of this process alone: the counters of a network interface would hold what else the machine does.
    """
    return sum(_written(descriptor) for descriptor in Path("/proc/self/fd").iterdir())


def _written(descriptor: Path) -> int:
    try:
        if not str(descriptor.readlink()).startswith("socket:"):
            return 0
        connection = socket.socket(fileno=os.dup(int(descriptor.name)))
    except FileNotFoundError:  # It was that of the listing itself, or another thread closed it.
        return 0
    with connection:
        if connection.type != socket.SOCK_STREAM or connection.family not in {socket.AF_INET, socket.AF_INET6}:
            return 0
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AT + 16)
    (not_sent,) = struct.unpack_from("=I", info, _NOT_SENT_AT)
    sent, again = struct.unpack_from("=QQ", info, _SENT_AT)
    return int(sent - again + not_sent)
