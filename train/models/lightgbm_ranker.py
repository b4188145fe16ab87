"""LambdaMART, what rankers are often made of: gradient-boosted trees (LightGBM) for comparison with ours.

Burges, "From RankNet to LambdaRank to LambdaMART" (2010). It reads the dense features of `train.models.ranker`, from
the same candidate lists, and neither attributes nor item ids.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from train.models.candidate_features import USER_FEATURES, Codes, Floats, feature_names
from train.models.files import CONFIG_FILE
from train.models.ranker import RankerInputs
from train.models.ranking import ranker_inputs
from train.models.retrieval import RetrievalModel
from train.vocabulary import UNKNOWN

if TYPE_CHECKING:
    import lightgbm

TREES_FILE = "trees.txt"


class LightGBMConfig(BaseModel):
    """The trees."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trees: PositiveInt = 500
    """At most."""
    patience: PositiveInt = 50
    """Trees without a better NDCG@10 on the validation lists after which no more are grown."""
    learning_rate: PositiveFloat = 0.05
    """Of each tree."""
    leaves: Annotated[int, Field(ge=2)] = 7
    """Of a tree, at most."""
    leaf_candidates: PositiveInt = 200
    """Candidates in a leaf, at least."""
    threads: PositiveInt = 1
    """Of training and scoring."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the trees."""


class LightGBMRanking:
    """The trees as a function from feature rows and candidates to scores, like `train.models.ranking.RankingModel`."""

    def __init__(self, config: LightGBMConfig, trees: "lightgbm.Booster") -> None:
        self.config = config
        self.trees = trees

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
        """Scores (B, K) of the candidates that `retrieval` found for B feature rows; -inf where there is none."""
        return self.score_inputs(
            ranker_inputs(rows, candidates_BK, scores_BK, item_features_BKF, retrieval, sources_BKS=sources_BKS)
        )

    def score_inputs(self, inputs: RankerInputs) -> Floats:
        """Scores (B, K) of candidate lists; -inf where there is no candidate."""
        candidates_BK = inputs.candidates_BK.numpy()
        found = self.trees.predict(_features(inputs), num_threads=self.config.threads)
        scores_BK = np.asarray(found, dtype=np.float32).reshape(candidates_BK.shape)
        return np.where(candidates_BK == UNKNOWN, np.float32(-np.inf), scores_BK)

    def save(self, folder: Path) -> None:
        """Write the model into an existing folder."""
        (folder / CONFIG_FILE).write_text(self.config.model_dump_json(indent=2), encoding="utf-8")
        (folder / TREES_FILE).write_text(self.trees.model_to_string(), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "LightGBMRanking":
        """Read what `save` wrote."""
        import lightgbm

        config = LightGBMConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
        return cls(config, lightgbm.Booster(model_str=(folder / TREES_FILE).read_text(encoding="utf-8")))


def train_lightgbm(
    lists: tuple[RankerInputs, Codes],
    validation: tuple[RankerInputs, Codes],
    config: LightGBMConfig,
    scored_by: Sequence[str] = (),
) -> LightGBMRanking:
    """Grow trees on candidate lists and the place of the chosen item in each (-1: not in it, the list says nothing).

    `scored_by`: the sources whose scores the lists hold.
    """
    import lightgbm

    parameters = {
        "objective": "lambdarank",
        "metric": "ndcg",
        "eval_at": [10],
        "label_gain": [0, 1],
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": config.leaf_candidates,
        "num_threads": config.threads,
        "seed": config.seed,
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }
    names = [*USER_FEATURES, *feature_names(scored_by)]
    learnt = _dataset(*lists, names)
    trees = lightgbm.train(
        parameters,
        learnt,
        num_boost_round=config.trees,
        valid_sets=[_dataset(*validation, names, reference=learnt)],
        callbacks=[lightgbm.early_stopping(config.patience, verbose=False)],
    )
    return LightGBMRanking(config, trees)


def _dataset(
    inputs: RankerInputs, positive_B: Codes, names: list[str], reference: "lightgbm.Dataset | None" = None
) -> "lightgbm.Dataset":
    """The present candidates of all lists whose chosen item is among them, one query each."""
    import lightgbm

    told = np.flatnonzero(positive_B >= 0)
    present_BK = inputs.candidates_BK.numpy()[told] != UNKNOWN
    labels_BK = np.zeros(present_BK.shape, dtype=np.int32)
    labels_BK[np.arange(len(told)), positive_B[told]] = 1
    features_BKF = _features(inputs).reshape(*inputs.candidates_BK.shape, -1)[told]
    return lightgbm.Dataset(
        features_BKF[present_BK],
        label=labels_BK[present_BK],
        group=present_BK.sum(axis=1),
        feature_name=names,
        reference=reference,
    )


def _features(inputs: RankerInputs) -> npt.NDArray[np.float32]:
    """Dense features (B K, F) of users and candidates."""
    num_lists, num_candidates = inputs.candidates_BK.shape
    user_BKF = inputs.user_features_BF.unsqueeze(1).expand(-1, num_candidates, -1).numpy()
    features_BKF = np.concatenate([user_BKF, inputs.candidate_features_BKF.numpy()], axis=2)
    return features_BKF.reshape(num_lists * num_candidates, -1)
