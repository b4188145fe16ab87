"""Refused messages are on the disk, once each, whoever writes them and however a writer ended."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from data.online.stream_quarantine import Refused, StreamQuarantine
from data.sources.stream import Message

SENT = datetime(2024, 2, 3, 23, 59, tzinfo=UTC)


def refused(offset: int, stream: str = "shop", partition: int | None = 1, time: datetime | None = SENT) -> Refused:
    return Refused(Message(stream, partition, str(offset), b"nonsense", time), "not JSON", 3)


def records(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_file_per_day_and_partition(tmp_path: Path) -> None:
    assert StreamQuarantine(tmp_path).add([refused(1), refused(2), refused(3, partition=2)]) == 3
    file = tmp_path / "shop" / "date=2024-02-03" / "partition-1.jsonl"
    record = records(file)[0]
    assert record.pop("key") == refused(1).message.key
    assert datetime.fromisoformat(str(record.pop("quarantined"))).tzinfo
    assert record == {
        "position": "shop/1/1",
        "sent": SENT.isoformat(),
        "rule": "not JSON",
        "tries": 3,
        "raw": "nonsense",
    }
    assert len(records(file)) == 2
    assert len(records(file.with_name("partition-2.jsonl"))) == 1


def test_a_redis_stream_of_any_name_stays_in_the_folder(tmp_path: Path) -> None:
    names = ["../up", "..", "a/b", "Ж", "x" * 1_000]
    added = StreamQuarantine(tmp_path).add([refused(1, name, partition=None, time=None) for name in names])
    assert added == len(names)
    assert len(list(tmp_path.glob("*/date=unknown/entries.jsonl"))) == len(names)


def test_what_is_delivered_again_is_not_written_again(tmp_path: Path) -> None:
    first, second = StreamQuarantine(tmp_path), StreamQuarantine(tmp_path)
    assert first.add([refused(1), refused(1)]) == 1
    assert second.add([refused(1), refused(2)]) == 1
    assert first.add([refused(1), refused(2), refused(3)]) == 1
    assert StreamQuarantine(tmp_path).add([refused(1), refused(2), refused(3)]) == 0
    file = next(tmp_path.rglob("*.jsonl"))
    assert [record["position"] for record in records(file)] == ["shop/1/1", "shop/1/2", "shop/1/3"]


def test_half_a_line_that_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    StreamQuarantine(tmp_path).add([refused(1)])
    file = next(tmp_path.rglob("*.jsonl"))
    with file.open("a") as opened:
        opened.write('{"key": "half')
    assert StreamQuarantine(tmp_path).add([refused(1), refused(2)]) == 1
    assert [record["position"] for record in records(file)] == ["shop/1/1", "shop/1/2"]


@pytest.mark.parametrize("left", ["", '{"key": "half', f'{{"key": "{"Ж" * 2_000}"}}\n'])
def test_a_file_that_was_taken_away_under_a_running_job_is_begun_anew(tmp_path: Path, left: str) -> None:
    quarantine = StreamQuarantine(tmp_path)
    for _ in range(2):
        quarantine.add([refused(1), refused(2)])
    file = next(tmp_path.rglob("*.jsonl"))
    file.rename(file.with_suffix(".old"))
    if left:
        file.write_text(left)
    assert quarantine.add([refused(2), refused(3)]) == 2
    assert [record.get("position") for record in records(file)][-2:] == ["shop/1/2", "shop/1/3"]
    assert StreamQuarantine(tmp_path).add([refused(2), refused(3), refused(4)]) == 1


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path, limit_files: Callable[[int], None]) -> None:
    quarantine = StreamQuarantine(tmp_path)
    quarantine.add([refused(1)])
    file = next(tmp_path.rglob("*.jsonl"))
    before = file.read_bytes()
    limit_files(len(before) + 10)
    with pytest.raises(TowerlineError, match=r"writing .*partition-1.jsonl: the file would be larger than the limit"):
        quarantine.add([refused(number) for number in range(2, 100)])
    assert file.read_bytes() == before
    limit_files(-1)
    assert quarantine.add([refused(number) for number in range(1, 100)]) == 98
    assert [record["position"] for record in records(file)] == [f"shop/1/{number}" for number in range(1, 100)]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "shop").write_text("in the way")
    with pytest.raises(TowerlineError, match="a part of the path is a file"):
        StreamQuarantine(tmp_path).add([refused(1)])
