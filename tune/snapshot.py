"""What `Tuner.restore` reads, kept whole.

Tune writes its state into a folder of its own and copies it, file by file and in place, to the experiment's folder: a
kill at that moment leaves files that are cut short or do not belong together. So a copy is kept here that is replaced
as a whole, taken where Tune has just finished writing, and put back before a search is gone on with.
"""

import json
import os
import shutil
from pathlib import Path

PERIOD_S = 1.0
"""Seconds between two states that Tune writes, and so what a kill can cost of its bookkeeping. A training that ended
in between is not repeated, for its own folder says so."""

_STATES = ("experiment_state-*.json", "search_gen_state-*.json", "searcher-state-*.pkl", "callback-states-*.pkl")


class Snapshots:
    """Copies of an experiment's state, in `folder/state`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept = folder / "state"
        self._newest = 0

    def take(self, written: Path) -> None:
        """Copy what Tune wrote into `written`, if it is new and tells of a trial. Not to be called while it writes."""
        states = [max(found, key=_age) for pattern in _STATES if (found := list(written.glob(pattern)))]
        newest = max(map(_age, states), default=0)
        if newest <= self._newest or not json.loads(states[0].read_text()).get("trial_data"):
            return
        self._newest = newest
        part, old = self.folder / "state.part", self.folder / "state.old"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        for path in states:
            shutil.copy2(path, part)
        if self._kept.exists():
            shutil.rmtree(old, ignore_errors=True)
            self._kept.rename(old)
        part.rename(self._kept)
        shutil.rmtree(old, ignore_errors=True)

    def put_back(self) -> bool:
        """Give Tune the last copy; False if there is none."""
        kept = self._kept if self._kept.exists() else self.folder / "state.old"
        if not kept.exists():
            return False
        for pattern in _STATES:
            for path in self.folder.glob(pattern):
                path.unlink()
        for path in kept.iterdir():
            shutil.copy2(path, self.folder)
        return True

    def forget(self) -> None:
        """The search cannot be gone on with."""
        for name in ("state", "state.old"):
            shutil.rmtree(self.folder / name, ignore_errors=True)


def _age(path: Path) -> int:
    return path.stat().st_mtime_ns


def write_state_often() -> None:
    """Tune asks the environment how often it should write its state."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", str(PERIOD_S))
