from pathlib import Path

import pyarrow.fs as pafs
import pytest

from cluster.errors import TowerlineError
from data.sources import location
from data.sources.location import find_files, is_address, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://KEY:SE/CRET@bucket/a?endpoint_override=h:1&scheme=http", "s3://KEY:SE/CRET@bucket/a"),
        ("s3://KEY:SECRET@bucket/a/*.csv?region=x", "s3://bucket/a/*.csv"),
        ("postgresql://me:pa@ss@host/db?sslmode=require", "postgresql://host/db"),
        ("s3://bucket/a?.csv", "s3://bucket/a?.csv"),
        ("/data/a@b=c?.csv", "/data/a@b=c?.csv"),
    ],
)
def test_secrets_are_not_shown(address: str, shown: str) -> None:
    """A slash in a password must be written %2F, or nobody can tell where it ends."""
    assert without_secrets(address) == shown


def test_what_is_an_address() -> None:
    assert all(map(is_address, ["s3://b", "file:///a", "kafka://h/t"]))
    assert not any(map(is_address, ["/a/b", "a.csv", "c:/x"]))


def test_names_of_files_hold_no_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object store whose buckets are folders here."""
    (tmp_path / "bucket" / "raw").mkdir(parents=True)
    (tmp_path / "bucket" / "raw" / "e.csv").write_text("n\n1\n")

    class Store(pafs.FileSystem):
        @staticmethod
        def from_uri(uri: str) -> tuple[pafs.FileSystem, str]:
            path = uri.partition("?")[0].rpartition("@")[2].rstrip("/")
            return pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), path

    monkeypatch.setattr(location.pafs, "FileSystem", Store)
    for address in ("s3://KEY:SECRET@bucket/raw?region=x", "s3://KEY:SECRET@bucket/raw/*.csv?region=x"):
        (file,) = find_files(address)
        assert (file.name, file.path, file.size) == ("s3://bucket/raw/e.csv", "bucket/raw/e.csv", 4)
        with file.open() as opened:
            assert opened.read() == b"n\n1\n"
    for address in ("s3://KEY:SECRET@bucket/none?region=x", "s3://KEY:SECRET@bucket/raw/*.gz?region=x"):
        with pytest.raises(TowerlineError) as error:
            find_files(address)
        assert "SECRET" not in str(error.value)
