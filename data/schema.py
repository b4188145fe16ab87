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
