"""A ranker that can be used and kept: weights, config and vocabulary as one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from cluster.errors import TowerlineError
from train.models.candidate_features import (
    CANDIDATE_FEATURES,
    SOURCE_FEATURES,
    Codes,
    Floats,
    candidate_features,
    source_features,
    user_features,
)
from train.models.files import load_files, save_files
from train.models.growth import grown_vocabulary, stacked_codes, with_rows
from train.models.ranker import Ranker, RankerConfig, RankerInputs
from train.models.retrieval import RetrievalModel, content_codes
from train.vocabulary import Vocabulary

TABLES_BY_ITEM = ("item.weight", "item_seen_I1")
"""Weights of a ranker that have a row for each item code, the codes of its content aside."""


@dataclass(frozen=True)
class Predictions:
    """What a ranker says of B users' K candidates, in probabilities and values."""

    choice_BK: Floats
    """Probability to be the one that is chosen, if one of them is; 0 where there is no candidate."""
    like_BK: Floats | None
    """Probability of a like, if this one is chosen; None where that was not learnt."""
    value_BK: Floats | None
    """Expected value of the event, if this one is chosen; None where that was not learnt."""


class RankingModel:
    """The ranker as a function from feature rows and candidates to scores, on the CPU."""

    def __init__(self, config: RankerConfig, vocabulary: Vocabulary, weights: dict[str, Tensor]) -> None:
        self.config = config
        self.vocabulary = vocabulary
        width = weights["candidate_range_4F"].shape[1]
        self.network = Ranker(config, vocabulary, torch.empty_like(weights["item_attributes_IA"]), width)
        self.network.load_state_dict(weights)
        self.network.eval()

    def score(
        self,
        rows: pl.DataFrame,
        candidates_BK: Codes,
        scores_BK: Floats,
        item_features_BKF: Floats,
        retrieval: RetrievalModel,
        *,
        sources_BKS: Floats | None = None,
    ) -> Floats:
        """Ranking scores (B, K) of the candidates that `retrieval` found for B feature rows; -inf where there is none.

        See `train.models.ranker.Ranker.score`. `sources_BKS`: what its sources think of them; asked for if None.

        Raises:
            TowerlineError: `retrieval` is not beside the sources that the ranker was trained with.
        """
        self.require_sources(retrieval)
        lists_BK = candidates_BK, scores_BK, item_features_BKF
        return self.scores_of(ranker_inputs(rows, *lists_BK, retrieval, sources_BKS=sources_BKS))

    def scores_of(self, inputs: RankerInputs) -> Floats:
        """Ranking scores (B, K) of what is ready for the network: the ranker itself."""
        with torch.inference_mode():
            ranked: Floats = self.network.score(inputs).numpy()
        return ranked

    def predict(self, inputs: RankerInputs, *, calibrated: bool = True) -> Predictions:
        """Probabilities and values of candidate lists; `calibrated=False`: as they came out of training."""
        with torch.inference_mode():
            found = self.network.outputs(inputs)
            choice_BK, like_BK = self.network.calibrated(found) if calibrated else (found.choice_BK, found.like_BK)
            return Predictions(
                choice_BK.softmax(dim=1).nan_to_num().numpy(),
                None if like_BK is None else like_BK.sigmoid().numpy(),
                None if found.value_BK is None else found.value_BK.numpy(),
            )

    def require_sources(self, retrieval: RetrievalModel) -> None:
        """Raise TowerlineError unless as many sources score the candidates of `retrieval` as the ranker reads."""
        names = retrieval.ensemble.config.score_names
        read = (self.network.candidate_range_4F.shape[1] - len(CANDIDATE_FEATURES)) // len(SOURCE_FEATURES)
        if len(names) != read:
            raise TowerlineError(
                f"the ranker reads the scores of {read} sources, and the retrieval model has those of {len(names)} "
                f"({', '.join(names) or 'none'}); fit the ranker's own with train.ranking.with_sources, or train again"
            )

    def with_items(self, items: pl.DataFrame) -> "RankingModel":
        """The same model with these items after its own, known by their content alone (`RetrievalModel.with_items`)."""
        weights = with_rows(self.network.state_dict(), TABLES_BY_ITEM, items.height)
        codes_NA = content_codes(items, self.vocabulary)
        weights["item_attributes_IA"] = stacked_codes(self.network.item_attributes_IA, codes_NA)
        return RankingModel(self.config, grown_vocabulary(self.vocabulary, items), weights)

    def save(self, folder: Path) -> None:
        """Write the model into an existing folder."""
        save_files(folder, self.config, self.vocabulary, self.network.state_dict())

    @classmethod
    def load(cls, folder: Path) -> "RankingModel":
        """Read what `save` wrote."""
        return cls(*load_files(folder, RankerConfig))


def ranker_inputs(
    rows: pl.DataFrame,
    candidates_BK: Codes,
    scores_BK: Floats,
    item_features_BKF: Floats,
    retrieval: RetrievalModel,
    *,
    sources_BKS: Floats | None = None,
) -> RankerInputs:
    """What the network reads for B feature rows and their candidates; the codes are those of `retrieval`.

    `sources_BKS`: what its sources think of them; asked for if None.
    """
    if sources_BKS is None:
        sources_BKS = retrieval.source_scores(rows, candidates_BK)
    users = retrieval.encoded(rows)
    history_BL = users.history_BL.numpy().astype(np.int64)
    dense_BKF = candidate_features(candidates_BK, scores_BK, item_features_BKF, history_BL, retrieval)
    opinions_BKF = source_features(candidates_BK, sources_BKS)
    return RankerInputs(
        users=users,
        user_features_BF=torch.from_numpy(user_features(rows)),
        candidates_BK=torch.from_numpy(candidates_BK),
        candidate_features_BKF=torch.from_numpy(np.concatenate([dense_BKF, opinions_BKF], axis=2)),
        item_directions_ID=torch.from_numpy(retrieval.item_directions_ID),
    )
