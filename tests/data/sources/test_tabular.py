from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.sources.tabular import open_table


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "e.parquet"
    kinds = pl.Series(["a", "b"] * 5000, dtype=pl.Categorical)
    pl.DataFrame({"n": range(10_000), "kind": kinds}).write_parquet(path, row_group_size=3000)
    return path


def test_parquet_rows_are_numbered_from_one(parquet: Path) -> None:
    table = open_table(parquet)
    chunks = list(table.chunks())
    assert table.columns() == ["n", "kind"]
    assert [line for chunk in chunks for line in chunk.lines] == list(range(1, 10_001))
    assert pl.concat([chunk.rows for chunk in chunks]).row(1) == (1, "b")
    assert not any(chunk.broken for chunk in chunks)


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_parquet_file_is_refused(parquet: Path, keep: int) -> None:
    parquet.write_bytes(parquet.read_bytes()[:keep])
    with pytest.raises(TowerlineError, match=r"e\.parquet is no Parquet file, truncated or corrupt"):
        open_table(parquet).columns()


def test_a_corrupt_page_is_refused(parquet: Path) -> None:
    content = bytearray(parquet.read_bytes())
    content[40:2040] = bytes(range(250)) * 8
    parquet.write_bytes(content)
    with pytest.raises(TowerlineError, match="truncated or corrupt"):
        list(open_table(parquet).chunks())


def test_suffix_and_delimiter_say_how_to_read(tmp_path: Path) -> None:
    for name, text, delimiter in [("a.tsv", "x\ty\n", None), ("a.csv", "x;y\n", ";"), ("b.CSV", "x\ty\n", "\\t")]:
        (tmp_path / name).write_text(text)
        assert open_table(tmp_path / name, delimiter).columns() == ["x", "y"]
    with pytest.raises(TowerlineError, match="--delimiter is ';;', expected one character"):
        open_table(tmp_path / "a.csv", ";;")


def test_no_such_file_a_folder_or_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"gone.csv does not exist; pass a file .parquet, .csv"):
        open_table(tmp_path / "gone.csv")
    with pytest.raises(TowerlineError, match="is a folder"):
        open_table(tmp_path)
    (tmp_path / "e.xlsx").write_text("")
    with pytest.raises(TowerlineError, match=r"e.xlsx: unknown kind of file; it must end in .parquet"):
        open_table(tmp_path / "e.xlsx")
