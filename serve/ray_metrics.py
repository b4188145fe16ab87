"""Metrics as Ray's exporters show them: `ray_` before every name, deployment, replica and node among the labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.serve.metrics

from serve.metrics import Definition, Instrument


class OnRay:
    """Hands the metrics of a Serve replica to the exporter of its node."""

    def instrument(self, definition: Definition) -> Instrument:
        """See `serve.metrics.Backend`; so for all methods."""
        name, description = definition.name, definition.description
        labels: Any = definition.labels  # Ray's annotation allows for one only.
        match definition.kind:
            case "counter":
                return _Recording(labels, ray.serve.metrics.Counter(name, description, tag_keys=labels).inc)
            case "gauge":
                return _Recording(labels, ray.serve.metrics.Gauge(name, description, tag_keys=labels).set)
            case "histogram":
                buckets = list(definition.buckets)
                made = ray.serve.metrics.Histogram(name, description, boundaries=buckets, tag_keys=labels)
                return _Recording(labels, made.observe)

    def exposition(self) -> None:
        return None


@dataclass(frozen=True)
class _Recording:
    labels: tuple[str, ...]
    take: Callable[[float, dict[str, str]], None]

    def record(self, value: float, *labels: str) -> None:
        self.take(value, dict(zip(self.labels, labels, strict=True)))
