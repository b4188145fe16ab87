"""What real questions come to when they reach the networks of a pair: to check another runtime on, and to time it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl
import torch

from train.encoding import UserBatch
from train.index import Codes
from train.models.onnx_network import axes_of, tensors_of, with_tensors
from train.models.ranker import RankerInputs
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel
from train.pair import RankedRecommender

Pairing = Callable[[RetrievalModel, RankingModel], RankedRecommender]
"""Two models as the recommender that they are together, with the item features and the number of candidates."""


@dataclass(frozen=True)
class Asked:
    """The inputs of both networks for the same users."""

    users: UserBatch
    inputs: RankerInputs

    def __len__(self) -> int:
        return len(self.users)

    def one(self, row: int) -> "Asked":
        """A single user."""
        return Asked(self.users[slice(row, row + 1)], self.inputs[torch.tensor([row])])

    def user_batches(self) -> Iterator[UserBatch]:
        """All users, one alone, and those who have done nothing yet."""
        yield from (self.users, self.users[:1], self.users.without_history(), self.users.without_history()[:1])

    def input_batches(self) -> Iterator[RankerInputs]:
        """All users, one alone, and either with a single candidate."""
        for inputs in (self.inputs, self.inputs[torch.tensor([0])]):
            yield from (inputs, first_candidates(inputs, 1))


def asked(
    pairing: Pairing, retrieval: RetrievalModel, ranking: RankingModel, rows: pl.DataFrame, exclude: list[Codes]
) -> Asked:
    """What the networks of the pair are given for feature rows. `exclude`: as for `Recommends`."""
    inputs = pairing(retrieval, ranking).lists(rows, exclude)
    return Asked(inputs.users, inputs)


def first_candidates(inputs: RankerInputs, count: int) -> RankerInputs:
    """The same users with the first `count` of their candidates."""
    tensors = {name: tensor for name, tensor in tensors_of(inputs).items() if "K" in axes_of(name)}
    cut = {name: tensor.narrow(axes_of(name).index("K"), 0, count) for name, tensor in tensors.items()}
    return with_tensors(inputs, cut)
