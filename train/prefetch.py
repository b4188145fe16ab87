"""Preparing what comes next while the present is worked on."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def ahead(items: Iterator[Item], count: int) -> Generator[Item]:
    """The same items, up to `count` of them made ahead by a thread; the thread ends when this is closed.

    Pays when the making waits for something (a disk, the Python of another thread) or there is a core to spare; costs
    some ten microseconds an item. An error of `items` is raised where the item would have come.
    """
    made: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue()
    places, closed = threading.Semaphore(count), threading.Event()

    def make() -> None:
        try:
            while places.acquire() and not closed.is_set():
                made.put((next(items), None))
        except BaseException as error:  # noqa: BLE001  also StopIteration; raised by the thread that asks
            made.put((None, error))

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            places.release()
            yield item  # type: ignore[misc]
    finally:
        closed.set()
        places.release()
        thread.join()
