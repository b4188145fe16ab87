"""A store of each kind, and followers of streams in memory."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.settings import Settings
from data.online import streaming
from data.online.store import OnlineStore, open_online_store
from data.online.stream_quarantine import StreamQuarantine
from data.online.streaming import Follower
from tests.data.fake_stream import FakeStore, FakeStream


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.cluster)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """Of an online store of its own."""
    address = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return Settings(home=tmp_path, online_store=address)


@pytest.fixture
def store(settings: Settings) -> Iterator[OnlineStore]:
    """A store to write to."""
    store = open_online_store(settings, "small")
    yield store
    store.close()


@pytest.fixture
def follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Follower]:
    monkeypatch.setattr(streaming, "FIRST_WAIT_SECONDS", 0.001)

    def make(stream: FakeStream, store: FakeStore, **options: object) -> Follower:
        return Follower(stream, store.append_events, StreamQuarantine(tmp_path), **options)

    return make
