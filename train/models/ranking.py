"""A ranker that can be used and kept: weights, config and vocabulary as one."""

from pathlib import Path

import numpy as np
import polars as pl
import torch
from torch import Tensor

from data.schema import USER_ATTRIBUTES
from train.encoding import encode_attributes, encode_users
from train.models.candidate_features import Codes, Floats, candidate_features, user_features
from train.models.files import load_files, save_files
from train.models.ranker import Ranker, RankerConfig, RankerInputs
from train.models.retrieval import RetrievalModel
from train.vocabulary import Vocabulary


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
        """Logits (B, K) of the candidates that `retrieval` found for B feature rows; -inf where there is none."""
        return self.logits_of(ranker_inputs(rows, candidates_BK, scores_BK, item_features_BKF, retrieval))

    def logits_of(self, inputs: RankerInputs) -> Floats:
        """Logits (B, K) of what is ready for the network: the ranker itself."""
        with torch.inference_mode():
            logits: Floats = self.network.score(inputs).numpy()
        return logits

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
    history_BL = encode_users(rows, vocabulary, retrieval.config.history_length).history_BL.numpy().astype(np.int64)
    dense_BKF = candidate_features(candidates_BK, scores_BK, item_features_BKF, history_BL, retrieval)
    return RankerInputs(
        user_attributes_BA=encode_attributes(rows[USER_ATTRIBUTES], vocabulary.user_attribute_codes),
        user_features_BF=torch.from_numpy(user_features(rows)),
        candidates_BK=torch.from_numpy(candidates_BK),
        candidate_features_BKF=torch.from_numpy(dense_BKF),
    )
