"""Ray Train's controller in the process of whoever trains.

Train makes an actor of it, and spends seconds of a core on that before the first worker can start. But it is a loop
that waits nearly always, so a thread of the caller does for it. With the caller it ends, as the actor did.
"""

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import ray.train
from ray.train.v2._internal.execution.controller import TrainController

from train.crew import Crew
from train.ray_group import TrainingGroup

LOG_FILE = "controller.log"
SETTINGS = {"RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0"}
"""What it asks the environment for when its process is not its own: whether to leave the logging of others alone."""


def run_controller(crew: Crew | None, **arguments: Any) -> ray.train.Result:
    """Train as a controller with these arguments of `TrainController` decides; returns when it is done or has failed.

    It has a thread, since the caller's may have an event loop already (a notebook's has). When the caller is
    interrupted, the workers end first. `crew`: whose workers train, and who keeps them.
    """
    controller = _Controller(crew, **arguments)
    with closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1, "train-controller") as thread:
        task = loop.create_task(controller.run_and_release())
        running = thread.submit(loop.run_until_complete, task)
        try:
            running.result()
        except BaseException:
            loop.call_soon_threadsafe(task.cancel)
            raise
    return controller.get_result()


class _Controller(TrainController):
    """Train's, with our workers; it leaves none behind."""

    def __init__(self, crew: Crew | None, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.worker_group_cls = cast("type[TrainingGroup]", type("TrainingGroup", (TrainingGroup,), {"crew": crew}))

    async def run_and_release(self) -> None:
        """Run to the end, or until cancelled (Train's own `abort` would end the process)."""
        try:
            await self.run()  # type: ignore[no-untyped-call]
        except asyncio.CancelledError:
            self._controller_callback_manager.invoke_best_effort("before_controller_abort")
            raise
        finally:
            if self._worker_group is not None:
                self._shutdown_worker_group()  # type: ignore[no-untyped-call]


@contextmanager
def logged_apart(folder: Path) -> Iterator[None]:
    """What Train's controller logs meanwhile goes to a file in `folder`: the caller gets its errors, and says them."""
    logger = logging.getLogger("ray.train")
    level, propagate = logger.level, logger.propagate
    handler = logging.FileHandler(folder / LOG_FILE, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.removeHandler(handler)
        handler.close()
