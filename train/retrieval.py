"""Training the two-tower: which rows it learns from, in which order, and how it is judged on the way."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

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
from data.schema import ITEM_ID, SEQUENCE, SOURCE_ROW, SPLIT, USER_ID, VALUE
from data.splits import VALIDATION
from train.adamw import AdamW
from train.encoding import encode_users
from train.histories import Histories
from train.index import ExactIndex
from train.lazy_adamw import LazyAdamW
from train.loop import EpochResult, FitConfig
from train.metrics.accuracy import hits_of, ndcg_at, recall_at
from train.models.covisitation import fit_covisitation
from train.models.files import load_files
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.models.two_tower import RetrievalBatch, TwoTower, TwoTowerConfig, sampling_probabilities
from train.order import ExampleOrder, Share
from train.scaling import Scaling
from train.tracking import TrackingTarget
from train.trainer import train_distributed
from train.training_rows import TRAIN_SPLIT, TrainingRows
from train.vocabulary import Vocabulary
from train.warm_start import warm_start

USERS_AT_ONCE = 1024


class Distillation(BaseModel):
    """Learning from a teacher's scores besides the events (see `train.distillation`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    teacher: TwoTowerConfig
    """The larger model. Where no trained one is given it is trained first, on the same rows and otherwise alike."""
    temperature: PositiveFloat = 2.0
    """Of both softmaxes: the higher, the more the order of what was not chosen counts."""
    soft_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the teacher's scores in the loss; the rest is that of the events."""


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
    distillation: Distillation | None = None
    """Makes the model a student; none: it learns from events alone."""

    @property
    def of_teacher(self) -> "RetrievalConfig":
        """How the teacher of a student is trained."""
        assert self.distillation is not None
        return self.model_copy(update={"two_tower": self.distillation.teacher, "distillation": None})


@dataclass(frozen=True)
class RetrievalTaskConfig:
    """What a worker needs to build its `RetrievalTask`."""

    config: RetrievalConfig
    examples: Path
    rows: TrainingRows
    vocabulary: Vocabulary
    item_attributes_IA: Tensor
    start: Path | None = None
    """Folder of a saved model to go on from; its vocabulary is the beginning of this one."""
    teacher: Path | None = None
    """Folder of the saved model that a student learns from; its item codes are those of this vocabulary."""


class RetrievalTask:
    """A two-tower and its examples, as `train.loop` wants them."""

    network: ClassVar[type[TwoTower]] = TwoTower

    def __init__(self, task: RetrievalTaskConfig) -> None:
        if task.config.distillation is not None and task.teacher is None:
            raise TowerlineError(
                "retrieval.distillation is set, and this training has no teacher; leave it out of the configuration "
                "here (a search finds settings for a model of that size alone), or train with jobs.train_retrieval"
            )
        self._config = task.config
        self._vocabulary = task.vocabulary
        examples = read_examples(task.examples)
        new = task.rows.select(examples)
        chosen = pl.concat([new, task.rows.rehearsed(examples)]) if task.rows.replay else new
        length = task.config.two_tower.history_length
        self._users = encode_users(chosen, task.vocabulary, length)
        self._targets_B = torch.from_numpy(task.vocabulary.encode_items(chosen[ITEM_ID]))
        self._validation = _Validation(task.rows.protocol.assign(examples), task.vocabulary, length)
        self.order = ExampleOrder(torch.tensor(chosen[SOURCE_ROW].to_numpy()), task.config.batch_size, task.config.seed)
        torch.manual_seed(task.config.seed)
        self.model = self.network(task.config.two_tower, task.vocabulary, task.item_attributes_IA)
        if task.start is not None:
            # Where all events are learnt from again, those that the earlier model has seen are not to be counted twice.
            warm_start(self.model, RetrievalModel.load(task.start), count=task.rows.learnt is not None)
        self.model.describe_training(self._targets_B[: new.height], self._users[: new.height])

    def optimizer(self) -> Optimizer:
        """AdamW over all parameters; with a sparse item table the one that can step on it."""
        kind = LazyAdamW if self.model.config.sparse_item_table else AdamW
        return kind(self.model.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay)

    def batch(self, share: Share) -> RetrievalBatch:
        """The examples of a share, and the negatives that all ranks sample together."""
        negatives_N = self._sample_negatives(share)
        return RetrievalBatch(self._users[share.rows], self._targets_B[share.rows], share.scale, negatives_N)

    def validate(self) -> dict[str, float]:
        """NDCG@10 and Recall@10 of the validation events, full catalogue, the user's history masked."""
        return self._validation.measure(self.model)

    def _sample_negatives(self, share: Share) -> Tensor | None:
        two_tower = self._config.two_tower
        if two_tower.loss == "full_softmax":
            return None
        if two_tower.loss == "in_batch_softmax":
            return self._targets_B[share.batch]
        probabilities_I = sampling_probabilities(self.model.item_frequency_I.cpu(), two_tower.sampling_power)
        return torch.multinomial(
            probabilities_I, two_tower.num_negatives, replacement=True, generator=share.generator()
        )


class _Validation:
    """The held-out event of each user that chooses among epochs and trials."""

    def __init__(self, examples: pl.DataFrame, vocabulary: Vocabulary, history_length: int) -> None:
        rows = examples.filter(pl.col(SPLIT) == VALIDATION)
        self._users = encode_users(rows, vocabulary, history_length)
        self._targets = list(vocabulary.encode_items(rows[ITEM_ID])[:, np.newaxis])
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
        hits_BK, positives_B = hits_of(np.concatenate(ranked), self._targets), np.ones(len(self._users), dtype=np.int64)
        return {
            "ndcg@10": float(ndcg_at(hits_BK, positives_B, 10).mean()),
            "recall@10": float(recall_at(hits_BK, positives_B, 10).mean()),
        }


@dataclass(frozen=True)
class TrainedRetrieval:
    """A fitted two-tower with the curve of its training."""

    model: RetrievalModel
    history: list[EpochResult]
    best_epoch: int


def retrieval_task(
    dataset: Dataset,
    examples: Path,
    config: RetrievalConfig,
    rows: TrainingRows = TRAIN_SPLIT,
    *,
    start: Path | None = None,
    known: Vocabulary | None = None,
) -> RetrievalTaskConfig:
    """What to train: the catalogue of `dataset` and the chosen rows of its `examples`.

    `start`: folder of a saved model to go on from; what it knows keeps its codes, and what is new comes after it.
    `known`: a vocabulary whose codes are to be kept where training begins from scratch.

    Raises:
        TowerlineError: there are fewer than two such rows.
    """
    chosen = rows.select(read_examples(examples))
    if chosen.height < 2:
        raise TowerlineError(f"{examples}: {chosen.height} training examples; ingest more events")
    items = dataset.items()
    vocabulary = Vocabulary.build(dataset.events(), items, dataset.users(), chosen[VALUE], config.two_tower.inputs)
    if start is not None:
        known = load_files(start, TwoTowerConfig)[1]
    if known is not None:
        vocabulary = known.grown(vocabulary)
    return RetrievalTaskConfig(config, examples, rows, vocabulary, item_attribute_codes(items, vocabulary), start)


def train_retrieval(
    task: RetrievalTaskConfig,
    scaling: Scaling,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[EpochResult], None] | None = None,
    build_task: Callable[[RetrievalTaskConfig], RetrievalTask] = RetrievalTask,
) -> TrainedRetrieval:
    """Fit a two-tower on Ray Train; resumes where a run of the same name in the same `storage` stopped."""
    trained = train_distributed(
        build_task, task, task.config.fit, scaling, name=name, storage=storage, tracking=tracking, progress=progress
    )
    covisitation = fit_covisitation(task.rows.seen(read_examples(task.examples)), task.vocabulary)
    model = RetrievalModel(task.config.two_tower, task.vocabulary, trained.weights, covisitation)
    return TrainedRetrieval(model, trained.history, trained.best_epoch)
