from pathlib import Path

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.ingest.attributes import BINS, Entities, read_entities
from data.sources.tabular import open_table


def read(path: Path, attributes: list[str], title: str | None = None, id_column: str = "sku") -> Entities:
    return read_entities(open_table(path), "item_id", id_column, attributes, title)


def test_columns_become_tokens(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("sku,name,genre,year\na/1,The A,Comedy| Drama|,1999\nb,,,2001\nc,C,Comedy|Comedy,\n")
    assert read(path, ["genre", "year"], "name").table.rows() == [
        ("a/1", "The A", ["genre=Comedy", "genre=Drama", "year=1999"]),
        ("b", None, ["year=2001"]),
        ("c", "C", ["genre=Comedy"]),
    ]
    assert read(path, []).table.row(0) == ("a/1", None, [])


def test_typed_columns_become_tokens(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    table = {"sku": [1, 2], "tags": [["x", "y"], None], "new": [True, None], "size": [2.0, float("nan")]}
    pl.DataFrame(table).write_parquet(path)
    assert read(path, ["tags", "new", "size"]).table.rows() == [
        ("1", None, ["tags=x", "tags=y", "new=true", "size=2"]),
        ("2", None, []),
    ]


def test_many_distinct_numbers_become_bins_of_equal_size(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    rows = "".join(f"{number},{number / 2}\n" for number in range(1000))
    path.write_text("sku,price\n" + rows + "free,\n")
    tokens = read(path, ["price"]).table["attributes"]
    assert tokens[-1].to_list() == []
    sizes = tokens.head(1000).list.first().value_counts()
    assert sizes.height == BINS
    assert sizes["count"].to_list() == pytest.approx([1000 / BINS] * BINS, abs=2)
    assert tokens[0].to_list() == ["price=0..50"]


def test_a_column_of_lists_called_attributes_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"sku": ["a", "b"], "attributes": [["k=v", None], None]}).write_parquet(path)
    assert read(path, []).table["attributes"].to_list() == [["k=v"], []]


def test_rows_without_an_id_or_with_one_that_was_there_are_quarantined(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text("sku,genre\na,X\n,Y\na,Z\nb\nc,W\n")
    found = read(path, ["genre"])
    assert found.table["item_id"].to_list() == ["a", "c"]
    assert found.rows_read == 5
    assert sorted(row[:2] for row in found.broken) == [
        (3, "item_id is empty"),
        (4, "duplicate item_id: it was there before"),
        (5, "wrong number of fields: 1 instead of 2"),
    ]


def test_what_is_wrong_with_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    pl.DataFrame({"sku": ["a"], "flag": [True]}).write_parquet(path)
    with pytest.raises(TowerlineError, match="has no column 'genre'; it has 'sku', 'flag'"):
        read(path, ["genre"])
    with pytest.raises(TowerlineError, match="column 'flag' is Boolean, expected text or a whole number"):
        read(path, [], id_column="flag")
    path.with_suffix(".csv").write_text("sku\n")
    with pytest.raises(TowerlineError, match=r"items\.csv has no rows"):
        read(path.with_suffix(".csv"), [])
