"""Metrics as Ray's exporters show them: `ray_` before every name, deployment, replica and node among the labels."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray.serve.metrics

from serve.metrics import Definition, Instrument

HANDED_OVER_EVERY_S = 0.5

Take = Callable[[float, dict[str, str]], None]
"""Takes a value and its labels."""


@dataclass(frozen=True, slots=True, eq=False)
class _Metric:
    """One of Ray's."""

    labels: tuple[str, ...]
    take: Take
    adds_up: bool
    """Whether several measurements may be handed over as their sum."""


class _Measurement(NamedTuple):
    metric: _Metric
    value: float
    labels: tuple[str, ...]


class OnRay:
    """Hands the metrics of a Serve replica to the exporter of its node.

    Ray's recorder gives up the interpreter's lock at every call, and whoever takes it keeps it for milliseconds. So
    measurements are collected, and a thread of its own hands them over, twice a second: no request waits for that.
    """

    def __init__(self) -> None:
        self._measurements: deque[_Measurement] = deque()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def instrument(self, definition: Definition) -> Instrument:
        """See `serve.metrics.Backend`; so for all methods."""
        name, description = definition.name, definition.description
        labels: Any = definition.labels  # Ray's annotation allows for one only.
        take: Take
        match definition.kind:
            case "counter":
                take = ray.serve.metrics.Counter(name, description, tag_keys=labels).inc
            case "gauge":
                take = ray.serve.metrics.Gauge(name, description, tag_keys=labels).set
            case "histogram":
                buckets = list(definition.buckets)
                take = ray.serve.metrics.Histogram(name, description, boundaries=buckets, tag_keys=labels).observe
        return _Recording(_Metric(labels, take, definition.kind == "counter"), self._measurements)

    def exposition(self) -> None:
        return None

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(HANDED_OVER_EVERY_S):
            self._hand_over()
        self._hand_over()

    def _hand_over(self) -> None:
        taken = [self._measurements.popleft() for _ in range(len(self._measurements))]
        for each in _summed(taken):
            each.metric.take(each.value, dict(zip(each.metric.labels, each.labels, strict=False)))


@dataclass(frozen=True)
class _Recording:
    metric: _Metric
    measurements: deque[_Measurement]

    def record(self, value: float, *labels: str) -> None:
        if len(labels) != len(self.metric.labels):
            raise ValueError(f"labels {self.metric.labels} are given the values {labels}")
        self.measurements.append(_Measurement(self.metric, value, labels))


def _summed(measurements: list[_Measurement]) -> Iterator[_Measurement]:
    """The same in order, but with one measurement where they add up."""
    sums: dict[tuple[_Metric, tuple[str, ...]], float] = {}
    for each in measurements:
        if each.metric.adds_up:
            key = each.metric, each.labels
            sums[key] = sums.get(key, 0.0) + each.value
        else:
            yield each
    for (metric, labels), value in sums.items():
        yield _Measurement(metric, value, labels)
