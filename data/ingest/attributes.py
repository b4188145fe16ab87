"""Items and users of any table as ids with attribute tokens `name=value`, whatever their columns are called."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import polars as pl

from cluster.errors import TowerlineError
from data.expectations import Checked, Expectations
from data.quality.findings import Findings
from data.quality.rules import Context
from data.quality.validation import holds_ids, parse_id, rows_as_json
from data.schema import ATTRIBUTES, ITEM_ID, TITLE
from data.sources.chunk import Broken
from data.sources.tabular import FileSource

SEPARATOR = "|"
"""Between the values of one field that holds several: `Comedy|Drama`."""
DISTINCT_NUMBERS = 20
"""A column with more distinct numbers than this is cut into bins."""
BINS = 10
"""Bins of such a column, of about equally many rows each."""

NOTHING_EXPECTED = Expectations()
NO_TOKENS = pl.lit([], dtype=pl.List(pl.String))


@dataclass(frozen=True)
class Entities:
    """Items or users of a file."""

    table: pl.DataFrame
    """Id, title (items only) and attributes, in the contract's types."""
    broken: Sequence[Broken] = ()
    """Rows that break the contract or what is expected of them."""
    rows_read: int = 0
    findings: Findings | None = None
    """For the report of the validation; None if no file of theirs was read."""
    file: str = ""
    """Where they were read."""


def read_entities(
    file: FileSource,
    id_name: str,
    id_column: str,
    attributes: Sequence[str],
    title: str | None = None,
    *,
    expectations: Expectations = NOTHING_EXPECTED,
    context: Context | None = None,
) -> Entities:
    """Items or users with one token per value of each column in `attributes`.

    With no `attributes`, a column of that name that holds lists is taken as tokens. Raises TowerlineError for a column
    that is not there or cannot hold ids, and for a file without rows.
    """
    rows, lines, unreadable = _read_whole(file)
    for column in (id_column, *attributes, *([title] if title else [])):
        if column not in rows.columns:
            listed = ", ".join(repr(name) for name in rows.columns)
            raise TowerlineError(f"{file.name} has no column {column!r}; it has {listed}")
    kind = rows.schema[id_column]
    if not holds_ids(kind):
        raise TowerlineError(
            f"{file.name}: column {id_column!r} is {kind}, expected text or a whole number; convert it"
        )
    value, faults = parse_id(id_name, id_column, kind)
    faults.append((f"duplicate {id_name}: it was there before", ~value.is_first_distinct()))
    reason = rows.select(pl.coalesce(*[pl.when(bad).then(pl.lit(reason)) for reason, bad in faults])).to_series()
    bad, numbers = reason.is_not_null(), pl.Series(lines, dtype=pl.Int64)
    faulty = zip(numbers.filter(bad), reason.filter(bad), rows_as_json(rows.filter(bad)), strict=True)
    columns = {id_name: value, **({TITLE: _title(title)} if id_name == ITEM_ID else {})}
    entities = rows.select(**columns, **{ATTRIBUTES: _tokens(rows, attributes)}).filter(~bad)
    checked = expectations.check_whole(entities, numbers.filter(~bad), rows.filter(~bad), context)
    return replace(_found(checked, [*unreadable, *(Broken(*row) for row in faulty)], expectations), file=file.name)


def checked_entities(table: pl.DataFrame, expectations: Expectations, context: Context) -> Entities:
    """Items or users that have been read, with what is expected of them; line 2 of their file is the first."""
    return _found(expectations.check_whole(table, range(2, table.height + 2), None, context), [], expectations)


def _found(checked: Checked, unreadable: Sequence[Broken], expectations: Expectations) -> Entities:
    broken = sorted([*unreadable, *checked.broken])
    findings = Findings.of(checked.good, broken, expectations)
    return Entities(checked.good, broken, findings.rows_read, findings)


def _read_whole(file: FileSource) -> tuple[pl.DataFrame, list[int], list[Broken]]:
    chunks = [chunk for part in file.parts() for chunk in part.chunks()]
    lines = [line for chunk in chunks for line in chunk.lines]
    if not lines:
        raise TowerlineError(f"{file.name} has no rows; leave it out, or pass one that has")
    return (
        pl.concat([chunk.rows for chunk in chunks], how="diagonal_relaxed"),
        lines,
        [row for chunk in chunks for row in chunk.broken],
    )


def _title(column: str | None) -> pl.Expr:
    if column is None:
        return pl.lit(None, dtype=pl.String)
    text = pl.col(column).cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _tokens(rows: pl.DataFrame, attributes: Sequence[str]) -> pl.Series:
    """The tokens of each row, each once."""
    if not attributes and isinstance(rows.schema.get(ATTRIBUTES), pl.List):
        return rows.select(
            pl.col(ATTRIBUTES).cast(pl.List(pl.String)).fill_null(NO_TOKENS).list.drop_nulls()
        ).to_series()
    tokens = pl.DataFrame({name: _texts(rows.get_column(name)) for name in attributes}).with_columns(
        pl.col(name).list.eval(_token(name)).fill_null(NO_TOKENS) for name in attributes
    )
    if tokens.is_empty():
        return pl.Series(ATTRIBUTES, [[]] * rows.height, dtype=pl.List(pl.String))
    return tokens.select(pl.concat_list(*attributes).list.drop_nulls().list.unique(maintain_order=True)).to_series()


def _token(name: str) -> pl.Expr:
    value = pl.element().str.strip_chars()
    return pl.when(value != "").then(pl.lit(f"{name}=") + value)


def _texts(column: pl.Series) -> pl.Series:
    """The values of each row of a column, as a list of texts; null where there are none."""
    if isinstance(column.dtype, pl.List):
        return column.cast(pl.List(pl.String))
    numbers = _as_numbers(column)
    if numbers is not None and numbers.drop_nulls().n_unique() > DISTINCT_NUMBERS:
        column = _bins(numbers)
    elif column.dtype.is_float():
        column = column.cast(pl.String).str.strip_suffix(".0").replace("NaN", None)
    return column.cast(pl.String).str.split(SEPARATOR)


def _as_numbers(column: pl.Series) -> pl.Series | None:
    """The column as finite numbers, or None if it holds anything else."""
    if not (column.dtype.is_numeric() or isinstance(column.dtype, pl.String)):
        return None
    texts = column.replace("", None) if isinstance(column.dtype, pl.String) else column
    numbers = texts.cast(pl.Float64, strict=False)
    if numbers.null_count() > texts.null_count():
        return None
    return numbers.to_frame("n").select(pl.when(pl.col("n").is_finite()).then("n")).to_series()


def _bins(numbers: pl.Series) -> pl.Series:
    """The bin of each number, as the text `lowest..highest`."""
    quantiles = [numbers.quantile(step / BINS, interpolation="nearest") for step in range(BINS + 1)]
    edges = pl.Series(sorted({edge for edge in quantiles if edge is not None}))
    labels = [f"{low:g}..{high:g}" for low, high in pairwise(edges)] or [f"{edges[0]:g}"]
    inner = edges[1:-1].search_sorted(numbers, side="right")
    texts = pl.Series(labels).gather(inner)
    return pl.select(pl.when(numbers.is_not_null()).then(texts)).to_series()
