"""Workers that stay from one training to the next: starting some takes longer than a small training.

    with same_workers():
        first = train_distributed(…)
        second = train_distributed(…)

They hold their CPUs meanwhile, so whoever needs some for another purpose within the block calls `dismiss` first. Only
the workers of a training that came to its end stay, and only a training that asks for the same goes on with them. Free
of Ray, for those who train without it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from train.scaling import Scaling

FIXED = {
    "backend",
    "num_workers",
    "cpus_per_worker",
    "use_gpu",
    "horovod",
    "timeout_s",
    "stall_timeout_s",
    "interface",
}
"""What a worker cannot change once it has begun to train."""


class Crew:
    """The workers that the last training left, if it left any."""

    def __init__(self) -> None:
        self.workers: list[Any] = []
        self.places: Any = None
        """The placement group of the workers."""
        self._end: Callable[[], None] | None = None
        self._asked: dict[str, Any] = {}

    def stay(self, workers: list[Any], places: Any, end: Callable[[], None]) -> None:
        """Keep them for the next training. `end` ends them and gives back their places."""
        self.workers, self.places, self._end = workers, places, end

    def leave(self) -> None:
        """A training has them now."""
        self.workers, self.places, self._end = [], None, None

    def dismiss(self) -> None:
        """End them."""
        end = self._end
        self.leave()
        if end is not None:
            end()

    def suit(self, scaling: Scaling) -> None:
        """From now on the workers are such; others are dismissed."""
        asked = scaling.model_dump(include=FIXED)
        if asked != self._asked:
            self.dismiss()
        self._asked = asked


_crew: ContextVar[Crew | None] = ContextVar("crew", default=None)


@contextmanager
def same_workers() -> Iterator[None]:
    """Within, trainings that ask for the same go on with the workers of the one before."""
    crew = Crew()
    token = _crew.set(crew)
    try:
        yield
    finally:
        _crew.reset(token)
        crew.dismiss()


def crew_for(scaling: Scaling) -> Crew | None:
    """Who has, or may keep, the workers of such a training; those of an elastic one do not stay."""
    crew = _crew.get()
    if crew is not None:
        crew.suit(scaling)
    return None if scaling.elastic else crew


def dismiss() -> None:
    """End the workers that wait for a next training, if there are any: their CPUs are needed."""
    crew = _crew.get()
    if crew is not None:
        crew.dismiss()
