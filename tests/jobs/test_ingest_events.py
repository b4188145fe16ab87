"""The job as a person runs it: what it accepts, what it quarantines, what it refuses, and what is left on the disk."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import polars as pl
import psutil
import pytest

from data.dataset import open_dataset

MAPPED = ["--columns", "user_id=uid", "item_id=product", "event_time=ts", "value=stars"]
GOOD = "".join(f"{user},{item},{1_700_000_000 + n},4\n" for user in ("a b", "Ж/'\"") for n, item in enumerate("xyz"))
CSV = "uid,product,ts,stars\n" + GOOD.replace("Ж/'\"", '"Ж/\'"""')


def run(home: Path, *arguments: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TOWERLINE_HOME": str(home), "COLUMNS": "120"}
    command = [sys.executable, "-m", "jobs.ingest_events", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False, **options)


def write(path: Path, content: str | bytes = CSV) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_parquet(path: Path, **changes: object) -> Path:
    table = {"user_id": ["a", "b"] * 4, "item_id": ["x"] * 8, "event_time": [1_700_000_000 + n for n in range(8)]}
    pl.DataFrame({**table, **changes}).write_parquet(path)
    return path


def is_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


def test_a_persons_own_files(tmp_path: Path) -> None:
    items = write(tmp_path / "items.csv", "product,name,kind,price\nx,The X,a|b,1.5\nunseen,Unseen,c,2\n")
    users = write(tmp_path / "users.csv", "uid,plan\na b,free\n")
    bad = "a b,x,1700000000,4\na b,y,99999999999,4\na b,z,1700000009,nan\n,x,1700000000,4\nlonely,x,1700000000,1\nx\n"
    done = run(
        tmp_path / "home", "--dataset", "shop", "--events", write(tmp_path / "e.csv", CSV + bad), *MAPPED,
        "--time-unit", "s", "--event-type", "stars", "--items", items, "--item-title", "name",
        "--item-attributes", "kind,price", "--users", users, "--user-attributes", "plan",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(tmp_path / "home", "shop")
    assert dataset.events()["user_id"].unique().sort().to_list() == ["a b", "lonely", "Ж/'\""]
    assert dataset.events()["event_type"].unique().to_list() == ["stars"]
    assert dataset.items().row(0) == ("x", "The X", ["kind=a", "kind=b", "price=1.5"])
    assert dataset.users().rows() == [("a b", ["plan=free"])]
    for line in (
        "rows read      12",
        "events         7",
        "users / items  3 / 4",
        "from           2023-11-14 22:13:20 UTC",
        "quarantined    5",
        "1 events: duplicate event: the same row was there before",
        "1 events: event_time is in the future",
        "1 events: value is NaN",
        "1 events: user_id is empty",
        "1 events: wrong number of fields: 1 instead of 4",
        f"written to {dataset.path}",
    ):
        assert line in done.stdout
    assert dataset.quarantine()["line"].to_list() == [8, 9, 10, 11, 13]
    report = json.loads((tmp_path / "home" / "reports" / "ingest_events.json").read_text())
    figures = {"rows_read": 12, "already_there": 0, "events": 7, "users": 3, "items": 4, "quarantined": 5}
    assert report["figures"] == figures
    assert report["data_version"] == dataset.manifest.data_version


def test_movielens_needs_no_files(tmp_path: Path) -> None:
    done = run(tmp_path, "--dataset", "movielens-100k")
    assert done.returncode == 0, done.stderr
    assert "users / items  943 / 1,682" in done.stdout
    assert "quarantined    0" in done.stdout
    assert open_dataset(tmp_path, "movielens-100k").manifest.events == 100_000


@pytest.mark.cluster
def test_adding_and_repeating(tmp_path: Path) -> None:
    home, tree = tmp_path / "home", tmp_path / "tree"
    for day, name in (("2024-01-01", "a.jsonl"), ("2024-01-02", "b.jsonl")):
        rows = [
            {"user_id": f"u{n % 3}", "item_id": f"{day}{n}", "event_time": f"{day}T0{n}:00:00+01:00"} for n in range(9)
        ]
        (tree / f"date={day}").mkdir(parents=True)
        write(tree / f"date={day}" / name, "".join(json.dumps(row) + "\n" for row in rows))
    first = run(home, "--dataset", "mine", "--events", f"file://{tree}/*/a.jsonl")
    assert first.returncode == 0, first.stderr
    everything = ["--dataset", "mine", "--events", tree, "--partitions", "date=2024-01-01..2024-01-02", "--append"]
    second = run(home, *everything)
    assert "already there  9" in second.stdout
    assert "events         18" in second.stdout
    folders = sorted((home / "datasets" / "mine").iterdir())
    third = run(home, *everything)
    assert "already there  18" in third.stdout
    assert "nothing new, so nothing was written; it is in" in third.stdout
    assert sorted((home / "datasets" / "mine").iterdir()) == folders


@pytest.mark.cluster
def test_a_job_that_is_killed_leaves_nothing_to_be_seen(tmp_path: Path) -> None:
    """Killed in each step, together with its Ray; what another run makes of it is the same, byte for byte."""
    home, events = tmp_path / "home", many(tmp_path)
    arguments = ["--dataset", "mine", "--events", str(events), *MAPPED, "--time-unit", "s"]
    command = [sys.executable, "-m", "jobs.ingest_events", *arguments]
    for left_behind in ("work/progress-*", "by_user/*", "by_item/*"):
        while not killed_at(f"datasets/mine/.part-*/{left_behind}", home, command):
            shutil.rmtree(home)  # It was done before anybody looked.
        assert not (home / "datasets" / "mine" / "current").exists()
    assert run(home, *arguments).returncode == 0
    assert run(tmp_path / "other", *arguments).returncode == 0
    there, here = open_dataset(home, "mine"), open_dataset(tmp_path / "other", "mine")
    assert [path.name for path in there.path.parent.iterdir() if path.name.startswith(".")] == []
    files = [path.relative_to(here.path) for path in here.path.rglob("*") if path.suffix == ".parquet"]
    assert all((there.path / file).read_bytes() == (here.path / file).read_bytes() for file in files)
    assert len(files) == 11


def killed_at(pattern: str, home: Path, command: list[str]) -> bool:
    """Kill the job and all it has started once there is such a file; whether there was one before it ended."""
    environment = {**os.environ, "TOWERLINE_HOME": str(home)}
    job = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    started = psutil.Process(job.pid)
    while not any(home.glob(pattern)):
        if job.poll() is not None:
            assert job.returncode == 0
            return False
        time.sleep(0.001)
    family = [started, *started.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    job.wait()
    return not (home / "datasets" / "mine" / "current").exists()


def truncated(folder: Path) -> Path:
    path = write_parquet(folder / "cut.parquet")
    return write(path, path.read_bytes()[:-20])


MISTAKES: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "a missing file": (
        lambda folder: folder / "gone.csv",
        MAPPED,
        "gone.csv does not exist; pass a file, a folder or a glob of .parquet",
    ),
    "a truncated file": (truncated, [], "cut.parquet is no Parquet file, truncated or corrupt"),
    "a missing column": (
        lambda folder: write(folder / "e.csv"),
        [],
        "has no column 'user_id'; it has 'uid', 'product', 'ts', 'stars'. Name yours: --columns user_id=YOUR_COLUMN",
    ),
    "an empty file": (lambda folder: write(folder / "e.csv", ""), MAPPED, "is empty: it has no header and no rows"),
    "only bad rows": (
        lambda folder: write(folder / "e.csv", "uid,product,ts,stars\na,x,1700000000,nan\n"),
        [*MAPPED, "--time-unit", "s"],
        "none of its 1 rows is an event; 1 of them: value is NaN (line 2:",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_refused_with_one_clear_line_and_nothing_written(mistake: str, tmp_path: Path) -> None:
    make, options, message = MISTAKES[mistake]
    home = tmp_path / "home"
    is_refused(run(home, "--dataset", "mine", "--events", make(tmp_path), *options), message)
    assert not home.exists()


def test_without_events_it_says_which_data_set_needs_none(tmp_path: Path) -> None:
    is_refused(run(tmp_path / "home", "--dataset", "mine"), "--events is missing: data set 'mine' needs a file")
    is_refused(run(Path("relative"), "--dataset", "mine"), "TOWERLINE_HOME")


def many(folder: Path) -> Path:
    rows = "".join(f"u{n % 50},i{n * 7919 % 10_007},{1_600_000_000 + n * n},{n % 5}\n" for n in range(20_000))
    return write(folder / "many.csv", "uid,product,ts,stars\n" + rows)


@pytest.mark.cluster
def test_a_full_disk(tmp_path: Path) -> None:
    """A tmpfs of 700 KiB, in a mount namespace of its own."""
    disk, events, small = tmp_path / "disk", many(tmp_path), write(tmp_path / "e.csv")
    disk.mkdir()
    job = f"{sys.executable} -m jobs.ingest_events --dataset mine {' '.join(MAPPED)} --time-unit s --events"
    script = f"""
        mount -t tmpfs -o size=700k tmpfs {disk} || exit 99
        {job} {small} >/dev/null || exit 98
        find {disk} | sort >{tmp_path}/before
        {job} {events}; echo "status $?"
        find {disk} | sort >{tmp_path}/after
        df --output=pcent {disk} | tail -1
    """
    unshare = shutil.which("unshare") or "unshare"
    environment = {**os.environ, "TOWERLINE_HOME": str(disk / "home")}
    done = subprocess.run(
        [unshare, "--map-root-user", "--mount", "sh", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("status 2\n")
    assert "no space left on the disk; free some, or set TOWERLINE_HOME" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text()
    assert len((tmp_path / "after").read_text().splitlines()) > 5
