"""MLflow, as far as training needs it: one run, its parameters and a curve with one point per epoch."""

import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import TowerlineError

if TYPE_CHECKING:
    import mlflow

    from train.loop import EpochResult

PROBE_TIMEOUT_S = 5.0
"""Seconds that a tracking server has for its first answer."""

LONGEST_PARAMETER = 6000
"""Characters of a parameter's value that MLflow stores."""


class TrackingTarget(BaseModel):
    """Where a training is recorded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracking_uri: str
    """MLflow address: `sqlite:////folder/mlflow.db` or `http://host:port`; `Settings.tracking_uri`."""

    experiment: str = Field(min_length=1)
    """Name of the experiment; made if it is not there."""

    run_name: str
    """Name of the run, for people; need not be unique."""

    parent_run_id: str | None = None
    """Run that this one is shown under."""

    tags: dict[str, str] = {}
    """Tags of the run."""


class TrackedRun:
    """A run in progress; every call is written at once."""

    def __init__(self, client: "mlflow.MlflowClient", run_id: str) -> None:
        self.client = client
        self.run_id = run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Set parameters, each once: MLflow refuses another value later."""
        from mlflow.entities import Param

        entries = [Param(name, str(value)[:LONGEST_PARAMETER]) for name, value in params.items()]
        self.client.log_batch(self.run_id, params=entries)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Add a point to each metric's curve, in one request."""
        from mlflow.entities import Metric

        now_ms = time.time_ns() // 1_000_000
        points = [Metric(metric_name(name), value, now_ms, step) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=points)

    def log_epoch(self, result: "EpochResult") -> None:
        """Add an epoch to the curves."""
        curve = {
            "loss": result.loss,
            "samples_per_s": result.samples_per_s,
            "data_wait": result.data_wait,
            "epoch_seconds": result.seconds,
        }
        self.log_metrics(curve | result.metrics, step=result.epoch)


@contextmanager
def start_run(
    target: TrackingTarget, params: Mapping[str, object] | None = None, run_id: str | None = None
) -> Iterator[TrackedRun]:
    """A new run, or that of `run_id` once more; ended as FINISHED, KILLED (by Ctrl-C) or FAILED.

    Raises:
        TowerlineError: the tracking server does not answer, or the database cannot be opened.
    """
    client = connect(target.tracking_uri)
    run = TrackedRun(client, _new_run(client, target) if run_id is None else run_id)
    if run_id is not None:
        client.update_run(run_id, status="RUNNING")
    status = "FAILED"
    try:
        if params:
            run.log_params(params)
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        client.set_terminated(run.run_id, status)


def _new_run(client: "mlflow.MlflowClient", target: TrackingTarget) -> str:
    tags = dict(target.tags)
    if target.parent_run_id is not None:
        tags["mlflow.parentRunId"] = target.parent_run_id
    created = client.create_run(_experiment(client, target), run_name=target.run_name, tags=tags)
    return str(created.info.run_id)


def connect(tracking_uri: str) -> "mlflow.MlflowClient":
    """A client of the server or database at `tracking_uri`, which does answer.

    Raises:
        TowerlineError: it does not, within about `PROBE_TIMEOUT_S` seconds. (MLflow itself would try for minutes.)
    """
    if tracking_uri.startswith(("http://", "https://")):
        _probe(tracking_uri)
    elif tracking_uri.startswith("sqlite:///"):
        _make_folder(tracking_uri)
    from mlflow import MlflowClient

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri, registry_uri=tracking_uri)


def metric_name(name: str) -> str:
    """`name` as MLflow accepts it, which knows no `@`: `ndcg@10` becomes `ndcg_at_10`."""
    return name.replace("@", "_at_")


def artifact_folder(tracking_uri: str, experiment: str) -> str | None:
    """Where the artifacts of a new experiment go: beside the database; a server decides that itself."""
    database = _database(tracking_uri)
    return None if database is None else (database.parent / "artifacts" / experiment).as_uri()


def _experiment(client: "mlflow.MlflowClient", target: TrackingTarget) -> str:
    """Id of the experiment; of two processes that make it at once, one finds it made."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(target.experiment)
    if found is None:
        try:
            location = artifact_folder(target.tracking_uri, target.experiment)
            return str(client.create_experiment(target.experiment, artifact_location=location))
        except MlflowException as error:
            found = client.get_experiment_by_name(target.experiment)
            if found is None:
                raise TowerlineError(f"MLflow experiment {target.experiment!r} cannot be made: {error}") from error
    return str(found.experiment_id)


def _probe(tracking_uri: str) -> None:
    request = urllib.request.Request(f"{tracking_uri.rstrip('/')}/health")
    try:
        urllib.request.urlopen(request, timeout=PROBE_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # It answered; what it thinks of us comes with the first real request.
    except (OSError, ValueError) as error:
        reason: Any = getattr(error, "reason", error)
        raise TowerlineError(
            f"the MLflow server at {tracking_uri} does not answer ({reason}); start it, "
            "set TOWERLINE_MLFLOW_TRACKING_URI to another address, or unset it to track in TOWERLINE_HOME"
        ) from error


def _make_folder(tracking_uri: str) -> None:
    database = _database(tracking_uri)
    assert database is not None
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TowerlineError(
            f"the folder of the MLflow database {database} cannot be made ({error}); "
            "set TOWERLINE_HOME or TOWERLINE_MLFLOW_TRACKING_URI to a place that can be written"
        ) from error
    if not os.access(database.parent, os.W_OK):
        raise TowerlineError(
            f"the folder of the MLflow database {database} cannot be written; "
            "set TOWERLINE_HOME or TOWERLINE_MLFLOW_TRACKING_URI to a place that can"
        )


def _database(tracking_uri: str) -> Path | None:
    """File of a sqlite address; none for a server."""
    return Path(tracking_uri.removeprefix("sqlite:///")) if tracking_uri.startswith("sqlite:///") else None
