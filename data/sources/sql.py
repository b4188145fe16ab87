"""Rows of a SQL query: streamed from a server-side cursor, and taken up again where the server went away."""

import json
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import Any, ClassVar

import polars as pl
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from cluster.errors import TowerlineError
from data.sources.chunk import Chunk

logger = logging.getLogger(__name__)

ROWS_PER_CHUNK = 50_000
PATIENCE_S = 60.0
"""How long a server may be away."""
FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 5.0

SCHEMES = ("postgresql", "postgres", "mysql", "mariadb", "sqlite", "mssql", "oracle")
_EVERYTHING: sa.ColumnClause[Any] = sa.literal_column("*")
_PLAIN = (str, bool, int, float, Decimal, datetime, date)

Row = Sequence[Any]


def is_database(address: str) -> bool:
    """Whether it is the address of a database."""
    scheme, separator, _ = address.partition("://")
    return bool(separator) and scheme.partition("+")[0] in SCHEMES


@dataclass(frozen=True)
class SqlQuery:
    """A query in the order of one of its columns, whose values may repeat but not be null.

    When the server goes away in the middle, reading goes on after the last value of that column of which all rows have
    been given out: no row is lost, and none comes twice.
    """

    url: str = field(repr=False)
    query: str
    order_by: str
    patience_s: float = PATIENCE_S
    has_types: ClassVar[bool] = True

    @classmethod
    def at(cls, address: str, query: str | None, table: str | None, order_by: str | None) -> "SqlQuery":
        """The query, or all of a table. Raises TowerlineError if that is not said, or the driver is not there."""
        if (query is None) == (table is None):
            raise TowerlineError("--events is a database: say what to read, with --table NAME or --query 'SELECT …'")
        if order_by is None:
            raise TowerlineError(
                "--order-by is missing: name a column of the rows, such as their key or the time at which they were "
                "written, so that reading can go on where it was if the database goes away"
            )
        try:
            url = sa.make_url(address.replace("postgres://", "postgresql://", 1))
            if url.drivername == "postgresql":
                url = url.set(drivername="postgresql+psycopg")
            dialect = url.get_dialect()()
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise TowerlineError(f"--events: this is no address of a database ({_first_line(error)})") from error
        if table is not None:
            quote = dialect.identifier_preparer.quote
            query = f"SELECT * FROM {'.'.join(quote(name) for name in table.split('.'))}"
        return cls(url.render_as_string(hide_password=False), (query or "").strip().rstrip(";"), order_by)

    @property
    def name(self) -> str:
        """The address, without the password."""
        return sa.make_url(self.url).render_as_string(hide_password=True)

    def columns(self) -> list[str]:
        """Names of the columns. Raises TowerlineError if the database cannot be asked."""
        with self._engine() as engine:
            try:
                with engine.connect() as connection:
                    names = list(connection.execute(sa.select(_EVERYTHING).select_from(self._rows()).limit(0)).keys())
            except SQLAlchemyError as error:
                raise self._refused(error) from error
        if self.order_by not in names:
            raise TowerlineError(
                f"--order-by {self.order_by}: the rows have no such column; they have {', '.join(names)}"
            )
        return names

    def parts(self) -> "list[SqlQuery]":
        """One: its order is what reading can be resumed by."""
        return [self]

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order. Raises TowerlineError when the server stays away, or the query is refused."""
        names = self.columns()
        key = names.index(self.order_by)
        line, reached, away_since, wait = 1, None, None, FIRST_WAIT_S
        while True:
            try:
                for rows in self._whole_groups(reached, key):
                    yield Chunk(_frame(names, rows), range(line, line + len(rows)), [])
                    line, reached, away_since, wait = line + len(rows), rows[-1][key], None, FIRST_WAIT_S
            except SQLAlchemyError as error:
                away_since = away_since or time.monotonic()
                if not _is_gone(error):
                    raise self._refused(error) from error
                if time.monotonic() + wait > away_since + self.patience_s:
                    raise TowerlineError(
                        f"{self.name} went away after {line - 1:,} rows and did not come back within "
                        f"{self.patience_s:.0f} s ({_first_line(error)}); start it and run the same command again"
                    ) from error
            else:
                return
            logger.info("%s went away after %s rows; trying again in %.1f s", self.name, f"{line - 1:,}", wait)
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def _whole_groups(self, reached: Any, key: int) -> Iterator[list[Row]]:
        """Rows after `reached`, so that all rows of one value of the key come at once."""
        waiting: list[Row] = []
        with self._engine() as engine, engine.connect() as connection:
            options = {"stream_results": True, "yield_per": ROWS_PER_CHUNK}
            result = connection.execution_options(**options).execute(self._statement(reached))
            with _closing(result):
                for partition in result.partitions():
                    waiting += [tuple(row) for row in partition]
                    whole = self._whole(waiting, key)
                    if whole:
                        yield waiting[:whole]
                        waiting = waiting[whole:]
        if waiting:
            yield waiting

    def _whole(self, rows: Sequence[Row], key: int) -> int:
        """How many rows have no more of their value to come: those before the last value. It must not be null."""
        if rows[0][key] is None or rows[-1][key] is None:
            raise TowerlineError(f"--order-by {self.order_by}: the column holds nulls; take one that does not")
        return next((n for n in range(len(rows), 0, -1) if rows[n - 1][key] != rows[-1][key]), 0)

    def _rows(self) -> sa.Subquery:
        return sa.text(self.query.replace(":", r"\:")).columns(sa.column(self.order_by)).subquery("towerline_rows")

    def _statement(self, reached: Any) -> sa.Select[Any]:
        rows = self._rows()
        statement: sa.Select[Any] = sa.select(_EVERYTHING).select_from(rows).order_by(rows.c[self.order_by])
        return statement if reached is None else statement.where(rows.c[self.order_by] > reached)

    def _engine(self) -> "_Engine":
        return _Engine(self.url)

    def _refused(self, error: SQLAlchemyError) -> TowerlineError:
        return TowerlineError(f"{self.name}: {_first_line(error)}; check the address, --query, --table and --order-by")


@contextmanager
def _closing(result: sa.CursorResult[Any]) -> Iterator[None]:
    """Close the cursor in the end, also that of a connection which was lost."""
    cursor = result.cursor
    try:
        yield
    finally:
        if cursor is not None:
            with suppress(Exception):
                cursor.close()


class _Engine:
    """An engine with one connection at a time, disposed of at the end."""

    def __init__(self, url: str) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)

    def __enter__(self) -> sa.Engine:
        return self._engine

    def __exit__(self, *_: object) -> None:
        self._engine.dispose()


def _is_gone(error: SQLAlchemyError) -> bool:
    """Whether the connection is lost or refused, which time may mend."""
    if not isinstance(error, DBAPIError):
        return False
    return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)


def _frame(names: list[str], rows: Sequence[Row]) -> pl.DataFrame:
    columns = zip(*rows, strict=True)
    return pl.DataFrame([_series(name, list(column)) for name, column in zip(names, columns, strict=True)])


def _series(name: str, values: list[Any]) -> pl.Series:
    """Values of types that no table knows (UUIDs, JSON, addresses) as text."""
    first = next((value for value in values if value is not None), None)
    if first is not None and not isinstance(first, _PLAIN):
        values = [None if value is None else _text(value) for value in values]
    return pl.Series(name, values, strict=False)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, dict | list) else str(value)


def _first_line(error: BaseException) -> str:
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0]
