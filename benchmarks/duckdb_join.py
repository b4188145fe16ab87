"""The point-in-time join with DuckDB's ASOF JOIN. Runs in an environment of its own; imports nothing of ours.

python duckdb_join.py EVENTS_GLOB EXAMPLES OUTPUT.parquet TTL_DAYS LIKED
"""

import json
import sys
import time

import duckdb

RANKED = """
CREATE TEMP TABLE ranked AS
SELECT *, greatest(event_time, ingest_time) AS known, row_number() OVER (ORDER BY user_id, event_time, source_row) AS r
FROM read_parquet('{events}')
"""
JOINED = """
COPY (
    WITH newest AS (
        SELECT user_id, known, max(r) OVER (PARTITION BY user_id ORDER BY known) AS r FROM ranked
    ),
    found AS (
        SELECT x.*, n.r FROM read_parquet('{examples}') AS x
        ASOF LEFT JOIN newest AS n ON x.user_id = n.user_id AND x.event_time >= n.known
    )
    SELECT f.example, f.user_id, f.event_time, {columns}
    FROM found AS f LEFT JOIN ranked AS e ON f.r = e.r
) TO '{output}' (FORMAT parquet, COMPRESSION zstd)
"""
COLUMNS = {
    **{name: f"e.{name}" for name in ("event_id", "item_id", "event_type", "value", "event_time", "ingest_time")},
    "doubled": "e.value * 2",
    "liked": "e.value >= {liked}",
    "hour": "hour(e.event_time)",
    "weekday": "isodow(e.event_time)",
}


def main(events: str, examples: str, output: str, ttl_days: str, liked: str) -> None:
    """Join, write, and print the seconds that it took."""
    fresh = f"f.event_time - e.event_time <= INTERVAL {ttl_days} DAY"
    chosen = (f"CASE WHEN {fresh} THEN {value} END AS newest_{name}" for name, value in COLUMNS.items())
    columns = ", ".join(chosen).format(liked=liked)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        started = time.perf_counter()
        connection.execute(RANKED.format(events=events))
        connection.execute(JOINED.format(examples=examples, output=output, columns=columns))
        print(json.dumps({"wall_s": time.perf_counter() - started, "cpu_s": time.process_time()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
