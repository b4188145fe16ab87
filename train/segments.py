"""Parts of the users and of the catalogue that figures are given for apart: a mean may hide who pays for it."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import polars as pl

from data.schema import USER_ATTRIBUTES
from train.cases import Cases, Training

COLD, WARM = "cold", "warm"
HEAD, TAIL = "head", "tail"

COLD_BELOW = 5
"""Users with fewer events before the moment they are asked at are cold, the others warm."""
HEAD_SHARE = 0.2
"""Of the items with training events, those with the most are the head; all other items are the tail."""
SEGMENT_MINIMUM = 20
"""Attribute values of fewer users are one segment together: a mean over less says nothing."""


def user_segments(cases: Cases, cold_below: int = COLD_BELOW, minimum: int = SEGMENT_MINIMUM) -> pl.Series:
    """The segments (list of strings) that the user of each case belongs to.

    `cold` or `warm`, and each of the user's attributes (`gender=F`); values that fewer than `minimum` users have are
    pooled as `<attribute>=(rare)`.
    """
    users = Counter(token for tokens in cases.rows[USER_ATTRIBUTES] for token in set(tokens))
    named = {
        token: token if count >= minimum else f"{token.partition('=')[0]}=(rare)" for token, count in users.items()
    }
    return pl.Series(
        "segments",
        [
            [COLD if len(met) < cold_below else WARM, *sorted({named[token] for token in tokens})]
            for met, tokens in zip(cases.exclude, cases.rows[USER_ATTRIBUTES], strict=True)
        ],
        dtype=pl.List(pl.String),
    )


def head_items(training: Training) -> npt.NDArray[np.bool_]:
    """Which item codes (I + 1,) are of the head; ties in the number of events go by code."""
    trained = int((training.events_I > 0).sum())
    by_events = np.argsort(-training.events_I, kind="stable")
    is_head_I = np.zeros(len(training.events_I), dtype=np.bool_)
    is_head_I[by_events[: round(trained * HEAD_SHARE)]] = True
    return is_head_I
