"""The progress of a training as lines of a file: rank 0 writes them, whoever started the training follows.

A file rather than a message: it needs no further process, is seen on every node of a cluster because the run's folder
is, and is still there when training is resumed.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from train.loop import EpochResult

PROGRESS_FILE = "progress.jsonl"
POLL_S = 0.1
"""Seconds between two looks at the file."""


def append_progress(folder: Path, result: EpochResult) -> None:
    """Add an epoch to the run's file. The line break in front ends a line whose writer was killed."""
    with (folder / PROGRESS_FILE).open("a") as file:
        file.write(f"\n{result.model_dump_json()}\n")


class Follower:
    """Tells listeners of every epoch once, also when a restarted training does an epoch again."""

    def __init__(
        self,
        folder: Path,
        on_new: Callable[[EpochResult], None] | None = None,
        on_any: Callable[[EpochResult], None] | None = None,
    ) -> None:
        """`on_new` hears of the epochs from now on, `on_any` also of those that are in the file already."""
        self._path = folder / PROGRESS_FILE
        self._offset = 0
        self._seen: set[int] = set()
        self._on_any, self._on_new = on_any, None
        self.catch_up()
        self._on_new = on_new

    def catch_up(self) -> None:
        """Read what is new in the file."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            written = file.read()
        complete = written[: written.rfind(b"\n") + 1]
        self._offset += len(complete)
        for line in filter(None, complete.splitlines()):
            self._tell(line)

    def _tell(self, line: bytes) -> None:
        try:
            result = EpochResult.model_validate_json(line)
        except ValidationError:
            return  # Its writer was killed; the one that goes on tells of the epoch again.
        if result.epoch not in self._seen:
            self._seen.add(result.epoch)
            for listener in (self._on_any, self._on_new):
                if listener is not None:
                    listener(result)

    @contextmanager
    def in_background(self) -> Iterator[None]:
        """Follow in a thread until the block ends; an error of a listener is raised then, not lost."""
        stop, errors = threading.Event(), list[BaseException]()

        def follow() -> None:
            try:
                while not stop.wait(POLL_S):
                    self.catch_up()
                self.catch_up()
            except BaseException as error:  # noqa: BLE001  raised below, in the thread that can handle it
                errors.append(error)

        thread = threading.Thread(target=follow, name="training-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
        if errors:
            raise errors[0]
