"""A real PostgreSQL, and one that is killed in the middle."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import TowerlineError
from data.ingest.ingestion import TabularSource, ingest_files
from data.quality.validation import EventRules
from data.sources import sql
from data.sources.sql import SqlQuery, is_database
from tests.data.postgres import PostgresServer

NOW = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        server.execute(
            """
            CREATE TABLE events AS
            SELECT 'u' || n % 97 AS user_id, n % 41 AS item_id, n / 7 AS hour, (n % 5)::numeric(3, 1) AS value,
                   timestamptz '2024-01-01 00:00+02' + n * interval '1 second' AS event_time,
                   md5(n::text)::uuid AS event_id, json_build_object('n', n) AS more
            FROM generate_series(0, 19999) AS n
            """
        )
        yield server


def read(query: SqlQuery) -> list[dict[str, Any]]:
    return [row for part in query.parts() for chunk in part.chunks() for row in chunk.rows.to_dicts()]


@pytest.mark.cluster
def test_a_table_becomes_a_data_set(postgres: PostgresServer, tmp_path: Path) -> None:
    source = TabularSource(postgres.url, table="public.events", order_by="event_time")
    dataset = ingest_files(tmp_path, "mine", source, EventRules(NOW)).dataset
    events = dataset.events()
    assert (dataset.manifest.events, dataset.manifest.users, dataset.manifest.items) == (20_000, 97, 41)
    assert events["event_time"][0] == datetime(2023, 12, 31, 22, tzinfo=UTC)
    assert events["event_id"][1] == "c4ca4238-a0b9-2382-0dcc-509a6f75849b"
    assert events["source_row"].to_list() == list(range(1, 20_001))
    assert events["value"][:6].to_list() == [0, 1, 2, 3, 4, 0]
    assert dataset.manifest.source == f"postgresql+psycopg://postgres@127.0.0.1:{postgres.port}/postgres"


@pytest.mark.cluster
def test_values_that_repeat_stay_together_whatever_the_size_of_a_chunk(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "ROWS_PER_CHUNK", 100)
    query = SqlQuery.at(
        postgres.url, "SELECT hour, user_id FROM events WHERE user_id <> ':x' LIMIT 1000;", None, "hour"
    )
    chunks = list(query.chunks())
    assert sum(chunk.rows.height for chunk in chunks) == 1000
    hours = [set(chunk.rows["hour"]) for chunk in chunks]
    assert not any(here & after for number, here in enumerate(hours) for after in hours[number + 1 :])
    assert [line for chunk in chunks for line in chunk.lines] == list(range(1, 1001))


@pytest.mark.cluster
def test_a_server_that_is_killed_in_the_middle_and_comes_back(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "ROWS_PER_CHUNK", 1000)
    query = SqlQuery.at(postgres.url, None, "events", "hour")
    whole = read(query)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, chunk in enumerate(query.chunks()):
        rows += chunk.rows.to_dicts()
        lines += chunk.lines
        if number in {2, 9}:
            postgres.kill()
            threading.Timer(1.0 if number == 2 else 0.0, postgres.start).start()
    assert sorted(rows, key=str) == sorted(whole, key=str)
    assert lines == list(range(1, 20_001))


@pytest.mark.cluster
def test_a_server_that_stays_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "ROWS_PER_CHUNK", 100)
    with PostgresServer() as server:
        server.execute("CREATE TABLE e AS SELECT n FROM generate_series(0, 99999) AS n")
        url = server.url.replace("postgres@", "postgres:secret@")
        query = SqlQuery(url.replace("postgresql:", "postgresql+psycopg:"), "SELECT * FROM e", "n", patience_s=1.0)
        chunks = query.chunks()
        next(chunks)
        server.kill()
        started = time.monotonic()
        with pytest.raises(
            TowerlineError, match=r"went away after [\d,]+ rows and did not come back within 1 s"
        ) as error:
            list(chunks)
        assert time.monotonic() - started < 60
        assert "secret" not in str(error.value)
        with pytest.raises(
            TowerlineError, match=r"postgres:\*\*\*@.*refused; check the address, --query, --table"
        ) as error:
            query.columns()
        assert "secret" not in str(error.value)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("query", "order_by", "message"),
    [
        ("SELECT * FROM nothing", "n", 'relation "nothing" does not exist; check the address, --query'),
        ("SELECT oops", "n", 'column "oops" does not exist'),
        ("SELECT 1 AS n", "m", "--order-by m: the rows have no such column; they have n"),
        ("SELECT nullif(n, 3) AS n FROM generate_series(1, 9) n", "n", "--order-by n: the column holds nulls"),
        ("SELECT 1 / (5 - n) AS n FROM generate_series(1, 9) n", "n", "division by zero"),
    ],
)
def test_a_query_that_cannot_be_run(postgres: PostgresServer, query: str, order_by: str, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        read(SqlQuery.at(postgres.url, query, None, order_by))


@pytest.mark.parametrize(
    ("address", "query", "table", "order_by", "message"),
    [
        ("postgresql://h/d", None, None, "n", "say what to read, with --table NAME or --query 'SELECT …'"),
        ("postgresql://h/d", "SELECT 1", "t", "n", "say what to read"),
        ("postgresql://h/d", None, "t", None, "--order-by is missing: name a column"),
        ("postgresql+nope://h/d", None, "t", "n", "this is no address of a database"),
    ],
)
def test_what_is_not_said_is_asked_for(
    address: str, query: str | None, table: str | None, order_by: str | None, message: str
) -> None:
    with pytest.raises(TowerlineError, match=message):
        SqlQuery.at(address, query, table, order_by)


def test_any_database_of_sqlalchemy(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "e.db") as database:
        database.execute('CREATE TABLE "my events" (n INTEGER, "who is it" TEXT)')
        database.executemany('INSERT INTO "my events" VALUES (?, ?)', [(1, "a"), (2, None), (2, "c")])
    database.close()
    rows = read(SqlQuery.at(f"sqlite:///{tmp_path}/e.db", None, "my events", "n"))
    assert [row["who is it"] for row in rows] == ["a", None, "c"]


def test_what_is_a_database() -> None:
    assert all(map(is_database, ["postgresql://h/d", "postgresql+psycopg://h/d", "postgres://h/d", "sqlite:///f"]))
    assert not any(map(is_database, ["s3://b/f", "kafka://h/t", "postgresql", "/a/b.csv", "redis://h"]))
