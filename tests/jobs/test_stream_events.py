"""The job as a person runs it: from a real stream into the online store, until it is empty or stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from cluster.provenance import ROOT
from cluster.settings import Settings
from data.online.store import OnlineStore, open_online_store
from data.views import USER
from tests.data.consumer import event
from tests.data.servers import RedisServer
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the job; what still runs at the end is ended."""
    started: list[subprocess.Popen[str]] = []

    def start(home: Path, *arguments: str, online_store: str = "") -> "subprocess.Popen[str]":
        settings = {"TOWERLINE_HOME": str(home), "TOWERLINE_ONLINE_STORE": online_store, "PYTHONUNBUFFERED": "1"}
        command = [sys.executable, "-m", "jobs.stream_events", "--dataset", "shop", "--from", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, cwd=ROOT, env={**os.environ, **settings}, text=True, **pipes))
        return started[-1]

    yield start
    for job in started:
        if job.poll() is None:
            job.kill()
            job.communicate()


def finish(job: "subprocess.Popen[str]", status: int = 0) -> tuple[str, str]:
    output, errors = job.communicate(timeout=600)
    assert job.returncode == status, errors
    return output, errors


def store(home: Path) -> OnlineStore:
    return open_online_store(Settings(home=home), "shop")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connected:
        yield connected


def test_until_empty(start: Start, redis_server: RedisServer, client: redis.Redis, tmp_path: Path) -> None:
    address = f"redis://default:any@127.0.0.1:{redis_server.port}/0?stream=shop"
    for number in range(30):
        client.xadd("shop", {"event": event(number)})
    client.xadd("shop", {"event": b"nonsense"})
    client.xadd("shop", {"event": event(31, value=7)})
    rules = tmp_path / "rules.toml"
    rules.write_text('[[events.rules]]\nexpect = "range"\ncolumn = "value"\nmin = 0\nmax = 5\n')
    output, errors = finish(start(tmp_path, address, "--until-empty", "--expectations", str(rules)))
    assert "30 events handled" in output
    assert "2 messages quarantined" in output
    assert store(tmp_path).appended_events().height == 30
    (file,) = (tmp_path / "quarantine" / "shop").rglob("*.jsonl")
    assert [json.loads(line)["rule"] for line in file.read_text().splitlines()][1].startswith("value in 0..5")
    report = (tmp_path / "reports" / "stream_events.json").read_text()
    assert json.loads(report)["figures"]["events/handled"] == 30
    assert "default:any" not in output + errors + report
    output, _ = finish(start(tmp_path, address, "--until-empty"))
    assert "nothing new, no events to handle" in output
    assert store(tmp_path).appended_events().height == 30


def test_an_event_is_online_at_once_and_sigterm_ends(
    start: Start, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    job = start(tmp_path, f"{redis_url}?stream=shop")
    try:
        _events_come_online_one_by_one(client, tmp_path)
    finally:
        job.send_signal(signal.SIGTERM)
        output, _ = finish(job)
    assert "following redis://" in output
    assert "20 events handled" in output
    assert json.loads((tmp_path / "reports" / "stream_events.json").read_text())["figures"]["p50_ms/delay"] < 1_000


def _events_come_online_one_by_one(client: redis.Redis, home: Path) -> None:
    client.xadd("shop", {"event": event(0, user_id="anna", event_time=datetime.now(UTC).isoformat())})
    opened = store(home)
    wait_until(lambda: bool(opened.read(USER, ["anna"], datetime.now(UTC))["known"][0]))
    for number in range(1, 20):
        client.xadd("shop", {"event": event(number, user_id="anna", event_time=datetime.now(UTC).isoformat())})
        wait_until(lambda count=number: opened.read(USER, ["anna"], datetime.now(UTC))["user_event_count"][0] > count)


def test_a_killed_job_goes_on_without_loss_or_duplicate(
    start: Start, client: redis.Redis, redis_url: str, tmp_path: Path
) -> None:
    sending = client.pipeline(transaction=False)
    for number in range(20_000):
        sending.xadd("shop", {"event": event(number)})
    sending.execute()
    for seconds in (0.3, 0.6, 0.9):
        job = start(tmp_path, f"{redis_url}?stream=shop&member=one")
        assert job.stdout is not None
        assert "following" in job.stdout.readline()
        time.sleep(seconds)
        job.kill()
        job.communicate()
    finish(start(tmp_path, f"{redis_url}?stream=shop&member=one", "--until-empty"))
    events = store(tmp_path).appended_events()
    assert events.height == events["item_id"].n_unique() == 20_000
    assert not (tmp_path / "quarantine").exists()


def test_an_empty_stream_and_a_wrong_address_are_said(start: Start, redis_url: str, tmp_path: Path) -> None:
    output, _ = finish(start(tmp_path, f"{redis_url}?stream=shop", "--until-empty"))
    assert "nothing new, no events to handle" in output
    for address, message in [
        ("redis://127.0.0.1:1/0?stream=shop", "does not answer"),
        ("events.csv", "is no stream; expected e.g. kafka://"),
    ]:
        output, errors = finish(start(tmp_path, address), status=2)
        assert message in errors
        assert len(errors.strip().splitlines()) == 1


def test_a_redis_that_is_both_goes_away_and_comes_back(start: Start, tmp_path: Path) -> None:
    with RedisServer() as server, redis.Redis.from_url(server.url) as client:
        settings = Settings(home=tmp_path, online_store=f"redis://127.0.0.1:{server.port}/1")
        job = start(tmp_path, f"{server.url}?stream=shop", online_store=settings.online_store)
        opened = open_online_store(settings, "shop")
        for number in range(3_000):
            client.xadd("shop", {"event": event(number)})
            if number % 1_000 == 500:
                wait_until(lambda: opened.appended_events().height > 0)
                server.kill()
                time.sleep(0.5)
                server.start()
        wait_until(lambda: opened.appended_events().height == 3_000)
        job.send_signal(signal.SIGTERM)
        finish(job)
        events = opened.appended_events()
        opened.close()
    assert events["item_id"].n_unique() == events.height == 3_000
    assert not (tmp_path / "quarantine").exists()


def test_kafka(start: Start, kafka_bootstrap: str, tmp_path: Path) -> None:
    import confluent_kafka

    producer = confluent_kafka.Producer({"bootstrap.servers": kafka_bootstrap, "log_level": 0})
    for number in range(50):
        producer.produce("shop", json.dumps({"uid": "anna", "sku": number, "ts": 1_700_000_000 + number}))
    assert producer.flush(30) == 0
    mapping = ["--columns", "user_id=uid", "item_id=sku", "event_time=ts", "--time-unit", "s"]
    output, _ = finish(start(tmp_path, f"kafka://{kafka_bootstrap}/shop", "--until-empty", *mapping))
    assert "50 events handled" in output
    events = store(tmp_path).appended_events()
    assert sorted(events["item_id"], key=int) == [str(number) for number in range(50)]
    assert events["user_id"].unique().to_list() == ["anna"]
