"""The first signal asks, the second interrupts, and afterwards all is as before."""

import signal

import pytest

from cluster.signals import stopping_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_asks_and_the_second_does_what_it_did_before(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    seen: list[int] = []
    signal.signal(number, lambda number, _: seen.append(number))
    try:
        with stopping_on_signals() as stop:
            assert not stop.is_set()
            signal.raise_signal(number)
            assert stop.is_set()
            assert seen == []
            signal.raise_signal(number)
            assert seen == [number]
        signal.raise_signal(number)
        assert seen == [number, number]
    finally:
        signal.signal(number, before)


def test_without_a_signal_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals():
        pass
    assert signal.getsignal(signal.SIGTERM) is before
