"""A ranker that can be used and kept: weights, config and vocabulary as one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from train.encoding import encode_users
from train.models.candidate_features import Codes, Floats, candidate_features, user_features
from train.models.files import load_files, save_files
from train.models.ranker import Ranker, RankerConfig, RankerInputs
from train.models.retrieval import RetrievalModel
from train.vocabulary import Vocabulary


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
        self.network = Ranker(config, vocabulary, torch.empty_like(weights["item_attributes_IA"]))
        self.network.load_state_dict(weights)
        self.network.eval()

    def score(
        self,
        rows: pl.DataFrame,
        candidates_BK: Codes,
        scores_BK: Floats,
        item_features_BKF: Floats,
        retrieval: RetrievalModel,
    ) -> Floats:
        """Ranking scores (B, K) of the candidates that `retrieval` found for B feature rows; -inf where there is none.

        See `train.models.ranker.Ranker.score`.
        """
        return self.scores_of(ranker_inputs(rows, candidates_BK, scores_BK, item_features_BKF, retrieval))

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
) -> RankerInputs:
    """What the network reads for B feature rows and their candidates; the codes are those of `retrieval`."""
    vocabulary = retrieval.vocabulary
    users = encode_users(rows, vocabulary, retrieval.config.history_length)
    history_BL = users.history_BL.numpy().astype(np.int64)
    dense_BKF = candidate_features(candidates_BK, scores_BK, item_features_BKF, history_BL, retrieval)
    return RankerInputs(
        users=users,
        user_features_BF=torch.from_numpy(user_features(rows)),
        candidates_BK=torch.from_numpy(candidates_BK),
        candidate_features_BKF=torch.from_numpy(dense_BKF),
        item_directions_ID=torch.from_numpy(retrieval.item_directions_ID),
    )
