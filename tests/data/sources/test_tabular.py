import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.fs as pafs
import pytest

from cluster.errors import TowerlineError
from data.sources import parquet as parquet_module
from data.sources.chunk import Chunk
from data.sources.location import DataFile
from data.sources.tabular import FileSource, open_table


def chunks_of(source: FileSource) -> list[Chunk]:
    return [chunk for part in source.parts() for chunk in part.chunks()]


def rows_of(source: FileSource) -> list[dict[str, Any]]:
    return [row for chunk in chunks_of(source) for row in chunk.rows.to_dicts()]


@pytest.fixture
def parquet(tmp_path: Path) -> Path:
    path = tmp_path / "e.parquet"
    kinds = pl.Series(["a", "b"] * 5000, dtype=pl.Categorical)
    pl.DataFrame({"n": range(10_000), "kind": kinds}).write_parquet(path, row_group_size=3000)
    return path


def test_parquet_rows_are_numbered_from_one(parquet: Path) -> None:
    table = open_table(parquet)
    chunks = chunks_of(table)
    assert table.columns() == ["n", "kind"]
    assert [line for chunk in chunks for line in chunk.lines] == list(range(1, 10_001))
    assert pl.concat([chunk.rows for chunk in chunks]).row(1) == (1, "b")
    assert not any(chunk.broken for chunk in chunks)


def test_parquet_is_cut_by_row_groups(parquet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "ROWS_PER_PART", 6000)
    parts = open_table(parquet).parts()
    assert [next(iter(part.chunks())).lines[0] for part in parts] == [1, 6001]
    assert {part.name for part in parts} == {str(parquet)}
    lines = [line for part in reversed(parts) for chunk in part.chunks() for line in chunk.lines]
    assert sorted(lines) == list(range(1, 10_001))


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
        chunks_of(open_table(parquet))


def test_suffix_and_delimiter_say_how_to_read(tmp_path: Path) -> None:
    for name, text, delimiter in [("a.tsv", "x\ty\n", None), ("a.csv", "x;y\n", ";"), ("b.CSV", "x\ty\n", "\\t")]:
        (tmp_path / name).write_text(text)
        assert open_table(tmp_path / name, delimiter).columns() == ["x", "y"]
    with pytest.raises(TowerlineError, match="--delimiter is ';;', expected one character"):
        open_table(tmp_path / "a.csv", ";;")


def test_json_lines_are_text_exactly_as_written(tmp_path: Path) -> None:
    lines = [
        '{"id": 12345678901234567890, "v": 1.50, "t": ["a", "b"], "ok": true, "n": null}',
        "",
        '{"id": "ü", "o": {"a": [1]}}',
        "[1]",
        '{"id": ',
    ]
    path = tmp_path / "e.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    source = open_table(path)
    (chunk,) = chunks_of(source)
    assert chunk.rows.to_dicts() == [
        {"id": "12345678901234567890", "v": "1.50", "t": "a|b", "ok": "true", "n": None, "o": None},
        {"id": "ü", "v": None, "t": None, "ok": None, "n": None, "o": '{"a": ["1"]}'},
    ]
    assert list(chunk.lines) == [1, 3]
    assert [row[:2] for row in chunk.broken] == [
        (4, "not a JSON object"),
        (5, "not JSON, and the file ends there without a newline"),
    ]
    assert source.columns() == ["id", "v", "t", "ok", "n", "o"]
    assert not source.has_types


def test_json_lines_without_an_object_are_refused(tmp_path: Path) -> None:
    for text in ("", "\n", "1\n2\n"):
        (tmp_path / "e.jsonl").write_text(text)
        with pytest.raises(TowerlineError, match=r"e\.jsonl is empty: none of its first 1,000 lines is a JSON object"):
            open_table(tmp_path / "e.jsonl").columns()


def test_a_tree_of_partitions_is_one_table(tmp_path: Path) -> None:
    for day, row in [("2024-01-02", "2"), ("2024-01-01", "1")]:
        folder = tmp_path / "tree" / f"date={day}" / "shop=a%20b"
        folder.mkdir(parents=True)
        (folder / "part.csv").write_text(f"n\n{row}\n")
        (folder / "_SUCCESS.csv").write_text("")
        (folder / ".part.csv.crc").write_text("")
        (folder / "notes.txt").write_text("")
    for address in (tmp_path / "tree", f"file://{tmp_path}/tree", f"{tmp_path}/tree/*/*/*.csv", f"{tmp_path}/**/*.csv"):
        source = open_table(address)
        assert source.columns() == ["n", "date", "shop"]
        assert rows_of(source) == [
            {"n": "1", "date": "2024-01-01", "shop": "a b"},
            {"n": "2", "date": "2024-01-02", "shop": "a b"},
        ]


def test_partitions_of_parquet_and_json(tmp_path: Path) -> None:
    for kind in ("parquet", "jsonl"):
        folder = tmp_path / kind / "year=2024" / "month=__HIVE_DEFAULT_PARTITION__"
        folder.mkdir(parents=True)
        if kind == "parquet":
            pl.DataFrame({"n": [1]}).write_parquet(folder / "a.parquet")
        else:
            (folder / "a.jsonl").write_text(json.dumps({"n": 1}))
        (row,) = rows_of(open_table(tmp_path / kind))
        assert (int(row["n"]), row["year"], row["month"]) == (1, "2024", None)


def test_any_file_system_of_arrow(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("n\n1\n")
    tree = pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem())
    assert rows_of(FileSource("tree", (DataFile("tree/e.csv", "e.csv", 4, tree),), "CSV")) == [{"n": "1"}]


def test_a_name_may_hold_what_a_glob_means(tmp_path: Path) -> None:
    (tmp_path / "e [1].csv").write_text("n\n1\n")
    assert rows_of(open_table(tmp_path / "e [1].csv")) == [{"n": "1"}]
    assert rows_of(open_table(tmp_path / "e ?[12]].csv")) == [{"n": "1"}]


def test_what_is_not_there_or_unknown_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"gone.csv does not exist; pass a file, a folder or a glob of .parquet"):
        open_table(tmp_path / "gone.csv")
    with pytest.raises(TowerlineError, match="holds no files of rows"):
        open_table(tmp_path)
    with pytest.raises(TowerlineError, match=r"\*.csv holds no files of rows"):
        open_table(tmp_path / "*.csv")
    with pytest.raises(
        TowerlineError, match=r"nope://x cannot be opened .*expected a path or an address such as s3://"
    ):
        open_table("nope://x")
    (tmp_path / "e.xlsx").write_text("")
    with pytest.raises(TowerlineError, match=r"e.xlsx: unknown kind of file; it must end in .parquet"):
        open_table(tmp_path / "e.xlsx")
    (tmp_path / "a.csv").write_text("n\n")
    pl.DataFrame({"n": [1]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(TowerlineError, match=r"holds CSV .*a.csv. and Parquet .*b.parquet.; pass files of one kind"):
        open_table(tmp_path)
