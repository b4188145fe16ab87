"""What every test shares: the environment, one Ray session, and no silent skips in CI."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cluster.environment import prepare_environment

if TYPE_CHECKING:
    from cluster.local_cluster import LocalCluster
    from cluster.session import RaySession
    from cluster.settings import Settings
    from tests.data.servers import RedisServer

os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "0.5")
for name in [name for name in os.environ if name.startswith(("TOWERLINE_", "MLFLOW_TRACKING", "RAY_ADDRESS"))]:
    if name != "TOWERLINE_CACHE":
        del os.environ[name]
prepare_environment()


@pytest.fixture(scope="session")
def ray_session() -> Iterator["RaySession"]:
    """The one Ray session of the suite, started by the first test that asks for it."""
    from cluster.session import connect
    from cluster.settings import Settings

    with tempfile.TemporaryDirectory(prefix="towerline-home-") as home, connect(Settings(home=Path(home))) as session:
        yield session


@pytest.fixture(scope="session")
def local_cluster_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Settings"]:
    """Of the one cluster of the suite as `make cluster-up` starts it: free ports and a home of its own."""
    from cluster.local_cluster import down
    from cluster.settings import Settings

    settings = Settings(home=tmp_path_factory.mktemp("cluster-home"), dashboard_port=0)
    yield settings
    down(settings)


@pytest.fixture
def local_cluster(local_cluster_settings: "Settings") -> "tuple[Settings, LocalCluster]":
    """That cluster, which is started by the first test that asks for it, and again by one that finds it dead."""
    from cluster.local_cluster import up

    cluster, _ = up(local_cluster_settings)
    return local_cluster_settings, cluster


@pytest.fixture(scope="session")
def redis_server() -> "Iterator[RedisServer]":
    """The one Redis of the suite. A test that stops the server starts one of its own."""
    from tests.data.servers import RedisServer

    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: "RedisServer") -> str:
    """Address of the suite's Redis, emptied."""
    import redis

    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def kafka_bootstrap() -> Iterator[str]:
    """host:port of the one Kafka broker of the suite. A test takes topics and groups of its own."""
    from tests.data.servers import KafkaBroker

    with KafkaBroker() as broker:
        yield broker.bootstrap


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI a skipped test is a failed run: nobody would read that it was skipped."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") == "true" and reporter is not None and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
