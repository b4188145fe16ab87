"""Training the two-tower: which rows it learns from, in which order, and how it is judged on the way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.offline.store import read_examples
from data.schema import ITEM_ID, SEQUENCE, SPLIT, USER_ID, VALUE
from data.splits import TRAIN, VALIDATION
from train.encoding import encode_users
from train.histories import Histories
from train.index import ExactIndex
from train.loop import EpochResult, FitConfig
from train.metrics import ndcg_at, ranks_of, recall_at
from train.models.covisitation import fit_covisitation
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.models.two_tower import RetrievalBatch, TwoTower, TwoTowerConfig, sampling_probabilities
from train.order import epoch_generator, shares
from train.scaling import Scaling
from train.tracking import TrackingTarget
from train.trainer import train_distributed
from train.vocabulary import Vocabulary

USERS_AT_ONCE = 1024


class RetrievalConfig(BaseModel):
    """Everything that decides what a retrieval training gives, the data aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    two_tower: TwoTowerConfig = TwoTowerConfig()
    """The model."""
    fit: FitConfig = FitConfig(epochs=6, patience=2)
    """How long to train."""
    batch_size: PositiveInt = 1024
    """Examples of a global batch, over all workers."""
    learning_rate: PositiveFloat = 2e-3
    """Of AdamW."""
    weight_decay: NonNegativeFloat = 0.01
    """Of AdamW, decoupled."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the initial weights, the order of the examples and the sampled negatives."""


@dataclass(frozen=True)
class TrainingRows:
    """Which examples a retrieval model is fitted on."""

    splits: tuple[str, ...] = (TRAIN,)
    """Splits to learn from."""
    before: int | None = None
    """Only examples with a smaller `sequence`; all if none."""


@dataclass(frozen=True)
class RetrievalTaskConfig:
    """What a worker needs to build its `RetrievalTask`."""

    config: RetrievalConfig
    examples: Path
    rows: TrainingRows
    vocabulary: Vocabulary
    item_attributes_IA: Tensor


class RetrievalTask:
    """A two-tower and its examples, as `train.loop` wants them."""

    def __init__(self, task: RetrievalTaskConfig) -> None:
        self._config = task.config
        self._vocabulary = task.vocabulary
        examples = read_examples(task.examples)
        chosen = examples.filter(_selection(task.rows))
        length = task.config.two_tower.history_length
        self._users = encode_users(chosen, task.vocabulary, length)
        self._targets_B = torch.from_numpy(task.vocabulary.encode_items(chosen[ITEM_ID]))
        self._validation = _Validation(examples, task.vocabulary, length)
        self.examples_per_epoch = chosen.height
        torch.manual_seed(task.config.seed)
        self.model = TwoTower(task.config.two_tower, task.vocabulary, task.item_attributes_IA)
        self.model.describe_training(self._targets_B, self._users)

    def optimizer(self) -> Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(
            self.model.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay
        )

    def batches(self, epoch: int, rank: int, size: int) -> Iterator[RetrievalBatch]:
        """This rank's share of every global batch; the order is a function of (seed, epoch) alone."""
        generator = epoch_generator(self._config.seed, epoch)
        ours = shares(self.examples_per_epoch, self._config.batch_size, generator=generator, rank=rank, size=size)
        for share in ours:
            negatives_N = self._sample_negatives(generator)
            yield RetrievalBatch(self._users[share.rows], self._targets_B[share.rows], share.scale, negatives_N)

    def validate(self) -> dict[str, float]:
        """NDCG@10 and Recall@10 of the validation events, full catalogue, the user's history masked."""
        return self._validation.measure(self.model)

    def _sample_negatives(self, generator: torch.Generator) -> Tensor | None:
        two_tower = self._config.two_tower
        if two_tower.loss == "full_softmax":
            return None
        probabilities_I = sampling_probabilities(self.model.item_frequency_I.cpu(), two_tower.sampling_power)
        return torch.multinomial(probabilities_I, two_tower.num_negatives, replacement=True, generator=generator)


class _Validation:
    """The held-out event of each user that chooses among epochs and trials."""

    def __init__(self, examples: pl.DataFrame, vocabulary: Vocabulary, history_length: int) -> None:
        rows = examples.filter(pl.col(SPLIT) == VALIDATION)
        self._users = encode_users(rows, vocabulary, history_length)
        self._targets = vocabulary.encode_items(rows[ITEM_ID])
        self._seen = Histories(examples, vocabulary).before(rows[USER_ID].to_list(), rows[SEQUENCE].to_list())

    @torch.no_grad()
    def measure(self, model: TwoTower) -> dict[str, float]:
        device = model.item_frequency_I.device
        items_ID = model.encode_items()
        index = ExactIndex(items_ID.cpu().numpy())
        ranked: list[npt.NDArray[np.int64]] = []
        for start in range(0, len(self._users), USERS_AT_ONCE):
            some = slice(start, start + USERS_AT_ONCE)
            users_BD = model.encode_users(self._users[some].to(device), items_ID).cpu().numpy()
            ranked.append(index.search(users_BD, 10, self._seen[some])[0])
        ranks = ranks_of(self._targets, np.concatenate(ranked))
        return {"ndcg@10": ndcg_at(ranks, 10), "recall@10": recall_at(ranks, 10)}


@dataclass(frozen=True)
class TrainedRetrieval:
    """A fitted two-tower with the curve of its training."""

    model: RetrievalModel
    history: list[EpochResult]
    best_epoch: int


def retrieval_task(
    dataset: Dataset, examples: Path, config: RetrievalConfig, rows: TrainingRows = TrainingRows()
) -> RetrievalTaskConfig:
    """What to train: the catalogue of `dataset` and the chosen rows of its `examples`.

    Raises:
        TowerlineError: there are fewer than two such rows.
    """
    chosen = read_examples(examples).filter(_selection(rows))
    if chosen.height < 2:
        raise TowerlineError(f"{examples}: {chosen.height} training examples; ingest more events")
    items = dataset.items()
    vocabulary = Vocabulary.build(dataset.events(), items, dataset.users(), chosen[VALUE])
    return RetrievalTaskConfig(config, examples, rows, vocabulary, item_attribute_codes(items, vocabulary))


def train_retrieval(
    task: RetrievalTaskConfig,
    scaling: Scaling,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[EpochResult], None] | None = None,
) -> TrainedRetrieval:
    """Fit a two-tower on Ray Train; resumes where a run of the same name in the same `storage` stopped."""
    trained = train_distributed(
        RetrievalTask, task, task.config.fit, scaling, name=name, storage=storage, tracking=tracking, progress=progress
    )
    events = read_examples(task.examples).filter(_selection(task.rows))
    covisitation = fit_covisitation(events, task.vocabulary)
    model = RetrievalModel(task.config.two_tower, task.vocabulary, trained.weights, covisitation)
    return TrainedRetrieval(model, trained.history, trained.best_epoch)


def _selection(rows: TrainingRows) -> pl.Expr:
    chosen = pl.col(SPLIT).is_in(rows.splits)
    return chosen if rows.before is None else chosen & (pl.col(SEQUENCE) < rows.before)
