"""How far a long reading is: tasks note the rows they have read in files, and whoever waits logs the sum."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_MESSAGES = 5.0
PATTERN = "progress-*"


def note_rows(folder: Path, part: int, rows: int) -> None:
    """Say that so many rows of a part have been read."""
    (folder / f"progress-{part:05d}").write_text(str(rows))


@contextmanager
def progress(folder: Path, source: str) -> Iterator[None]:
    """Log every few seconds how many rows of `source` have been read, while the block runs."""
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(folder, source, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _watch(folder: Path, source: str, done: threading.Event) -> None:
    said = 0
    while not done.wait(SECONDS_BETWEEN_MESSAGES):
        rows = sum(_number(file) for file in folder.glob(PATTERN))
        if rows != said:
            logger.info("%s: %s rows read", source, f"{rows:,}")
        said = rows


def _number(file: Path) -> int:
    """A file that is being written, or was removed meanwhile, counts when it is next looked at."""
    try:
        return int(file.read_text() or 0)
    except OSError:
        return 0
