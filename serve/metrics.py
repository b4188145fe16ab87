"""What is measured of the endpoint, defined once, in Prometheus' naming conventions; who collects it is a backend.

Gateway replicas hand it to Ray, whose exporter on every node Prometheus asks (`serve.ray_metrics`): an endpoint behind
the load balancer would show one replica at random. Without Ray it is kept here, by prometheus-client.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import prometheus_client

SECONDS = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Definition:
    """One metric."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""


REQUESTS = Definition(
    "counter",
    "towerline_requests_total",
    "Requests answered, or left by their client",
    ("endpoint", "status"),
)
REQUEST_SECONDS = Definition(
    "histogram", "towerline_request_duration_seconds", "From a request to the end of its answer", ("endpoint",), SECONDS
)
STAGE_SECONDS = Definition(
    "histogram", "towerline_stage_duration_seconds", "What a stage took for a batch of requests", ("stage",), SECONDS
)
QUEUE_SECONDS = Definition(
    "histogram", "towerline_queue_duration_seconds", "How long a request waited for its batch", (), SECONDS
)
BATCH_FILL = Definition(
    "histogram", "towerline_batch_fill_ratio", "Requests of a batch, of those that it has room for", (), FRACTIONS
)
DEGRADED = Definition(
    "counter", "towerline_degraded_answers_total", "Answers for which a stage was left out or replaced", ("stage",)
)
CANDIDATES = Definition(
    "counter", "towerline_candidates_total", "Candidates that a source of retrieval named", ("source",)
)
MODEL_INFO = Definition(
    "gauge", "towerline_model_info", "1 for each model version that answers now", ("variant", "model", "version")
)
DEFINITIONS = (
    REQUESTS,
    REQUEST_SECONDS,
    STAGE_SECONDS,
    QUEUE_SECONDS,
    BATCH_FILL,
    DEGRADED,
    CANDIDATES,
    MODEL_INFO,
)


class Instrument(Protocol):
    """Takes the measurements of one metric. Usable from several threads."""

    def record(self, value: float, *labels: str) -> None:
        """Count `value`, set it or observe it, whichever the metric is for, with values for its labels in order."""
        ...


class Backend(Protocol):
    """Who collects."""

    def instrument(self, definition: Definition) -> Instrument:
        """For one metric; asked once for each."""
        ...

    def exposition(self) -> bytes | None:
        """All metrics in Prometheus' text format; None if they are exported elsewhere."""
        ...

    def close(self) -> None:
        """Hand over what is still here."""
        ...


class InProcess:
    """Keeps the metrics in a registry of prometheus-client."""

    def __init__(self) -> None:
        self._registry = prometheus_client.CollectorRegistry()

    def instrument(self, definition: Definition) -> Instrument:
        """See `Backend`; so for all methods."""
        name, description, labels = definition.name, definition.description, definition.labels
        match definition.kind:
            case "counter":
                return _Counter(prometheus_client.Counter(name, description, labels, registry=self._registry))
            case "gauge":
                return _Gauge(prometheus_client.Gauge(name, description, labels, registry=self._registry))
            case "histogram":
                buckets = definition.buckets
                made = prometheus_client.Histogram(name, description, labels, registry=self._registry, buckets=buckets)
                return _Histogram(made)

    def exposition(self) -> bytes:
        return prometheus_client.generate_latest(self._registry)

    def close(self) -> None:
        """There is nothing to hand over."""


@dataclass(frozen=True)
class _Counter:
    counter: prometheus_client.Counter

    def record(self, value: float, *labels: str) -> None:
        (self.counter.labels(*labels) if labels else self.counter).inc(value)


@dataclass(frozen=True)
class _Gauge:
    gauge: prometheus_client.Gauge

    def record(self, value: float, *labels: str) -> None:
        (self.gauge.labels(*labels) if labels else self.gauge).set(value)


@dataclass(frozen=True)
class _Histogram:
    histogram: prometheus_client.Histogram

    def record(self, value: float, *labels: str) -> None:
        (self.histogram.labels(*labels) if labels else self.histogram).observe(value)


class Metrics:
    """Of one process."""

    def __init__(self, backend: Backend | None = None) -> None:
        """`backend`: this process alone if None."""
        self._backend = backend or InProcess()
        self._instruments = {definition: self._backend.instrument(definition) for definition in DEFINITIONS}

    def exposition(self) -> bytes | None:
        """As the backend's."""
        return self._backend.exposition()

    def close(self) -> None:
        """Hand over what is still here. What is recorded later is lost."""
        self._backend.close()

    def request(self, endpoint: str, status: str, seconds: float) -> None:
        """A request was answered with this HTTP status, or left by its client (499)."""
        self._instruments[REQUESTS].record(1, endpoint, status)
        self._instruments[REQUEST_SECONDS].record(seconds, endpoint)

    def batch(self, requests: int, room: int) -> None:
        """A batch of so many requests began that has room for so many."""
        self._instruments[BATCH_FILL].record(requests / room)

    def stages(self, before: Mapping[str, float], after: Mapping[str, float]) -> None:
        """A batch went through some stages: its milliseconds per stage before and after them."""
        for stage, milliseconds in after.items():
            if stage not in before:
                self._instruments[STAGE_SECONDS].record(milliseconds / 1e3, stage)

    def candidates(self, named_by: Iterable[Mapping[str, int]]) -> None:
        """Each source named so many candidates for the requests of a batch."""
        found: Counter[str] = Counter()
        for named in named_by:
            found.update(named)
        for source, count in found.items():
            if count:
                self._instruments[CANDIDATES].record(count, source)

    def ranked(self, waited_s: float, degraded: Sequence[str]) -> None:
        """A request got its items, after a wait for its batch and without some stages."""
        self._instruments[QUEUE_SECONDS].record(waited_s)
        for stage in degraded:
            self._instruments[DEGRADED].record(1, stage)

    def serves(self, variant: str, versions: Mapping[str, str], *, now: bool = True) -> None:
        """A variant answers from now on, or no longer."""
        for model, version in versions.items():
            self._instruments[MODEL_INFO].record(float(now), variant, model, version)
