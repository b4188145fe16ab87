"""Retrieval from a catalogue in parts: each part nominates its best items, and from all of these the best are elected.

What is elected is what a search of the whole catalogue finds: an item that is among the best of all, for the two-tower
or for another source, is among the best of its part.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from data.buckets import bucket_numbers
from train.index import Codes, ExactIndex, Floats, top_items, without
from train.models.blending import union
from train.models.ensemble import TWO_TOWER, Ensemble, Found, Run, scores_at
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN


@dataclass(frozen=True)
class Nominated:
    """Candidates of B users from one part of the catalogue. N each, in no order; S scorers, the two-tower first."""

    codes_BN: Codes
    """Item codes of the whole catalogue; `UNKNOWN` where there is none."""
    scores_BNS: Floats
    """What each of `Ensemble.scorers` thinks of them; -inf where there is none."""


class Shard:
    """The part of a model's catalogue whose item ids have a hash of its own, number `number` of `shards`."""

    def __init__(self, model: RetrievalModel, number: int, shards: int) -> None:
        self._model = model
        of_item = bucket_numbers(pl.Series(model.vocabulary.items, dtype=pl.String), shards).to_numpy()
        self.codes_P = np.append(UNKNOWN, np.flatnonzero(of_item == number) + 1)
        """Its item codes, ascending, after `UNKNOWN`."""
        self._index = ExactIndex(model.item_vectors_ID[self.codes_P])
        self._places_I = np.zeros(model.vocabulary.num_items + 1, dtype=np.int64)
        self._places_I[self.codes_P] = np.arange(len(self.codes_P))

    def nominate(self, rows: pl.DataFrame, exclude: Sequence[Codes], count: int, run: Run = map) -> Nominated:
        """Who of this part may be among the `count` best for B feature rows, none of those excluded for its row."""
        ensemble, own = self._model.ensemble, [self._places_I[codes] for codes in exclude]
        scorers = ensemble.scorers(self._two_tower)
        scored = list(run(lambda score: without(self._of_part(score(rows)), own), scorers.values()))
        places_BN = _best_of_each(ensemble, dict(zip(scorers, scored, strict=True)), count)
        return Nominated(self.codes_P[places_BN], scores_at(scored, places_BN))

    def _two_tower(self, rows: pl.DataFrame) -> Floats:
        return self._index.scores(self._model.encode_users(rows))

    def _of_part(self, scores_BI: Floats) -> Floats:
        """Scores of its items alone: the two-tower scores no others."""
        return scores_BI if scores_BI.shape[1] == len(self.codes_P) else scores_BI[:, self.codes_P]


def _best_of_each(ensemble: Ensemble, scored: dict[str, Floats], count: int) -> Codes:
    """What each finder names (B, N), each once; without blending that is the two-tower's `count` best."""
    if ensemble.config.finders == (TWO_TOWER,):
        return top_items(scored[TWO_TOWER], count)[0]
    depth = ensemble.config.candidates.depth
    return union([top_items(scored[name], depth)[0] for name in ensemble.config.finders])


def elect(ensemble: Ensemble, nominated: Sequence[Nominated], count: int, num_items: int) -> Found:
    """The `count` best of what all parts of a catalogue of so many items have nominated, as `Ensemble.find` says.

    The nominees of all users together are a small catalogue, in which the best are found as in the whole one.
    """
    codes_BN = np.hstack([each.codes_BN for each in nominated])
    scores_BNS = np.concatenate([each.scores_BNS for each in nominated], axis=1)
    codes_C = np.unique(np.append(codes_BN, UNKNOWN))
    places_BN = np.searchsorted(codes_C, codes_BN)
    scored = {}
    for name, scores_BN in zip((TWO_TOWER, *ensemble.config.names), np.moveaxis(scores_BNS, 2, 0), strict=True):
        scores_BC = scored[name] = np.full((len(codes_BN), len(codes_C)), -np.inf, dtype=np.float32)
        np.put_along_axis(scores_BC, places_BN, scores_BN, axis=1)
        scores_BC[:, UNKNOWN] = -np.inf
    found = ensemble.select(scored, count)
    missing = min(count, num_items) - found.codes_BK.shape[1]
    return Found(
        np.pad(codes_C[found.codes_BK], ((0, 0), (0, missing)), constant_values=UNKNOWN),
        np.pad(found.scores_BK, ((0, 0), (0, missing)), constant_values=-np.inf),
        np.pad(found.sources_BKS, ((0, 0), (0, missing), (0, 0)), constant_values=-np.inf),
        found.named_BN,
    )
