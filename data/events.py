"""Events of a source that has no event ids get one from their content, so that reading it twice adds nothing."""

import hashlib

import polars as pl

from data.schema import EVENT_ID, EVENT_TIME, EVENT_TYPE, ITEM_ID, SOURCE_ROW, USER_ID, VALUE

CONTENT = [USER_ID, ITEM_ID, EVENT_TYPE, VALUE, EVENT_TIME]
"""The columns that say what happened."""

ROWS_PER_FILE = 2**36
"""`source_row` of an event is the number of its file times this, plus its line."""
FIRST_APPENDED_ROW = 2**60
"""`source_row` of the first event that did not come from a file but was appended online: at the same time, what was
appended comes after what was ingested."""
EVENTS_AT_ONCE = 100_000


def next_file(events: pl.DataFrame) -> int:
    """The number of the file that may be read after these events."""
    rows = events.get_column(SOURCE_ROW)
    of_files = rows.filter(rows < FIRST_APPENDED_ROW) // ROWS_PER_FILE
    return 0 if of_files.is_empty() else int(of_files.sort()[-1]) + 1


def with_event_ids(events: pl.DataFrame) -> pl.DataFrame:
    """Add `event_id`: a hash of the row's content and of how often that content came before it in the source."""
    ordered = events.sort(SOURCE_ROW)
    strings = [pl.col(column) for column in (USER_ID, ITEM_ID, EVENT_TYPE)]
    occurrence = pl.int_range(pl.len()).over(CONTENT).alias("occurrence")
    content = pl.concat_str(
        *[text.str.len_bytes().cast(pl.String) for text in strings],
        *strings,
        pl.col(VALUE).cast(pl.Float64).cast(pl.String),
        pl.col(EVENT_TIME).dt.epoch("us").cast(pl.String),
        pl.col("occurrence").cast(pl.String),
        separator="\n",
    )
    with_occurrence = ordered.with_columns(occurrence)
    ids = [
        pl.Series(
            EVENT_ID, [hashlib.blake2b(key.encode(), digest_size=16).hexdigest() for key in keys], dtype=pl.String
        )
        for keys in (rows.select(content).to_series() for rows in with_occurrence.iter_slices(EVENTS_AT_ONCE))
    ]
    return ordered.with_columns(pl.concat(ids) if ids else pl.Series(EVENT_ID, [], dtype=pl.String))
