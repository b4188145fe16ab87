import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import TowerlineError
from data.sources import csv_rows
from data.sources.csv_rows import CsvPart
from data.sources.location import find_files


def read(path: Path, content: str | bytes, **options: object) -> tuple[list[tuple], list[int], list[tuple]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    chunks = list(CsvPart(find_files(path)[0], **options).chunks())
    rows = [row for chunk in chunks for row in chunk.rows.rows()]
    lines = [line for chunk in chunks for line in chunk.lines]
    return rows, lines, [tuple(row) for chunk in chunks for row in chunk.broken]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "t.csv"


def test_quotes_newlines_in_fields_and_the_line_each_row_began(path: Path) -> None:
    rows, lines, broken = read(path, 'a,b\r\n1,"x,""y"""\r\n\r\n"two\nlines",Ж\n3,4')
    assert rows == [("1", 'x,"y"'), ("two\nlines", "Ж"), ("3", "4")]
    assert lines == [2, 4, 6]
    assert broken == []


def test_a_broken_row_costs_that_row_alone(path: Path) -> None:
    text = 'a,b\n1,2\n"open,3\n4,5\n6\n7,8,9\n"x"y,1\n10,"11"\n'
    rows, lines, broken = read(path, text)
    assert rows == [("1", "2"), ("4", "5"), ("10", "11")]
    assert lines == [2, 4, 8]
    assert broken == [
        (3, "broken quotes", '"open,3'),
        (5, "wrong number of fields: 1 instead of 2", "6"),
        (6, "wrong number of fields: 3 instead of 2", "7,8,9"),
        (7, "broken quotes", '"x"y,1'),
    ]


def test_two_slips_do_not_swallow_what_lies_between(path: Path) -> None:
    rows, _, broken = read(path, 'a,b\n"1,2\n3,4\n"5,6\n7,8\n')
    assert rows == [("3", "4"), ("7", "8")]
    assert [row[0] for row in broken] == [2, 4]


def test_a_cut_last_line_says_so(path: Path) -> None:
    rows, _, broken = read(path, "a,b\n1,2\n3")
    assert rows == [("1", "2")]
    assert broken[0][1] == "wrong number of fields: 1 instead of 2, and the file ends there without a newline"


def test_bytes_that_are_no_utf8(path: Path) -> None:
    rows, _, broken = read(path, b"a,b\n\xff,2\n\xc3\xa9,4\n")
    assert rows == [("é", "4")]
    assert broken == [(2, "not UTF-8", "\\xff,2")]


def test_a_byte_order_mark_is_no_part_of_the_first_name(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n")
    assert CsvPart(find_files(path)[0]).columns() == ["a", "b"]


def test_chunks_join_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "LINES_PER_CHUNK", 2)
    rows, lines, broken = read(path, 'a\n1\n2\n"3\n3"\n4\n"\n5\n')
    assert rows == [("1",), ("2",), ("3\n3",), ("4",), ("5",)]
    assert lines == [2, 3, 4, 6, 8]
    assert [row[:2] for row in broken] == [(7, "broken quotes")]


def test_without_quoting_a_quote_is_a_character(path: Path) -> None:
    rows, _, broken = read(path, 'a\tb\n"\tx"\n', delimiter="\t", quoted=False)
    assert (rows, broken) == ([('"', 'x"')], [])


field = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=6)


@settings(max_examples=150, deadline=None)
@given(table=st.lists(st.tuples(field, field), max_size=12), size=st.integers(1, 5))
def test_whatever_python_writes_is_read_back(
    table: list[tuple[str, str]], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("a", "b"), *table])
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_rows, "LINES_PER_CHUNK", size)
        rows, _, broken = read(path, text.getvalue())
    assert rows == table
    assert broken == []


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet='ab,"\n', max_size=60))
def test_no_line_is_lost_or_read_twice(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("csv") / "t.csv"
    rows, lines, broken = read(path, "x,y\n" + text)
    starts = sorted([*lines, *(row[0] for row in broken)])
    assert len(set(starts)) == len(starts)
    heights = ["".join(row).count("\n") + 1 for row in rows]
    spanned = {line + extra for line, height in zip(lines, heights, strict=True) for extra in range(height)}
    covered = spanned | {row[0] for row in broken}
    filled = {number for number, line in enumerate(text.split("\n"), start=2) if line}
    assert filled <= covered


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: it has no header"),
        (b"\n\n", "is empty"),
        (b"a,a\n1,2\n", "column 'a' appears twice"),
        (b"PAR1\x00\x01", "is not UTF-8 text"),
        (b"\xff\xfea\x00,\x00", "is UTF-16"),
        (b'"a,b\n1,2\n', "line 1, the header: broken quotes"),
    ],
)
def test_a_file_without_a_usable_header_is_refused(path: Path, content: bytes, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        read(path, content)


def test_a_truncated_or_corrupt_gzip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    whole = gzip.compress(b"a,b\n" + b"".join(b"%d,%d\n" % (row, row * row) for row in range(5000)))
    assert len(read(path, whole)[0]) == 5000
    for content in (whole[: len(whole) // 2], b"a,b\n1,2\n", whole[:200] + b"\0" * 50 + whole[250:]):
        with pytest.raises(TowerlineError, match=r"t\.csv\.gz is truncated or corrupt"):
            read(path, content)
