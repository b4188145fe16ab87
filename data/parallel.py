"""One function over many tasks: on Ray Data, or one after another in this process."""

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from cluster.errors import TowerlineError
from cluster.settings import Settings

Task = TypeVar("Task")
Result = TypeVar("Result")

MOST_TOGETHER = 4
"""Tasks that go to a worker at once, where there are many: each trip costs tens of ms, and what is lost is redone."""
SHARES = 8
"""Trips that every worker makes at least, so that all end at about the same time."""


class Run(Protocol):
    """How a function is mapped over tasks. Results come in any order; the first error a person can act on is raised."""

    def __call__(self, function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
        """The results, as they come."""
        ...


def in_process(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """One after another, here."""
    return map(function, tasks)


def on_ray(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """As a Ray Data graph, in the session of this process; tasks whose worker dies are run again."""
    import ray.cloudpickle
    import ray.data

    if not tasks:
        return
    # What goes wrong is raised here; Ray Data would print it as well, with a traceback.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    at_once = min(_tasks_at_once(), len(tasks))
    together = min(MOST_TOGETHER, max(1, len(tasks) // (SHARES * at_once)))
    rows = [{"task": _pickled(task)} for task in tasks]
    source = ray.data.from_items(rows, override_num_blocks=-(-len(rows) // together))
    results = source.map_batches(
        functools.partial(_call, function),
        batch_format="pyarrow",
        batch_size=None,
        compute=ray.data.TaskPoolStrategy(size=at_once),
    )
    # Reservations start from a cluster without CPUs and admit one task at a time until they have heard of it. There is
    # one step here and its results are small: the size above is all the limit that is needed.
    results.context.op_resource_reservation_enabled = False
    for row in results.iter_rows():
        result, error = ray.cloudpickle.loads(row["result"])
        if error is not None:
            raise error
        yield result


def on_ray_when_needed(settings: Settings, session: ExitStack) -> Run:
    """Like `on_ray`, in a session that starts with the first tasks and ends with `session`."""

    def run(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        from cluster.session import connect

        session.enter_context(connect(settings, log_to_driver=False))
        return on_ray(function, tasks)

    return run


def _tasks_at_once() -> int:
    """As many as the cluster has CPUs; on one machine no more than it really has: each task takes a bucket's memory."""
    import ray

    logical = int(ray.cluster_resources().get("CPU", 1))  # type: ignore[no-untyped-call]
    is_one_machine = len(ray.nodes()) == 1  # type: ignore[no-untyped-call]
    return max(1, min(logical, len(os.sched_getaffinity(0))) if is_one_machine else logical)


def _call(function: Callable[[Any], Any], batch: pa.Table) -> pa.Table:
    """Errors that a person can act on come back as they are; anything else is a defect, and Ray's to report."""
    import ray.cloudpickle

    results: list[tuple[Any, Exception | None]] = []
    for pickled in batch.column("task").to_pylist():
        try:
            results.append((function(ray.cloudpickle.loads(pickled)), None))
        except (TowerlineError, OSError) as error:
            results.append((None, error))
            break
    return pa.table({"result": pa.array([_pickled(result) for result in results], pa.large_binary())})


def _pickled(value: object) -> bytes:
    import ray.cloudpickle

    pickled: bytes = ray.cloudpickle.dumps(value)  # type: ignore[no-untyped-call]
    return pickled
