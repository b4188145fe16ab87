"""A disk that is full, over its quota or read-only is a person's problem to solve, not a traceback."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import TowerlineError

NEXT_STEPS = {
    errno.ENOSPC: "the disk is full (no space left on device); free some space or set TOWERLINE_HOME to a larger one",
    errno.EDQUOT: "the disk quota is used up; free some space or set TOWERLINE_HOME to another disk",
    errno.EFBIG: "the file would be larger than the limit for files (ulimit -f); raise the limit",
    errno.EROFS: "the file system is read-only; set TOWERLINE_HOME to a folder that can be written",
    errno.EACCES: "permission denied; set TOWERLINE_HOME to a folder that you may write",
    errno.EBUSY: "another process has been writing to it for a minute; try again when it has finished",
    errno.ENOTDIR: "a part of the path is a file; set TOWERLINE_HOME to a folder",
}

_OF_SQLITE = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_BUSY: errno.EBUSY,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}


@contextmanager
def clear_disk_errors(doing: str) -> Iterator[None]:
    """Turn an error about the disk into a TowerlineError: what was being done, what is wrong, the next step."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        next_step = NEXT_STEPS.get(_number(error))
        if next_step is None:
            raise
        raise TowerlineError(f"{doing}: {next_step}; nothing was written") from error


def _number(error: OSError | sqlite3.Error) -> int:
    if isinstance(error, sqlite3.Error):
        return _OF_SQLITE.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, 0)
    return error.errno or 0
