"""Leaves out what a request must not be answered with and cuts the candidates to the graph's width."""

import dataclasses

import numpy as np

from serve.batch import Batch, Codes
from serve.eligibility import Eligibility, RulesConfig, ValueLimits
from serve.variant import Catalogue
from train.vocabulary import UNKNOWN


class Filter:
    """Already seen (the user's events, the request's recent items), availability, allow and deny lists, and rules."""

    def __init__(self, catalogue: Catalogue, candidates: int, rules: RulesConfig | None = None) -> None:
        rules = rules or RulesConfig()
        self._eligibility = Eligibility(catalogue, rules)
        self._limits = ValueLimits(catalogue, rules.max_per_value)
        self._candidates = candidates
        self._size = len(catalogue)

    def run(self, batch: Batch) -> Batch:
        """Keep the first eligible `candidates` of each row, in order; free slots hold `UNKNOWN` and -inf.

        Where rules say how many items of a kind an answer may have, as many as can be together are among those kept.
        """
        shape = (len(batch), min(self._candidates, batch.codes_BK.shape[1]))
        codes_BK = np.full(shape, UNKNOWN, np.int64)
        scores_BK = np.full(shape, -np.inf, np.float32)
        asked_BKS = batch.sources_BKS
        sources_BKS = None if asked_BKS is None else np.full((*shape, asked_BKS.shape[2]), -np.inf, np.float32)
        for row, excluded in enumerate(self._eligibility.excluded(batch)):
            barred_I = np.zeros(self._size + 1, np.bool_)
            barred_I[UNKNOWN] = True
            barred_I[excluded] = True
            eligible = np.flatnonzero(~barred_I[batch.codes_BK[row]])
            kept = self._first(batch.codes_BK[row], eligible, shape[1])
            codes_BK[row, : len(kept)] = batch.codes_BK[row, kept]
            scores_BK[row, : len(kept)] = batch.retrieval_BK[row, kept]
            if asked_BKS is not None and sources_BKS is not None:
                sources_BKS[row, : len(kept)] = asked_BKS[row, kept]
        return dataclasses.replace(batch, codes_BK=codes_BK, retrieval_BK=scores_BK, sources_BKS=sources_BKS)

    def _first(self, codes_K: Codes, eligible: Codes, count: int) -> Codes:
        """The first `count` eligible places; those that can be in one answer come before others."""
        if not self._eligibility.limited or len(eligible) <= count:
            return eligible[:count]
        together = self._limits.kept(codes_K[eligible])
        return np.sort(np.concatenate([eligible[together], eligible[~together]])[:count])


class Limit:
    """The rules on how many items of a kind an answer may have, after all that changes its order."""

    def __init__(self, catalogue: Catalogue, rules: RulesConfig | None = None) -> None:
        rules = rules or RulesConfig()
        self._limited = bool(rules.max_per_value)
        self._limits = ValueLimits(catalogue, rules.max_per_value)

    def run(self, batch: Batch) -> Batch:
        """Drop what is too much of a kind; free slots are last."""
        if not self._limited:
            return batch
        kept_BK = np.stack([self._limits.kept(codes_K) for codes_K in batch.codes_BK])
        batch = batch.reordered(np.argsort(~kept_BK, axis=1, kind="stable"))
        empty_BK = np.arange(kept_BK.shape[1]) >= kept_BK.sum(axis=1, keepdims=True)
        return dataclasses.replace(
            batch,
            codes_BK=np.where(empty_BK, UNKNOWN, batch.codes_BK),
            retrieval_BK=np.where(empty_BK, np.float32(-np.inf), batch.retrieval_BK),
            scores_BK=np.where(empty_BK, np.float32(-np.inf), batch.scores_BK),
        )
