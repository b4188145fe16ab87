"""Puts the candidates in their final order: the ranker over user, item, history and retrieval-score features."""

import dataclasses

import numpy as np
import polars as pl

from data.features import COUNTED_EVENTS, with_item_share
from data.online.store import OnlineStore
from data.views import ITEM
from serve.batch import Batch, Codes, without
from serve.variant import Variant
from train.vocabulary import UNKNOWN

NO_ITEM = ""
"""What is asked for in the place of an empty slot: no item has this id, so its features are the defaults."""


class Ranking:
    """The ranker of one variant over fresh item features."""

    def __init__(self, variant: Variant, store: OnlineStore) -> None:
        self._variant = variant
        self._store = store

    def run(self, batch: Batch) -> Batch:
        """Score the candidates and sort them, best first; ties go to the smaller item id, empty slots last."""
        features, rows_BK = self._item_features(batch)
        lists = batch.codes_BK, batch.retrieval_BK, batch.sources_BKS
        scores_BK = self._variant.rank(batch.users, *lists, items=features, rows_BK=rows_BK)
        scores_BK = np.where(batch.codes_BK == UNKNOWN, -np.inf, scores_BK).astype(np.float32)
        order_BK = self._variant.catalogue.best_first(scores_BK, batch.codes_BK)
        unchanged = self._store.published_version() == batch.data_version
        return dataclasses.replace(
            batch,
            data_version=batch.data_version if unchanged else None,
            codes_BK=np.take_along_axis(batch.codes_BK, order_BK, axis=1),
            retrieval_BK=np.take_along_axis(batch.retrieval_BK, order_BK, axis=1),
            sources_BKS=None,
            scores_BK=np.take_along_axis(scores_BK, order_BK, axis=1),
            item_features=features[np.take_along_axis(rows_BK, order_BK, axis=1).ravel()],
        )

    def _item_features(self, batch: Batch) -> tuple[pl.DataFrame, Codes]:
        """The features of the distinct candidates as of the batch's moment, and each slot's row (B, K) among them."""
        codes, rows = np.unique(batch.codes_BK, return_inverse=True)
        ids = [NO_ITEM if code == UNKNOWN else self._variant.catalogue.item_id(code) for code in codes.tolist()]
        stored = self._store.read(ITEM, ids, batch.at)
        counted = pl.Series(COUNTED_EVENTS, [batch.everything[COUNTED_EVENTS]] * len(ids), dtype=pl.Int64)
        found = with_item_share(stored.hstack([counted]))
        return without(found, "known", COUNTED_EVENTS), rows.reshape(batch.codes_BK.shape)
