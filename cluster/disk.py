"""A disk that is full, over its quota or read-only is a person's problem to solve: what is wrong, and what to do."""

import errno
import sqlite3
from typing import NamedTuple


class DiskProblem(NamedTuple):
    """What a person reads."""

    wrong: str
    next_step: str


FULL = DiskProblem("no space left on the disk", "free some, or set TOWERLINE_HOME to a folder on another disk")

PROBLEMS = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: DiskProblem("the disk quota is used up", "free some space or set TOWERLINE_HOME to another disk"),
    errno.EFBIG: DiskProblem("the file would be larger than the limit for files (ulimit -f)", "raise the limit"),
    errno.EROFS: DiskProblem("the file system is read-only", "set TOWERLINE_HOME to a folder that can be written"),
    errno.EACCES: DiskProblem("permission denied", "set TOWERLINE_HOME to a folder that you may write"),
    errno.EBUSY: DiskProblem(
        "another process has been writing to it for a minute", "try again when that one has finished"
    ),
    errno.ENOTDIR: DiskProblem("a part of the path is a file", "set TOWERLINE_HOME to a folder"),
}

_OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}
_FULL_IN_WORDS = ("No space left on device", "database or disk is full")
"""Native writers (Parquet, safetensors, sqlite) say so in words of their own."""


def disk_problem(error: BaseException) -> DiskProblem | None:
    """What is wrong with the disk; None if the error is about something else."""
    if isinstance(error, sqlite3.Error):
        problem = PROBLEMS.get(_OF_SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, 0))
    else:
        problem = PROBLEMS.get(error.errno or 0) if isinstance(error, OSError) else None
    if problem is None and isinstance(error, Exception) and any(words in str(error) for words in _FULL_IN_WORDS):
        return FULL
    return problem


def is_full(error: BaseException) -> bool:
    """Whether there is no space left for this user."""
    return disk_problem(error) in {FULL, PROBLEMS[errno.EDQUOT]}
