"""A search and its trials as runs of MLflow, the trials under the search. Each has one run, also after a kill.

Which run is whose is said by tags, so that nothing has to be remembered elsewhere.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, Self

from train.tracking import TrackedRun, TrackingTarget, connect, metric_name, start_run

SEARCH_TAG = "towerline.search"
TRIAL_TAG = "towerline.trial"


class Runs:
    """The runs of one search; enter it for as long as the search runs."""

    def __init__(self, tracking: TrackingTarget, params: Mapping[str, object], *, metric: str, name: str) -> None:
        """`params`: of the search's own run. `name`: of the search, the same when it is gone on with."""
        tags = {**tracking.tags, SEARCH_TAG: name}
        self._tracking = tracking.model_copy(update={"tags": tags})
        self._params, self._metric, self._name = params, metric, name
        self._ids: dict[int, str] = {}
        self._search, self._search_id = ExitStack(), ""
        self._open: dict[int, tuple[TrackedRun, ExitStack, set[int]]] = {}

    def __enter__(self) -> Self:
        self._client = connect(self._tracking.tracking_uri)
        before = self._runs(f"tags.`{SEARCH_TAG}` = '{self._name}' AND attributes.status != 'FINISHED'")
        search_id = next((run.info.run_id for run in before if TRIAL_TAG not in run.data.tags), None)
        params = self._params if search_id is None else None
        self._search_id = self._search.enter_context(start_run(self._tracking, params, search_id)).run_id
        trials = self._runs(f"tags.`mlflow.parentRunId` = '{self._search_id}'")
        self._ids = {int(run.data.tags[TRIAL_TAG]): run.info.run_id for run in trials}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the runs of trials that were cut off, then that of the search."""
        for _, stack, _ in self._open.values():
            with suppress(BaseException if error is None else type(error)):
                stack.__exit__(kind, error, trace)
        self._open.clear()
        self._search.__exit__(kind, error, trace)

    def keep_only(self, numbers: Collection[int]) -> None:
        """Delete the runs of all other trials: a killed search began them, but no longer knows of them."""
        for number in set(self._ids) - set(numbers):
            self._client.delete_run(self._ids.pop(number))

    def open(self, number: int, sample: Mapping[str, object]) -> None:
        """The run of a trial, which may have begun before."""
        if number in self._open:
            return
        update = {
            "run_name": f"trial {number}",
            "parent_run_id": self._search_id,
            "tags": {**self._tracking.tags, TRIAL_TAG: str(number)},
        }
        before, stack = self._ids.get(number), ExitStack()
        target = self._tracking.model_copy(update=update)
        run = stack.enter_context(start_run(target, sample if before is None else None, before))
        logged = [] if before is None else run.client.get_metric_history(before, metric_name(self._metric))
        self._open[number] = run, stack, {point.step for point in logged}
        self._ids[number] = run.run_id

    def log(self, number: int, value: float, loss: float, epoch: int) -> None:
        """A point of a trial's curves, once."""
        run, _, logged = self._open[number]
        if epoch not in logged:
            logged.add(epoch)
            run.log_metrics({"loss": loss, self._metric: value}, step=epoch)

    def close(self, number: int, *, failed: bool = False) -> None:
        """A trial ended."""
        if number not in self._open:
            return
        _, stack, _ = self._open.pop(number)
        if not failed:
            stack.close()
            return
        error = RuntimeError(f"trial {number} failed")
        with suppress(RuntimeError):
            stack.__exit__(RuntimeError, error, None)

    def _runs(self, condition: str) -> list[Any]:
        """The runs of the experiment that meet a condition, newest first."""
        experiment = self._client.get_experiment_by_name(self._tracking.experiment)
        if experiment is None:
            return []
        return list(self._client.search_runs([experiment.experiment_id], condition, max_results=10_000))
