"""Locks of folders end with the process that holds them at the latest, so that what a killed one left is known."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold the lock of a folder, once whoever has it gives it up; whether the folder is then still at this path."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield _is_at(descriptor, folder)
    finally:
        os.close(descriptor)


def remove_abandoned(folders: Iterable[Path]) -> None:
    """Remove the folders that nobody holds the lock of, and symbolic links."""
    for folder in folders:
        if folder.is_symlink():
            folder.unlink(missing_ok=True)
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), folder.stat())
    except FileNotFoundError:
        return False
