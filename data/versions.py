"""Versions of a folder: written beside the one in use, made current when complete, or gone without a trace."""

import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import TowerlineError

CURRENT = "current"


class NewVersion:
    """A version that is being written."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder = folder
        self.path = path
        """Temporary folder; holds what the version will hold."""

    def publish(self, name: str, after: Path | None = None) -> Path:
        """Make it the current version, under `name` and a random suffix; gives its folder.

        Raises TowerlineError if it was made from version `after` and that is no longer the current one.
        """
        for file in self.path.rglob("*"):
            _sync(file)
        _sync(self.path)
        version = self._folder / f"{name}-{uuid.uuid4().hex[:6]}"
        with _locked(self._folder):
            if after is not None and (self._folder / CURRENT).resolve() != after:
                raise TowerlineError(
                    f"{self._folder.name}: another job has written a version while this one added to {after.name}; run "
                    "the same command again"
                )
            _make_current(self._folder, self.path, version)
        return version


@contextmanager
def new_version(folder: Path) -> Iterator[NewVersion]:
    """A temporary folder beside the versions of `folder`; removed at the end unless it was published."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".part-{uuid.uuid4().hex}"
    part.mkdir()
    try:
        with _locked(part):
            _remove_abandoned(folder)
            yield NewVersion(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _remove_empty(missing)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which ends with the process at the latest."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _make_current(folder: Path, part: Path, version: Path) -> None:
    previous = (folder / CURRENT).resolve()
    link = part.with_name(f"{part.name}.link")
    part.rename(version)
    try:
        link.symlink_to(version.name)
        link.replace(folder / CURRENT)
    except OSError:
        link.unlink(missing_ok=True)
        shutil.rmtree(version, ignore_errors=True)
        raise
    _sync(folder)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink() and not old.name.startswith(".") and old not in (previous, version):
            shutil.rmtree(old, ignore_errors=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a killed writer left: a `.part-` folder that nobody holds the lock of."""
    for part in folder.glob(".part-*"):
        if part.is_symlink():
            part.unlink(missing_ok=True)
            continue
        try:
            descriptor = os.open(part, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
