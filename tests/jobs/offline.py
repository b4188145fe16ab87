"""A command with no network but loopback: `unshare --map-root-user --net python tests/jobs/offline.py COMMAND`."""

import fcntl
import os
import socket
import struct
import sys

SIOCSIFFLAGS = 0x8914
UP_LOOPBACK_RUNNING = 0x1 | 0x8 | 0x40


def main(command: list[str]) -> None:
    """Bring up the new namespace's loopback and become the command."""
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", UP_LOOPBACK_RUNNING))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
