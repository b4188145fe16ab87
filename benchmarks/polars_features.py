"""The peer: the features of `benchmarks.views` in one polars process.

Every shortcut that we found is in it. The files are sorted by entity, so that ids become codes without hashing and one
integer holds (entity, time); a window is then the difference of two running totals, found by one sorted `join_asof`
without `by`; last-N lists come from `rolling`. It reads the files of the same data set and writes the same columns.

    python -m benchmarks.polars_features DATASET_FOLDER OUTPUT [PARTS]

With PARTS > 1 it works through that many parts of the items and of the users, for tables that do not fit in memory.
"""

import json
import shutil
import sys
import time
from pathlib import Path

import polars as pl

from benchmarks.views import HALF_LIFE, LAST, RATE_WINDOW, WINDOWS
from data.schema import EVENT_TIME, ITEM_ID, SOURCE_ROW, SPLIT, USER_ID, VALUE

HOUR_US = 3_600_000_000
CODE = 2**44
"""More µs than a data set of 200 days with its windows has."""
PART = "part"
ROWS_PER_FILE = 500_000


def main(folder: Path, output: Path, parts: int) -> None:
    """Compute, write, and print the seconds that it took."""
    started = time.perf_counter()
    work = output.with_name(f"{output.name}.work")
    output.mkdir(parents=True)
    rows = in_parts(folder, output, work, parts) if parts > 1 else at_once(folder, output)
    shutil.rmtree(work, ignore_errors=True)
    print(json.dumps({"wall_s": time.perf_counter() - started, "cpu_s": time.process_time(), "rows": rows}))


def at_once(folder: Path, output: Path) -> int:
    """Whole tables."""
    users = with_users(_files(folder / "by_user"))
    items = with_items(_files(folder / "by_item"))
    return _write(users, items, output, "part")


def in_parts(folder: Path, output: Path, work: Path, parts: int) -> int:
    """The items part by part, each cut by part of the users; then the users part by part."""
    work.mkdir()
    part = (pl.col(USER_ID).hash(seed=0) % parts).alias(PART)
    for number in range(parts):
        items = with_items(_files(folder / "by_item")[number::parts], USER_ID).with_columns(part).drop(USER_ID)
        for (at,), some in items.partition_by(PART, as_dict=True, include_key=False).items():
            some.write_ipc(work / f"{at}-{number}.arrow")
    rows = 0
    for number in range(parts):
        users = with_users(_files(folder / "by_user"), part == number)
        items = pl.scan_ipc(sorted(work.glob(f"{number}-*.arrow"))).collect()
        rows += _write(users, items, output, f"part-{number}")
    return rows


def with_users(files: list[Path], chosen: pl.Expr | None = None) -> pl.DataFrame:
    """Events with the features of their users."""
    columns = [SOURCE_ROW, USER_ID, ITEM_ID, EVENT_TIME, VALUE, SPLIT]
    scanned = pl.scan_parquet(files).select(columns)
    chosen_rows = scanned if chosen is None else scanned.filter(chosen)
    # Lists of codes are lighter to gather and to write than lists of strings.
    events = chosen_rows.with_columns(pl.col(ITEM_ID).cast(pl.Categorical)).collect()
    return events.hstack(features_of(events, "user", ITEM_ID).get_columns())


def with_items(files: list[Path], *more: str) -> pl.DataFrame:
    """Row numbers of events with the features of their items."""
    events = pl.read_parquet(files, columns=[SOURCE_ROW, ITEM_ID, EVENT_TIME, VALUE, *more])
    return events.select(SOURCE_ROW, *more).hstack(features_of(events, "item", VALUE).get_columns())


def features_of(events: pl.DataFrame, name: str, last: str) -> pl.DataFrame:
    """All features of one entity, a row per event, from events sorted by (entity, time, row)."""
    rows = _prepared(events, f"{name}_id")
    windows = [_window(rows, name, label) for label in WINDOWS]
    features = windows[0].hstack([column for window in windows[1:] for column in window])
    others = _others(rows)
    lists = pl.DataFrame({"code": rows["code"], "before": rows["before"], last: events[last]}).rolling(
        "before", period=f"{LAST}i", offset=f"-{LAST}i", closed="left", group_by="code"
    )
    per_hour = WINDOWS[RATE_WINDOW].length_us / HOUR_US
    return features.with_columns(
        (pl.col(f"{name}_count_{RATE_WINDOW}") / per_hour).cast(pl.Float32).alias(f"{name}_rate"),
        others["since"].alias(f"{name}_seconds_since"),
        others["recency"].alias(f"{name}_recency"),
        lists.agg(last)[last].alias(f"{name}_last"),
    )


def _prepared(events: pl.DataFrame, key: str) -> pl.DataFrame:
    """Codes, times since before the first window, and running totals."""
    reach = max(window.length_us + window.hop_us for window in WINDOWS.values())
    step = max(window.hop_us for window in WINDOWS.values())
    times = events.get_column(EVENT_TIME).dt.epoch("us")
    origin = (int(times.to_numpy().min()) - reach) // step * step
    rows = events.select(
        pl.col(key).rle_id().cast(pl.Int64).alias("code"),
        (times - origin).alias("us"),
        pl.col(VALUE).cast(pl.Float64).alias("value"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("before"),
    )
    return rows.with_columns((pl.col("code") * CODE + pl.col("us")).alias("at"), pl.col("value").cum_sum().alias("sum"))


def _window(rows: pl.DataFrame, name: str, label: str) -> pl.DataFrame:
    """Count, sum and mean over one window."""
    window = WINDOWS[label]
    begin = pl.col("code") * CODE + pl.col("us") // window.hop_us * window.hop_us - window.length_us
    totals = (
        rows.lazy().select("at", (pl.col("before") + 1).alias("gone"), pl.col("sum").alias("gone_sum")).set_sorted("at")
    )
    asked = rows.lazy().select("before", (pl.col("sum") - pl.col("value")).alias("before_sum"), begin.alias("begin"))
    joined = asked.set_sorted("begin").join_asof(
        totals, left_on="begin", right_on="at", strategy="backward", allow_exact_matches=False
    )
    count = pl.col("before") - pl.col("gone").fill_null(0)
    total = pl.col("before_sum") - pl.col("gone_sum").fill_null(0.0)
    return joined.select(
        count.alias(f"{name}_count_{label}"),
        total.cast(pl.Float32).alias(f"{name}_sum_{label}"),
        pl.when(count > 0).then(total / count).otherwise(0.0).cast(pl.Float32).alias(f"{name}_mean_{label}"),
    ).collect()


def _others(rows: pl.DataFrame) -> pl.DataFrame:
    """Time since the last event, and recency."""
    age = pl.col("us") / (HALF_LIFE.total_seconds() * 1e6)
    blown = rows.select("code", "us", (2.0**age).alias("blown"))
    return blown.select(
        ((pl.col("us") - pl.col("us").shift(1).over("code")) / 1e6).fill_null(0.0).alias("since"),
        ((pl.col("blown").cum_sum().over("code") - pl.col("blown")) * 2.0 ** (-age)).cast(pl.Float32).alias("recency"),
    )


def _write(users: pl.DataFrame, items: pl.DataFrame, output: Path, name: str) -> int:
    """Both sides of every event, joined by the number of its row."""
    place = users.get_column(SOURCE_ROW).arg_sort().arg_sort()
    order = items.get_column(SOURCE_ROW).arg_sort().gather(place)
    joined = users.hstack(items.drop(SOURCE_ROW)[order].get_columns())
    for number, rows in enumerate(joined.iter_slices(ROWS_PER_FILE)):
        # Written as it is, each row group would encode the lists of the whole column: four times slower at 10 M.
        own = rows.select(pl.all().gather(pl.int_range(pl.len())))
        own.write_parquet(output / f"{name}-{number:03d}.parquet", compression="zstd", compression_level=1)
    return joined.height


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 1)
