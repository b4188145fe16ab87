"""Something that is looked at again and again while something else goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

Seen = TypeVar("Seen")


@contextmanager
def sampled(look: Callable[[], Seen], every_s: float) -> Iterator[list[Seen]]:
    """What a thread has seen so far, one more every `every_s` seconds until the block ends."""
    seen: list[Seen] = []
    stop = Event()

    def watch() -> None:
        while not stop.wait(every_s):
            seen.append(look())

    thread = Thread(target=watch, name="sampling")
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()
