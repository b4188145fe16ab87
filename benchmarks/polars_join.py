"""The peer of the point-in-time join: the same bitemporal join with `polars.join_asof`, in one process.

An event becomes known at max(event_time, ingest_time); the newest event known at each such moment is a running maximum,
and the newest known one at an example's moment is an as-of join with that.

    python -m benchmarks.polars_join DATASET_FOLDER EXAMPLES OUTPUT.parquet
"""

import json
import sys
import time
from pathlib import Path

import polars as pl

from benchmarks.views import newest_view
from data.schema import EVENT_TIME, INGEST_TIME, USER_ID

VIEW = newest_view()


def main(folder: Path, examples: Path, output: Path) -> None:
    """Join, write, and print the seconds that it took."""
    started = time.perf_counter()
    rows = joined(pl.scan_parquet(sorted((folder / "by_user").glob("*.parquet"))), pl.scan_parquet(examples))
    rows.write_parquet(output, compression="zstd", compression_level=1)
    print(json.dumps({"wall_s": time.perf_counter() - started, "cpu_s": time.process_time()}))


def joined(events: pl.LazyFrame, examples: pl.LazyFrame) -> pl.DataFrame:
    """The examples with the newest known event. `events` are sorted by (user, event_time, source_row)."""
    columns = {name: VIEW.column_of(name) for name in VIEW.features}
    read = [USER_ID, *dict.fromkeys(root for name in VIEW.features for root in VIEW.lineage(name) if root != USER_ID)]
    stored = events.select(read).collect()
    known = stored.lazy().select(
        USER_ID,
        pl.max_horizontal(EVENT_TIME, INGEST_TIME).alias("known"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
    )
    newest = known.sort("known", maintain_order=True).with_columns(pl.col("row").cum_max().over(USER_ID))
    found = (
        examples.sort(EVENT_TIME)
        .join_asof(newest, left_on=EVENT_TIME, right_on="known", by=USER_ID, check_sortedness=False)
        .drop("known")
        .collect()
    )
    assert VIEW.ttl is not None
    age = found[EVENT_TIME] - stored[EVENT_TIME].gather(found["row"])
    place = found.select(pl.when(age <= VIEW.ttl).then("row")).to_series()
    rows = stored.drop(USER_ID)[place.fill_null(0)].with_columns(**VIEW.columns)
    values = rows.select(
        pl.when(pl.lit(place.is_not_null())).then(column).alias(name) for name, column in columns.items()
    )
    return found.drop("row").hstack(values.get_columns())


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
