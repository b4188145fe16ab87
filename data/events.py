"""Events of a source that has no event ids get one from their content, so that reading it twice adds nothing."""

import hashlib

import polars as pl

from data.schema import EVENT_ID, EVENT_TIME, EVENT_TYPE, ITEM_ID, SOURCE_ROW, USER_ID, VALUE

CONTENT = [USER_ID, ITEM_ID, EVENT_TYPE, VALUE, EVENT_TIME]
"""The columns that say what happened."""


def with_event_ids(events: pl.DataFrame) -> pl.DataFrame:
    """Add `event_id`: a hash of the row's content and of how often that content came before it in the source."""
    ordered = events.sort(SOURCE_ROW)
    strings = [pl.col(column) for column in (USER_ID, ITEM_ID, EVENT_TYPE)]
    content = pl.concat_str(
        *[text.str.len_bytes().cast(pl.String) for text in strings],
        *strings,
        pl.col(VALUE).cast(pl.Float64).cast(pl.String),
        pl.col(EVENT_TIME).dt.epoch("us").cast(pl.String),
        pl.int_range(pl.len()).over(CONTENT).cast(pl.String),
        separator="\n",
    )
    keys = ordered.select(content.alias("content")).get_column("content")
    ids = [hashlib.blake2b(key.encode(), digest_size=16).hexdigest() for key in keys]
    return ordered.with_columns(pl.Series(EVENT_ID, ids, dtype=pl.String))
