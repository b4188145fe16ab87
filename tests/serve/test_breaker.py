"""A stage that keeps failing is left alone, tried again after a pause, and trusted again when it answers."""

import pytest
from pydantic import ValidationError

from serve.breaker import BreakerConfig, CircuitBreaker

CONFIG = BreakerConfig(failures=3, window=5, open_s=10.0, trials=2, patience_s=0.25)


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker("ranking", CONFIG, clock)


def ticket_of(breaker: CircuitBreaker) -> int:
    ticket = breaker.admit()
    assert ticket is not None
    return ticket


def fail(breaker: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        breaker.record(ticket_of(breaker), "failed")


def test_failures_among_the_last_calls_open_it(breaker: CircuitBreaker) -> None:
    fail(breaker, 2)
    for _ in range(4):
        breaker.record(ticket_of(breaker), "answered")
    fail(breaker)
    assert breaker.state == "closed"
    fail(breaker, 2)
    assert breaker.state == "open"
    assert breaker.admit() is None


def test_after_a_pause_it_is_tried_and_closed(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 9.9
    assert breaker.admit() is None
    clock.now += 0.1
    first, second = ticket_of(breaker), ticket_of(breaker)
    assert breaker.state == "half_open"
    assert breaker.admit() is None
    breaker.record(first, "answered")
    assert breaker.state == "half_open"
    breaker.record(second, "answered")
    assert breaker.state == "closed"
    fail(breaker, 2)
    assert breaker.state == "closed"


def test_a_failed_trial_opens_it_anew(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10
    fail(breaker)
    assert breaker.state == "open"
    clock.now += 9
    assert breaker.admit() is None
    clock.now += 1
    assert breaker.admit() is not None


def test_a_trial_whose_caller_left_makes_room_for_another(breaker: CircuitBreaker, clock: Clock) -> None:
    fail(breaker, 3)
    clock.now += 10
    first, second = ticket_of(breaker), ticket_of(breaker)
    breaker.record(first, "unknown")
    breaker.record(second, "unknown")
    assert breaker.state == "half_open"
    assert breaker.admit() is not None


def test_calls_from_before_a_change_count_no_longer(breaker: CircuitBreaker, clock: Clock) -> None:
    early = [ticket_of(breaker) for _ in range(3)]
    fail(breaker, 3)
    clock.now += 10
    trial = ticket_of(breaker)
    for ticket in early:
        breaker.record(ticket, "failed")
    assert breaker.state == "half_open"
    breaker.record(trial, "answered")
    breaker.record(ticket_of(breaker), "answered")
    assert breaker.state == "closed"


def test_a_caller_in_a_hurry_is_no_failure_of_the_stage(breaker: CircuitBreaker) -> None:
    for _ in range(20):
        breaker.unanswered(ticket_of(breaker), 0.2)
    assert breaker.state == "closed"
    for _ in range(3):
        breaker.unanswered(ticket_of(breaker), 0.25)
    assert breaker.state == "open"


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValidationError, match="failures is 6, which is over window 5"):
        BreakerConfig(failures=6, window=5)
