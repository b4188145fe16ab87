"""Versions of a folder: written beside the one in use, made current when complete, or gone without a trace."""

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.errors import TowerlineError
from cluster.files import sync
from data.folder_lock import locked, remove_abandoned

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
            sync(file)
        sync(self.path)
        version = self._folder / f"{name}-{uuid.uuid4().hex[:6]}"
        with locked(self._folder):
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
        with locked(part):
            remove_abandoned(folder.glob(".part-*"))
            yield NewVersion(folder, part)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        _remove_empty(missing)


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
    sync(folder)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink() and not old.name.startswith(".") and old not in (previous, version):
            shutil.rmtree(old, ignore_errors=True)


def _remove_empty(folders: list[Path]) -> None:
    """Innermost first, as far as they are empty."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
