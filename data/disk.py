"""A disk that is full, over its quota or read-only is a person's problem to solve, not a traceback."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import TowerlineError

NEXT_STEPS = {
    errno.ENOSPC: "the disk is full; free some space or set TOWERLINE_HOME to a larger one",
    errno.EDQUOT: "the disk quota is used up; free some space or set TOWERLINE_HOME to another disk",
    errno.EFBIG: "the file would be larger than the limit for files (ulimit -f); raise the limit",
    errno.EROFS: "the file system is read-only; set TOWERLINE_HOME to a folder that can be written",
    errno.EACCES: "permission denied; set TOWERLINE_HOME to a folder that you may write",
}


@contextmanager
def clear_disk_errors(doing: str) -> Iterator[None]:
    """Turn an OSError about the disk into a TowerlineError: what was being done, what is wrong, the next step."""
    try:
        yield
    except OSError as error:
        next_step = NEXT_STEPS.get(error.errno or 0)
        if next_step is None:
            raise
        raise TowerlineError(f"{doing}: {next_step}; nothing was written") from error
