"""An error about the disk, while something is written, as one that a person can act on."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.disk import disk_problem
from cluster.errors import TowerlineError


@contextmanager
def clear_disk_errors(doing: str, outcome: str = "nothing was written") -> Iterator[None]:
    """Turn an error about the disk into a TowerlineError: what was being done, what is wrong, the next step."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        problem = disk_problem(error)
        if problem is None:
            raise
        raise TowerlineError(f"{doing}: {problem.wrong}; {problem.next_step}; {outcome}") from error
