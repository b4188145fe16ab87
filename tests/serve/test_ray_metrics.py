"""What a replica measures is collected and handed to Ray by a thread of its own."""

from collections.abc import Callable, Iterator

import pytest
import ray.serve.metrics

from serve.metrics import Metrics
from serve.ray_metrics import HANDED_OVER_EVERY_S, OnRay
from tests.waiting import wait_for

Taken = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """What Ray's own metrics were handed, in order."""
    found: Taken = []

    def noting(original: Callable[..., None]) -> Callable[..., None]:
        def note(self: ray.serve.metrics.Counter, value: float, tags: dict[str, str]) -> None:
            found.append((self.info["name"], value, dict(tags)))
            original(self, value, tags)

        return note

    made = ray.serve.metrics
    for kind, method in ((made.Counter, "inc"), (made.Gauge, "set"), (made.Histogram, "observe")):
        monkeypatch.setattr(kind, method, noting(getattr(kind, method)))
    return found


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    made = Metrics(OnRay())
    yield made
    made.close()


def test_what_is_left_is_handed_over_at_the_end(taken: Taken) -> None:
    metrics = Metrics(OnRay())
    for seconds in (0.1, 0.2, 0.3):
        metrics.request("/v1/recommend", "200", seconds)
    metrics.request("/healthz", "503", 0.4)
    metrics.serves("one", {"ranker": "1"})
    metrics.serves("one", {"ranker": "1"}, now=False)
    metrics.close()
    assert sorted(taken, key=lambda each: each[0]) == [
        ("towerline_model_info", 1.0, {"variant": "one", "model": "ranker", "version": "1"}),
        ("towerline_model_info", 0.0, {"variant": "one", "model": "ranker", "version": "1"}),
        ("towerline_request_duration_seconds", 0.1, {"endpoint": "/v1/recommend"}),
        ("towerline_request_duration_seconds", 0.2, {"endpoint": "/v1/recommend"}),
        ("towerline_request_duration_seconds", 0.3, {"endpoint": "/v1/recommend"}),
        ("towerline_request_duration_seconds", 0.4, {"endpoint": "/healthz"}),
        ("towerline_requests_total", 3, {"endpoint": "/v1/recommend", "status": "200"}),
        ("towerline_requests_total", 1, {"endpoint": "/healthz", "status": "503"}),
    ]


def test_it_is_handed_over_soon(taken: Taken, metrics: Metrics) -> None:
    metrics.batch(16, 64)
    wait_for([("towerline_batch_fill_ratio", 0.25, {})], lambda: taken, seconds=20 * HANDED_OVER_EVERY_S)


def test_a_missing_label_is_an_error_where_it_is_recorded(metrics: Metrics) -> None:
    with pytest.raises(ValueError, match=r"labels \('endpoint', 'status'\) are given the values \('/healthz',\)"):
        next(iter(metrics._instruments.values())).record(1, "/healthz")
