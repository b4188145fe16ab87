"""The same models with their networks run by something else than torch: all around the network stays as it is."""

from collections.abc import Callable

from train.encoding import UserBatch
from train.index import Floats
from train.models.ranker import RankerInputs
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel


class RetrievalRunBy(RetrievalModel):
    """A retrieval model of which `run` is the user tower."""

    def __init__(self, model: RetrievalModel, run: Callable[[UserBatch], Floats]) -> None:
        """`run`: encoded users to vectors (B, D + 1)."""
        vars(self).update(vars(model))  # another view of the model, not another model
        self._run = run

    def vectors_of(self, users: UserBatch) -> Floats:
        """See `RetrievalModel`."""
        return self._run(users)


class RankingRunBy(RankingModel):
    """A ranking model of which `run` is the network."""

    def __init__(self, model: RankingModel, run: Callable[[RankerInputs], Floats]) -> None:
        """`run`: the network's inputs to logits (B, K)."""
        vars(self).update(vars(model))  # another view of the model, not another model
        self._run = run

    def scores_of(self, inputs: RankerInputs) -> Floats:
        """See `RankingModel`."""
        return self._run(inputs)
