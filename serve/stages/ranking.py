"""Puts the candidates in their final order: the ranker over user, item, history and retrieval-score features."""

import dataclasses
from typing import Protocol

import numpy as np
import polars as pl

from data.features import COUNTED_EVENTS, ITEM_FEATURE_COLUMNS, TIME, finish_item_features
from data.schema import EVENT_TIME, ITEM_EVENT_COUNT, ITEM_ID, ITEM_LAST_TIME, ITEM_SUM_VALUE
from serve.batch import Batch
from serve.variant import Variant
from train.vocabulary import UNKNOWN


class ItemStore(Protocol):
    """What the stage reads: the running aggregates of items."""

    def item_aggregates(self) -> pl.DataFrame:
        """item_id, item_event_count, item_sum_value and item_last_time of every item with an event."""
        ...


class Ranking:
    """The ranker of one variant over fresh item features."""

    def __init__(self, variant: Variant, store: ItemStore) -> None:
        self._variant = variant
        self._store = store

    def run(self, batch: Batch) -> Batch:
        """Score the candidates and sort them, best first; ties go to the smaller code, empty slots last."""
        features = self._item_features(batch)
        scores_BK = self._variant.rank(batch.users, batch.codes_BK, batch.retrieval_BK, features)
        scores_BK = np.where(batch.codes_BK == UNKNOWN, -np.inf, scores_BK).astype(np.float32)
        order_BK = np.lexsort((batch.codes_BK, -scores_BK), axis=1)
        flat = (np.arange(len(batch))[:, None] * scores_BK.shape[1] + order_BK).ravel()
        return dataclasses.replace(
            batch,
            codes_BK=np.take_along_axis(batch.codes_BK, order_BK, axis=1),
            retrieval_BK=np.take_along_axis(batch.retrieval_BK, order_BK, axis=1),
            scores_BK=np.take_along_axis(scores_BK, order_BK, axis=1),
            item_features=features[flat],
        )

    def _item_features(self, batch: Batch) -> pl.DataFrame:
        """Item features as of the batch's moment, B x K rows.

        An event that another replica's clock dates after this moment counts as one of this moment.
        """
        now = pl.lit(batch.at).cast(TIME)
        catalogue = self._variant.catalogue
        state = self._store.item_aggregates()
        candidates = pl.DataFrame({"code": batch.codes_BK.ravel()})
        known = candidates.unique().filter(pl.col("code") != UNKNOWN)
        ids = pl.Series(ITEM_ID, [catalogue.item_id(code) for code in known["code"]], dtype=pl.String)
        asked = known.with_columns(ids).join(state, on=ITEM_ID, how="left")
        finished = finish_item_features(
            asked.select(
                "code",
                ITEM_ID,
                ITEM_EVENT_COUNT,
                ITEM_SUM_VALUE,
                pl.min_horizontal(ITEM_LAST_TIME, now).alias(ITEM_LAST_TIME),
                pl.lit(state[ITEM_EVENT_COUNT].sum()).alias(COUNTED_EVENTS),
                now.alias(EVENT_TIME),
            )
        )
        rows = candidates.join(finished, on="code", how="left", maintain_order="left")
        return rows.select(ITEM_ID, pl.col(ITEM_FEATURE_COLUMNS).fill_null(0))
