"""Questions of users of whom little is known: the same users, moments and answers, with all but the last events hidden.

Few users of a data set are cold by themselves, and those who are differ from the others in more than that. So each
user is asked about at every number of known events, and what differs between the numbers is what is known.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from cluster.errors import TowerlineError
from data.features import views
from data.schema import EVENT_TIME, SEQUENCE, SOURCE_ROW, USER_ATTRIBUTES, USER_ID
from data.temporal.point_in_time import features_of
from data.views import USER, views_of
from train.cases import MIN_USERS, Cases

_ASKED = "asked"


def drawn(cases: Cases, users: int, seed: int) -> Cases:
    """The questions of so many users, drawn by the seed; of all of them if there are fewer."""
    ids = cases.rows[USER_ID].unique().sort().to_numpy()
    chosen = np.random.default_rng(seed).permutation(ids)[:users]
    return _of(cases, np.flatnonzero(np.isin(cases.rows[USER_ID].to_numpy(), chosen)).tolist())


def with_known_events(cases: Cases, visible: pl.DataFrame, known_events: int, history_length: int) -> Cases:
    """The questions as if only the last `known_events` events before each moment had happened.

    `visible`: the events that the protocol lets be known, with `sequence`. Users with fewer events are left out. What
    is masked stays all that the user had met: otherwise what cannot be the answer would be recommended.

    Raises:
        TowerlineError: fewer than `MIN_USERS` users have so many events.
    """
    moments = cases.rows.select(USER_ID, EVENT_TIME, SOURCE_ROW, SEQUENCE)
    asked = moments.select(USER_ID, pl.col(SEQUENCE).alias(_ASKED))
    before = visible.join(asked, on=USER_ID).filter(pl.col(SEQUENCE) < pl.col(_ASKED)).drop(_ASKED)
    counts = dict(before.group_by(USER_ID).len().iter_rows())
    rows = [row for row, user in enumerate(cases.rows[USER_ID]) if counts.get(user, 0) >= known_events]
    if len({cases.rows[USER_ID][row] for row in rows}) < MIN_USERS:
        raise TowerlineError(
            f"{len(rows)} users have {known_events} events before they are asked, and {MIN_USERS} or more are needed; "
            "ask about more users or fewer known events"
        )
    kept = _of(cases, rows)
    last = before.sort(SEQUENCE).filter(pl.int_range(pl.len(), 0, -1).over(USER_ID) <= known_events)
    features = features_of(views_of(USER, views(history_length)), last.select(visible.columns), moments[rows])
    return replace(kept, rows=features.hstack([kept.rows[USER_ATTRIBUTES]]))


def _of(cases: Cases, rows: Sequence[int]) -> Cases:
    return replace(
        cases,
        rows=cases.rows[list(rows)],
        exclude=[cases.exclude[row] for row in rows],
        targets=[cases.targets[row] for row in rows],
    )
