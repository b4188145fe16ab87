"""Followers of streams in memory."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.online import streaming
from data.online.stream_quarantine import StreamQuarantine
from data.online.streaming import Follower
from tests.data.fake_stream import FakeStore, FakeStream


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Follower]:
    monkeypatch.setattr(streaming, "FIRST_WAIT_SECONDS", 0.001)

    def make(stream: FakeStream, store: FakeStore, **options: object) -> Follower:
        return Follower(stream, store.append_events, StreamQuarantine(tmp_path), **options)

    return make
