"""The questions of a protocol as a recommender is asked them: rows of features, what is masked, what is right."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from cluster.errors import TowerlineError
from data.features import HISTORY_LENGTH, views, with_sequence
from data.schema import ATTRIBUTES, EVENT_TIME, ITEM_ID, SEQUENCE, SOURCE_ROW, SPLIT, USER_ATTRIBUTES, USER_ID
from data.splits import TEST, TRAIN
from data.temporal.point_in_time import features_of
from data.views import USER, views_of
from train.histories import Histories
from train.index import Codes
from train.protocols import EvaluationProtocol
from train.vocabulary import UNKNOWN, Vocabulary, encode

MIN_USERS = 2
"""With fewer there is no interval."""


@dataclass(frozen=True)
class Training:
    """What the training events say of every item code (I + 1, `UNKNOWN` first, of which nothing is said)."""

    events_I: npt.NDArray[np.int64]
    users_I: npt.NDArray[np.int64]
    """Distinct users who met the item."""
    num_users: int


@dataclass(frozen=True)
class Cases:
    """N questions."""

    protocol: EvaluationProtocol
    vocabulary: Vocabulary
    rows: pl.DataFrame
    """Feature rows, with `user_id`, `event_time`, `source_row` and `sequence` of the moment."""
    exclude: list[Codes]
    """Items met before, one code per event, in order."""
    targets: list[Codes]
    """The right answers, each once; `UNKNOWN` for one that the vocabulary does not know."""
    training: Training

    def __len__(self) -> int:
        return self.rows.height


def cases(
    protocol: EvaluationProtocol,
    events: pl.DataFrame,
    users: pl.DataFrame,
    vocabulary: Vocabulary,
    *,
    split: str = TEST,
    history_length: int = HISTORY_LENGTH,
) -> Cases:
    """The questions of `protocol` on a split (`TEST` or `VALIDATION`), by user.

    `events` and `users` are those of the data set; `history_length`: events of a user's history that a row carries.

    Raises:
        TowerlineError: there are fewer than `MIN_USERS` users to ask, or the protocol cannot split these events.
    """
    assigned = protocol.assign(with_sequence(events))
    asked = protocol.questions(assigned, split)
    if asked[USER_ID].n_unique() < MIN_USERS:
        raise TowerlineError(
            f"the protocol {type(protocol).__name__} finds {asked[USER_ID].n_unique()} users for its {split} events "
            f"among {assigned[USER_ID].n_unique()}, and needs {MIN_USERS} or more; ingest more events"
        )
    known = protocol.visible(assigned).join(asked.select(USER_ID), on=USER_ID, how="semi", maintain_order="left")
    moments = asked.select(USER_ID, EVENT_TIME, SOURCE_ROW, SEQUENCE)
    features = features_of(views_of(USER, views(history_length)), known, moments)
    attributes = users.select(USER_ID, pl.col(ATTRIBUTES).alias(USER_ATTRIBUTES))
    rows = features.join(attributes, on=USER_ID, how="left", maintain_order="left").with_columns(
        pl.col(USER_ATTRIBUTES).fill_null(pl.lit([], dtype=pl.List(pl.String)))
    )
    return Cases(
        protocol,
        vocabulary,
        rows,
        Histories(known, vocabulary).before(asked[USER_ID].to_list(), asked[SEQUENCE].to_list()),
        _targets(asked[ITEM_ID], vocabulary),
        _training(assigned.filter(pl.col(SPLIT) == TRAIN), vocabulary),
    )


def training_events(protocol: EvaluationProtocol, events: pl.DataFrame) -> pl.DataFrame:
    """The events that a model may be fitted on, in the total order with `sequence` and `split`."""
    return protocol.assign(with_sequence(events)).filter(pl.col(SPLIT) == TRAIN)


def _targets(items: pl.Series, vocabulary: Vocabulary) -> list[Codes]:
    lists = items.to_arrow()
    codes = encode(lists.flatten(), vocabulary.item_codes)
    return np.split(codes, np.cumsum(items.list.len().to_numpy())[:-1])


def _training(events: pl.DataFrame, vocabulary: Vocabulary) -> Training:
    codes = vocabulary.encode_items(events[ITEM_ID])
    known = codes != UNKNOWN
    users = events[USER_ID].rank("dense").to_numpy().astype(np.int64)
    num_users = int(users.max(initial=0))
    size = vocabulary.num_items + 1
    pairs = np.unique(codes[known] * (num_users + 1) + users[known])
    return Training(
        np.bincount(codes[known], minlength=size),
        np.bincount(pairs // (num_users + 1), minlength=size),
        num_users,
    )
