"""What clients tell of their users: checked against the clock, and appended to the online store."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from data.online.store import OnlineStore
from data.schema import DECISION_ID, EVENT_ID, EVENT_TIME, EVENT_TYPE, ITEM_ID, USER_ID, VALUE
from serve.problems import FieldError, Kind, ProblemError
from serve.schemas import FeedbackEvent, FeedbackRequest, FeedbackResponse

CLOCK_SKEW = timedelta(minutes=1)
"""How far ahead of ours a client's clock may be before its events count as future ones."""


def store_feedback(store: OnlineStore, request: FeedbackRequest, now: datetime) -> FeedbackResponse:
    """Store events; they are on the disk when this returns. Blocks for some milliseconds.

    Raises `ProblemError` for an event of the future: nothing is stored then.
    """
    late = [
        FieldError(field=f"events[{row}].event_time", message="lies in the future", value=str(event.event_time))
        for row, event in enumerate(request.events)
        if event.event_time is not None and event.event_time > now + CLOCK_SKEW
    ]
    if late:
        detail = f"{late[0].field} lies in the future (now is {now:%Y-%m-%dT%H:%M:%SZ}); nothing was stored"
        raise ProblemError(Kind.INVALID_FIELD, detail, late)
    events = _table(request.events, now)
    stored = store.append_events(events)
    return FeedbackResponse(stored=stored, duplicates=len(request.events) - stored, event_ids=tuple(events[EVENT_ID]))


def _table(events: Sequence[FeedbackEvent], now: datetime) -> pl.DataFrame:
    """Feedback as events of the schema; the store says when it knew of them. What a client's fast clock dates after
    `now` happened now."""
    time_dtype = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        {
            EVENT_ID: [event.event_id or uuid.uuid4().hex for event in events],
            USER_ID: [event.user_id for event in events],
            ITEM_ID: [event.item_id for event in events],
            EVENT_TYPE: [event.event_type for event in events],
            VALUE: [event.value for event in events],
            EVENT_TIME: [min(event.event_time or now, now).astimezone(UTC) for event in events],
            DECISION_ID: [event.decision_id for event in events],
        },
        schema={
            EVENT_ID: pl.String,
            USER_ID: pl.String,
            ITEM_ID: pl.String,
            EVENT_TYPE: pl.String,
            VALUE: pl.Float32,
            EVENT_TIME: time_dtype,
            DECISION_ID: pl.String,
        },
    )
