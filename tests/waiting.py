"""Waiting for what comes about in its own time."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], seconds: float = 300, what: str = "it to come about") -> None:
    """Return once `condition` holds; fail if it takes longer."""
    wait_for(True, lambda: bool(condition()), seconds, what)


def wait_for(wanted: object, seen: Callable[[], object], seconds: float = 300, what: str = "") -> None:
    """Return once `seen` gives what is wanted; fail with what it gave last if that takes longer."""
    deadline = time.monotonic() + seconds
    while (last := seen()) != wanted:
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what or wanted}, but there is {last}"
        time.sleep(0.05)
