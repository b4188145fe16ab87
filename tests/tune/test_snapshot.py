import json
import os
from pathlib import Path

from tune.snapshot import Snapshots


def write_state(folder: Path, session: str, text: str, moment: int, trials: int = 1) -> None:
    """As Tune writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        f"experiment_state-{session}.json": json.dumps({"trial_data": [text] * trials}),
        f"searcher-state-{session}.pkl": text,
        f"callback-states-{session}.pkl": text,
        f"search_gen_state-{session}.json": text,
    }
    for name, content in files.items():
        (folder / name).write_text(content)
        os.utime(folder / name, ns=(moment, moment))


def state(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}


def test_the_last_whole_state_is_put_back_in_place_of_what_a_kill_left(tmp_path: Path) -> None:
    folder, written = tmp_path / "search", tmp_path / "written"
    folder.mkdir()
    snapshots = Snapshots(folder)
    assert not snapshots.put_back()
    write_state(written, "a", "first", 1)
    snapshots.take(written)
    write_state(written, "a", "second", 2)
    snapshots.take(written)
    write_state(folder, "a", "cut sho", 3)
    write_state(folder, "b", "", 4)
    (folder / "tuner.pkl").write_text("stays")
    assert Snapshots(folder).put_back()
    assert state(folder) == state(written) | {"tuner.pkl": "stays"}


def test_of_several_sessions_the_newest_is_kept(tmp_path: Path) -> None:
    folder, written = tmp_path / "search", tmp_path / "written"
    folder.mkdir()
    write_state(written, "2026-01-01", "old", 1)
    write_state(written, "2026-01-02", "new", 2)
    Snapshots(folder).take(written)
    assert Snapshots(folder).put_back()
    assert len(state(folder)) == 4
    assert all("2026-01-02" in name for name in state(folder))


def test_a_state_without_trials_is_none(tmp_path: Path) -> None:
    folder, written = tmp_path / "search", tmp_path / "written"
    folder.mkdir()
    write_state(written, "a", "text", 1, trials=0)
    Snapshots(folder).take(written)
    assert not Snapshots(folder).put_back()


def test_a_kill_between_two_copies_leaves_one_of_them(tmp_path: Path) -> None:
    folder, written = tmp_path / "search", tmp_path / "written"
    folder.mkdir()
    write_state(written, "a", "text", 1)
    snapshots = Snapshots(folder)
    snapshots.take(written)
    (folder / "state").rename(folder / "state.old")
    (folder / "state.part").mkdir()
    assert snapshots.put_back()
    assert state(folder) == state(written)
    snapshots.forget()
    assert not snapshots.put_back()
