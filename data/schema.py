"""The contract of events, items and users: the only place that names a column.

Every source is turned into these three tables before anything else reads it. Ids are any non-empty Unicode string.
An attribute is a token `name=value` (`genre=Comedy`, `occupation=student`), so that a data set may bring any
attributes without a change of schema.
"""

import pyarrow as pa

EVENT_ID = "event_id"
USER_ID = "user_id"
ITEM_ID = "item_id"
EVENT_TYPE = "event_type"
VALUE = "value"
EVENT_TIME = "event_time"
INGEST_TIME = "ingest_time"
DECISION_ID = "decision_id"
TITLE = "title"
ATTRIBUTES = "attributes"
SOURCE_ROW = "source_row"

SEQUENCE = "sequence"
SPLIT = "split"
HISTORY_ITEMS = "history_items"
HISTORY_VALUES = "history_values"
HISTORY_TYPES = "history_types"
HISTORY_TIMES = "history_times"
USER_EVENT_COUNT = "user_event_count"
USER_MEAN_VALUE = "user_mean_value"
USER_SECONDS_SINCE_LAST = "user_seconds_since_last"
USER_ATTRIBUTES = "user_attributes"
ITEM_EVENT_COUNT = "item_event_count"
ITEM_MEAN_VALUE = "item_mean_value"
ITEM_SHARE = "item_share"
ITEM_SECONDS_SINCE_LAST = "item_seconds_since_last"
ITEM_ATTRIBUTES = "item_attributes"

TIMESTAMP = pa.timestamp("us", tz="UTC")

EVENTS = pa.schema(
    [
        pa.field(EVENT_ID, pa.string(), nullable=False),
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(EVENT_TYPE, pa.string(), nullable=False),
        pa.field(VALUE, pa.float32(), nullable=False),
        pa.field(EVENT_TIME, TIMESTAMP, nullable=False),
        pa.field(INGEST_TIME, TIMESTAMP, nullable=False),
        pa.field(DECISION_ID, pa.string()),
        pa.field(SOURCE_ROW, pa.int64(), nullable=False),
    ]
)
"""What happened. Rows are stored sorted by the total order (event_time, source_row)."""

ITEMS = pa.schema(
    [
        pa.field(ITEM_ID, pa.string(), nullable=False),
        pa.field(TITLE, pa.string()),
        pa.field(ATTRIBUTES, pa.list_(pa.string()), nullable=False),
    ]
)
"""The catalogue. An item that has events but no row here exists with its id alone."""

USERS = pa.schema(
    [
        pa.field(USER_ID, pa.string(), nullable=False),
        pa.field(ATTRIBUTES, pa.list_(pa.string()), nullable=False),
    ]
)
"""Who acts. A user that has events but no row here exists with its id alone."""

QUARANTINE = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("row", pa.string(), nullable=False),
    ]
)
"""Rows that break the contract: which table (events, items, users), file, line of the file (1 is the first line of a
CSV, the first row of a Parquet file), why, and the row as it was (JSON)."""
