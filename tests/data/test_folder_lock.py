"""Whoever holds a folder's lock keeps others out, and keeps it from being taken for abandoned."""

import threading
from pathlib import Path

from data.folder_lock import locked, remove_abandoned


def test_the_second_waits_and_is_told_that_the_folder_has_moved(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    seen: list[bool] = []

    def second() -> None:
        with locked(folder) as is_there:
            seen.append(is_there)

    waiting = threading.Thread(target=second)
    with locked(folder) as is_there:
        assert is_there
        waiting.start()
        waiting.join(0.1)
        assert seen == []
        folder.rename(tmp_path / "renamed")
    waiting.join(120)
    assert seen == [False]


def test_only_what_nobody_holds_is_removed(tmp_path: Path) -> None:
    held, left, link = (tmp_path / name for name in ("held", "left", "link"))
    held.mkdir()
    left.mkdir()
    (left / "file").touch()
    link.symlink_to(held)
    with locked(held):
        remove_abandoned([held, left, link, tmp_path / "gone"])
        assert list(tmp_path.iterdir()) == [held]
    remove_abandoned([held])
    assert list(tmp_path.iterdir()) == []
