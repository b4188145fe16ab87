"""The decision log keeps what it was given, loses at most a second to a kill, and never holds up an answer."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serve.decisions import Answered, Decision, DecisionLog, read_decisions
from tests.waiting import wait_until

WRITER = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from serve.decisions import Answered, Decision, DecisionLog
log = DecisionLog(Path(sys.argv[1]), sys.argv[2])
number = 0
while True:
    decision = Decision(decision_id=f"{sys.argv[2]}-{number}", kind="similar", at=datetime.now(UTC),
        replica=sys.argv[2], variant="v", models={}, request={}, answer=(), timings_ms={})
    log.write(decision)
    print(decision.decision_id, flush=True)
    number += 1
    time.sleep(0.001)
"""


def decision(number: int, **changes: object) -> Decision:
    values: dict[str, object] = {
        "decision_id": f"d{number}",
        "kind": "recommend",
        "at": datetime(2024, 5, 1, 12, tzinfo=UTC),
        "replica": "r/1",
        "variant": "champion",
        "models": {"two_tower": "3"},
        "request": {"user_id": "千 \n/", "count": 2},
        "user_features": {"history_items": ["a", "b"], "user_mean_value": 3.5},
        "candidates": {"item_id": ["a", "b"], "ranking_score": [0.25, float("nan")]},
        "answer": (Answered(item_id="a", score=0.25),),
        "timings_ms": {"total": 1.5},
    }
    return Decision.model_validate(values | changes)


def wait_until_handled(log: DecisionLog, count: int) -> None:
    """Until `count` decisions have been written or lost."""
    deadline = time.monotonic() + 120
    while log.state().written + log.state().dropped < count and time.monotonic() < deadline:
        time.sleep(0.005)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, "replica/1")
    for number in range(100):
        assert log.write(decision(number))
    log.close()
    found = list(read_decisions(tmp_path))
    assert [each.decision_id for each in found] == [f"d{number}" for number in range(100)]
    assert found[0].model_dump(exclude={"candidates"}) == decision(0).model_dump(exclude={"candidates"})
    assert found[0].candidates["item_id"] == ["a", "b"]
    assert log.state().written == 100
    assert log.state().dropped == 0
    (file,) = tmp_path.rglob("*.jsonl")
    assert file.parent.name == f"date={datetime.now(UTC):%Y-%m-%d}"
    assert file.name.startswith("replica-1-")
    log.close()


def test_a_decision_reaches_the_file_by_itself_without_a_close(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, "r")
    log.write(decision(1))
    wait_until_handled(log, 1)
    assert [each.decision_id for each in read_decisions(tmp_path)] == ["d1"]
    log.close()


def test_a_full_queue_drops_and_counts_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, disk = os.write, threading.Event()

    def slow_write(file: int, data: bytes) -> int:
        assert disk.wait(300)
        return real_write(file, data)

    monkeypatch.setattr("serve.decisions.os.write", slow_write)
    log = DecisionLog(tmp_path, "r", capacity=10)
    kept = sum(log.write(decision(number)) for number in range(1000))
    disk.set()  # Not before: whoever waited for the disk would not have come here.
    log.close()
    assert 10 <= kept < 1000
    assert log.state().written == kept == len(list(read_decisions(tmp_path)))
    assert log.state().dropped == 1000 - kept


def test_a_full_disk_is_counted_and_writing_goes_on_in_a_new_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half of the second line and refuses the rest."""
    real_write = os.write
    calls = 0

    def failing_write(file: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            return real_write(file, data[:20])
        if calls == 3:
            raise OSError(28, "No space left on device")
        return real_write(file, data)

    monkeypatch.setattr("serve.decisions.os.write", failing_write)
    log = DecisionLog(tmp_path, "r")
    for number in range(3):
        log.write(decision(number))
        wait_until_handled(log, number + 1)
    log.close()
    assert sorted(each.decision_id for each in read_decisions(tmp_path)) == ["d0", "d2"]
    assert log.state().dropped == 1
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_a_segment_that_is_large_enough_is_followed_by_another(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, "r", segment_bytes=1)
    for number in range(3):
        log.write(decision(number))
        wait_until_handled(log, number + 1)
    log.close()
    assert len(list(tmp_path.rglob("*.jsonl"))) == 3
    assert len(list(read_decisions(tmp_path))) == 3


def test_a_torn_last_line_is_skipped_and_a_broken_line_in_the_middle_is_not(tmp_path: Path) -> None:
    whole = decision(1).model_dump_json()
    (tmp_path / "torn.jsonl").write_text(f"{whole}\n{whole[:50]}")
    assert [each.decision_id for each in read_decisions(tmp_path / "torn.jsonl")] == ["d1"]
    (tmp_path / "broken.jsonl").write_text(f"{whole[:50]}\n{whole}\n")
    with pytest.raises(ValueError, match="Invalid JSON"):
        list(read_decisions(tmp_path / "broken.jsonl"))


def test_two_writers_killed_lose_at_most_the_end(tmp_path: Path) -> None:
    """Two replicas write into one folder and are killed with SIGKILL in the middle of it."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), name], stdout=subprocess.PIPE, text=True)
        for name in ("left", "right")
    ]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()

    def each_has_written() -> bool:
        replicas = [each.replica for each in read_decisions(tmp_path)]
        return min(replicas.count("left"), replicas.count("right")) > 200

    wait_until(each_has_written, 300, "both to write")
    said: list[int] = []
    for writer in writers:
        writer.send_signal(signal.SIGKILL)
        output, _ = writer.communicate()
        said.append(len(output.splitlines()))
    found = [each.decision_id for each in read_decisions(tmp_path)]
    for name, count in zip(("left", "right"), said, strict=True):
        kept = [decision_id for decision_id in found if decision_id.startswith(name)]
        assert kept == [f"{name}-{number}" for number in range(len(kept))]
        assert len(kept) > count / 2, "more than what was under way is lost"
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2


def test_a_line_is_plain_json(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path, "r")
    log.write(decision(7))
    log.close()
    (file,) = tmp_path.rglob("*.jsonl")
    assert json.loads(file.read_text())["request"]["user_id"] == "千 \n/"
