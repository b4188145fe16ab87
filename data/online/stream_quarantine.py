"""Where the messages go that are no events: JSON Lines by day, on the disk before the message is committed."""

import base64
import fcntl
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from data.disk import clear_disk_errors
from data.sources.stream import Message

LONGEST_NAME = 150


class Refused(NamedTuple):
    """A message that is no event."""

    message: Message
    rule: str
    """What it breaks."""
    tries: int
    """How often it was handed over."""


@dataclass
class StreamQuarantine:
    """`<folder>/<topic or stream>/date=YYYY-MM-DD/partition-N.jsonl`, by the day on which a message was sent.

    A message that is delivered again is not written again. Several consumers may write to the same folder.
    """

    folder: Path
    _known: dict[Path, "_Known"] = field(default_factory=dict)

    def add(self, refused: Sequence[Refused]) -> int:
        """Write those that are not there yet; they are on the disk when this returns. How many were new.

        Raises TowerlineError if the disk is full: nothing may be committed then.
        """
        by_file: dict[Path, list[Refused]] = {}
        for each in refused:
            by_file.setdefault(self._file(each.message), []).append(each)
        return sum(self._append(file, those) for file, those in by_file.items())

    def _file(self, message: Message) -> Path:
        day = f"date={message.time:%Y-%m-%d}" if message.time else "date=unknown"
        part = "entries" if message.partition is None else f"partition-{message.partition}"
        return self.folder / _file_name(message.stream) / day / f"{part}.jsonl"

    def _append(self, file: Path, refused: Sequence[Refused]) -> int:
        known = self._known.setdefault(file, _Known())
        with clear_disk_errors(f"writing {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a+b", buffering=0) as opened:
                fcntl.flock(opened, fcntl.LOCK_EX)
                known.read_on(opened)
                new = {each.message.key: _record(each) for each in refused if each.message.key not in known.keys}
                lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in new.values())
                _write(opened, lines.encode(), known.end)
        return len(new)


@dataclass
class _Known:
    """What has been seen of a file."""

    keys: set[str] = field(default_factory=set)
    end: int = 0
    """Bytes."""
    inode: int = 0

    def read_on(self, opened: FileIO) -> None:
        """Take in what has been added by anyone; half a line that a crash left is cut off.

        All is forgotten if somebody has removed the file, moved it away or emptied it.
        """
        status = os.fstat(opened.fileno())
        if status.st_ino != self.inode or status.st_size < self.end:
            self.keys.clear()
            self.inode, self.end = status.st_ino, 0
        opened.seek(self.end)
        added = opened.read()
        whole = added[: added.rfind(b"\n") + 1]
        self.keys.update(json.loads(line)["key"] for line in whole.splitlines())
        self.end += len(whole)
        opened.truncate(self.end)


def _write(opened: FileIO, lines: bytes, end: int) -> None:
    """Put lines at the end of a file and on the disk, all of them or none."""
    left = memoryview(lines)
    try:
        while left:
            left = left[opened.write(left) :]
        os.fsync(opened.fileno())
    except OSError:
        opened.truncate(end)
        raise


def _record(refused: Refused) -> dict[str, object]:
    message = refused.message
    return {
        "key": message.key,
        "position": message.position,
        "sent": None if message.time is None else message.time.isoformat(),
        "quarantined": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "rule": refused.rule,
        "tries": refused.tries,
        **_content(message.raw),
    }


def _content(raw: bytes) -> dict[str, str]:
    try:
        return {"raw": raw.decode()}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode()}


def _file_name(text: str) -> str:
    """A name for a folder: whatever is no letter, digit, dot, dash or underscore becomes `%` and its code."""
    escaped = re.sub(r"[^\w.-]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)
    return (f"%2E{escaped[1:]}" if escaped.startswith(".") else escaped)[:LONGEST_NAME]
