import threading
import time
from collections.abc import Iterator

import pytest

from tests.waiting import wait_until
from train.prefetch import ahead


def _prefetching() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def test_the_items_come_in_order_and_the_thread_ends() -> None:
    assert list(ahead(iter(range(100)), 2)) == list(range(100))
    assert list(ahead(iter([]), 2)) == []
    assert _prefetching() == 0


def test_no_more_than_so_many_are_made_ahead() -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = ahead(make(), 3)
    for number in range(5):
        assert next(items) == number
        wait_until(lambda: len(made) >= min(number + 4, 100), 30, "the next items")  # noqa: B023
        time.sleep(0.02)
        assert len(made) == number + 4
    items.close()
    assert _prefetching() == 0


def test_an_error_comes_after_the_items_before_it() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("no more")

    items = ahead(make(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="no more"):
        next(items)
    assert _prefetching() == 0
