"""Ending what would go on for good: the first Ctrl-C or SIGTERM asks it to finish what it has in hand."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_on_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the next one does what it did before. Main thread only."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in ENDING}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        restore()
        stop.set()

    for number in ENDING:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()
