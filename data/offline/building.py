"""A snapshot of examples that is being built: by one process at a time, and by the next if that one is killed.

It lies beside the place it will take, as `.building-<name>`. What a task has finished is noted when it is on the disk,
so that a build goes on where another one stopped; half a task leaves only a file that ends in `.part`. What is only
needed on the way is left to the machine to write when it likes, mostly never, and believed until the machine starts
anew. At the end the folder is renamed, and readers see all of it at once.
"""

import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from cluster.files import sync, write_atomically
from data.folder_lock import locked, remove_abandoned
from data.offline.store import MANIFEST_FILE, PART, FeatureManifest, has_examples, remove_old_snapshots

_PREFIX = ".building-"
_WORK = "work"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Building:
    """The folder of an unfinished snapshot. Whoever has it holds its lock."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        """Holds what the snapshot will hold."""
        self._target = target

    @property
    def work(self) -> Path:
        """What is needed on the way; not a part of the snapshot."""
        return self.path / _WORK

    def note(self, task: str) -> Any:
        """What a finished task said; None if it is not finished."""
        file = self._note(task)
        if not file.exists():
            return None
        finished = json.loads(file.read_text())
        return finished["note"] if finished["start"] in (None, machine_start()) else None

    def finish(self, task: str, note: Any, files: Iterable[Path]) -> None:
        """Note that a task is finished, once the files that it wrote are on the disk."""
        folders = set()
        for file in files:
            sync(file)
            folders.add(file.parent)
        for folder in folders:
            sync(folder)
        self._write_note(task, {"note": note, "start": None})

    def finish_work(self, task: str, note: Any) -> None:
        """Note that a task is finished whose files are only needed on the way."""
        self._write_note(task, {"note": note, "start": machine_start()})

    def publish(self, manifest: FeatureManifest) -> None:
        """Let readers see the snapshot, and remove the oldest ones of the same definition."""
        shutil.rmtree(self.work)
        for part in self.path.rglob(f".*{PART}"):
            part.unlink()
        write_atomically(self.path / MANIFEST_FILE, manifest.model_dump_json(indent=2) + "\n")
        sync(self.path / MANIFEST_FILE)
        sync(self.path)
        self.path.rename(self._target)
        sync(self._target.parent)
        remove_old_snapshots(self._target.parent)
        remove_abandoned(self._target.parent.glob(f"{_PREFIX}*"))

    def _write_note(self, task: str, content: dict[str, Any]) -> None:
        self._note(task).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._note(task), json.dumps(content))

    def _note(self, task: str) -> Path:
        return self.work / "finished" / f"{task}.json"


@cache
def machine_start() -> str:
    """Another one each time the machine starts; each process has its own where the system does not tell."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else uuid.uuid4().hex


@contextmanager
def building(target: Path) -> Iterator[Building | None]:
    """Go on with a snapshot, or begin it; waits for another process that is at it. None once it is there."""
    path = target.with_name(_PREFIX + target.name)
    while not has_examples(target):
        path.mkdir(parents=True, exist_ok=True)
        with locked(path) as is_there:
            if not is_there:
                continue
            yield Building(path, target)
            return
    yield None
