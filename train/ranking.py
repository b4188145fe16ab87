"""Training the ranker forward in time.

Its candidates come from a retrieval model fitted on events before a moment T1 and its labels from events after T1:
the scores that a retrieval model gives its own training positives are better than any it will give when serving.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.schema import EVENT_TYPE, SEQUENCE, SOURCE_ROW, SPLIT
from data.splits import TRAIN, VALIDATION
from train.adamw import AdamW
from train.candidates import ItemFeatures, find_candidates
from train.histories import Histories
from train.loop import EpochResult, FitConfig
from train.metrics.accuracy import ndcg_at
from train.models.ensemble import CandidatesConfig, Ensemble, EnsembleConfig, SourceConfigs
from train.models.probability_calibration import fit_platt, fit_slope
from train.models.ranker import Ranker, RankerConfig, RankingBatch
from train.models.ranking import RankingModel
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.order import ExampleOrder, Share
from train.ranking_lists import RankingLists, read_lists, write_lists
from train.scaling import Scaling
from train.tracking import TrackingTarget
from train.trainer import train_distributed
from train.vocabulary import Vocabulary

ROWS_AT_ONCE = 2048
TRAIN_FILE, VALIDATION_FILE = "train.safetensors", "validation.safetensors"


class RankingConfig(BaseModel):
    """Everything that decides what a ranking training gives, the data and the retrieval model aside."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranker: RankerConfig = RankerConfig()
    """The model."""
    fit: FitConfig = FitConfig(epochs=4, patience=2)
    """How long to train."""
    past_share: Annotated[float, Field(gt=0, lt=1)] = 0.8
    """Share of the training events that lie before T1."""
    num_candidates: Annotated[int, Field(ge=2)] = 100
    """Items that retrieval hands to the ranker."""
    sources: SourceConfigs = ()
    """Sources beside the two-tower whose scores the ranker reads; an empty list for none."""
    candidates: CandidatesConfig = CandidatesConfig()
    """Who finds the candidates."""
    batch_size: PositiveInt = 128
    """Candidate lists of a global batch, over all workers."""
    learning_rate: PositiveFloat = 2e-3
    """Of AdamW."""
    weight_decay: NonNegativeFloat = 0.02
    """Of AdamW, decoupled."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the initial weights and the order of the examples."""

    @property
    def ensemble(self) -> EnsembleConfig:
        """The sources, and what they are for."""
        return EnsembleConfig(sources=self.sources, candidates=self.candidates)


def moment_t1(examples: pl.DataFrame, past_share: float) -> int:
    """The `sequence` that splits the training examples: `past_share` of them come before it."""
    sequences = examples.filter(pl.col(SPLIT) == TRAIN)[SEQUENCE].sort()
    return int(sequences[int(len(sequences) * past_share)])


@dataclass(frozen=True)
class RankingTaskConfig:
    """What a worker needs to build its `RankingTask`."""

    config: RankingConfig
    lists: Path
    """Folder with the candidate lists that `write_lists` wrote."""
    vocabulary: Vocabulary
    item_attributes_IA: Tensor


class RankingTask:
    """A ranker and its candidate lists, as `train.loop` wants them."""

    def __init__(self, task: RankingTaskConfig) -> None:
        self._config = task.config
        self._lists = read_lists(task.lists / TRAIN_FILE)
        self._validation = read_lists(task.lists / VALIDATION_FILE)
        self.order = ExampleOrder(self._lists.row_ids_B, task.config.batch_size, task.config.seed)
        torch.manual_seed(task.config.seed)
        width = self._lists.inputs.candidate_features_BKF.shape[2]
        self.model = Ranker(task.config.ranker, task.vocabulary, task.item_attributes_IA, width)
        self.model.describe_training(self._lists.inputs, self._lists.positive_B, self._lists.chosen)

    def optimizer(self) -> Optimizer:
        """AdamW over all parameters."""
        return AdamW(self.model.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay)

    def batch(self, share: Share) -> RankingBatch:
        """The candidate lists of a share."""
        lists = self._lists[share.rows]
        return RankingBatch(lists.inputs, lists.positive_B, share.scale, lists.chosen)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NDCG@10 over all validation users; one whose item is not among the candidates counts 0."""
        chunks = self._validation.chunks(ROWS_AT_ONCE)
        scores = [self.model.score(lists.inputs.to(self._device)).cpu() for lists in chunks]
        order_BK = torch.cat(scores).argsort(dim=1, descending=True, stable=True).numpy()
        hits_BK = order_BK == self._validation.positive_B.numpy()[:, np.newaxis]
        return {"ndcg@10": float(ndcg_at(hits_BK, np.ones(len(hits_BK), dtype=np.int64), 10).mean())}

    @property
    def _device(self) -> torch.device:
        return self.model.item_seen_I1.device


@dataclass(frozen=True)
class TrainedRanking:
    """A fitted ranker with the curve of its training."""

    model: RankingModel
    history: list[EpochResult]
    best_epoch: int
    config: RankingConfig
    """What it was trained by."""


def with_sources(retrieval: RetrievalModel, config: RankingConfig, events: pl.DataFrame) -> RetrievalModel:
    """The two-tower with the ranker's sources, fitted on `events`, in any order: those that it was trained on.

    Raises:
        TowerlineError: a source cannot learn from them, as EASE where the catalogue is too large for it.
    """
    in_order = events.sort(SEQUENCE)
    return retrieval.with_ensemble(Ensemble.fit(config.ensemble, in_order, retrieval.vocabulary))


def ranking_task(
    dataset: Dataset,
    examples: pl.DataFrame,
    config: RankingConfig,
    *,
    past_retrieval: RetrievalModel,
    retrieval: RetrievalModel,
    folder: Path,
    events: pl.DataFrame | None = None,
    learnt: pl.DataFrame | None = None,
) -> RankingTaskConfig:
    """Write the candidate lists to learn from and to validate on into `folder` and say what to train.

    `past_retrieval` was fitted on the training events before T1 and offers the candidates of those after;
    `retrieval` was fitted on all training events and offers those of the validation events. Sources are fitted here,
    anew for each, so that none has seen what it is asked about. `events`: those that item features are computed from,
    the data set's if None. `learnt`: the examples that `retrieval` was fitted on, the train split's if None.

    Raises:
        TowerlineError: no candidate list holds the item that was chosen, a source cannot be fitted, or a type of
            event is not known that decides what a like is.
    """
    vocabulary = retrieval.vocabulary
    histories = Histories(examples, vocabulary)
    items = ItemFeatures(dataset.events() if events is None else events, vocabulary)
    training = examples.filter(pl.col(SPLIT) == TRAIN)
    t1 = moment_t1(examples, config.past_share)
    after_t1 = (pl.col(SPLIT) == TRAIN) & (pl.col(SEQUENCE) >= t1)
    typed = _with_event_types(examples, dataset.events())
    folder.mkdir(parents=True, exist_ok=True)
    for name, two_tower, fitted_on, chosen in (
        (TRAIN_FILE, past_retrieval, training.filter(pl.col(SEQUENCE) < t1), after_t1),
        (VALIDATION_FILE, retrieval, training if learnt is None else learnt, pl.col(SPLIT) == VALIDATION),
    ):
        model = with_sources(two_tower, config, fitted_on)
        asked = typed.filter(chosen)
        _require_event_types(name, asked, config.ranker)
        chunks = asked.iter_slices(ROWS_AT_ONCE)
        lists = [find_candidates(model, rows, histories, items, config.num_candidates) for rows in chunks]
        write_lists(folder / name, lists, model, keep_all=name == VALIDATION_FILE)
    return RankingTaskConfig(config, folder, vocabulary, item_attribute_codes(dataset.items(), vocabulary))


def _with_event_types(examples: pl.DataFrame, events: pl.DataFrame) -> pl.DataFrame:
    """The examples with the type of their events; null where `events` do not hold it."""
    types = events.select(SOURCE_ROW, EVENT_TYPE)
    return examples.join(types, on=SOURCE_ROW, how="left", maintain_order="left")


def _require_event_types(name: str, rows: pl.DataFrame, config: RankerConfig) -> None:
    missing = rows[EVENT_TYPE].null_count()
    if missing and config.heads.like_event_types:
        raise TowerlineError(
            f"{Path(name).stem}: the type of {missing} events is not known to the data set, so it cannot be said which "
            "are likes by heads.like_event_types; set heads.like_min_value instead"
        )


def train_ranking(
    task: RankingTaskConfig,
    scaling: Scaling,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[EpochResult], None] | None = None,
) -> TrainedRanking:
    """Fit a ranker on Ray Train, and then its calibration on the validation lists.

    Resumes where a run of the same name in the same `storage` stopped.
    """
    trained = train_distributed(
        RankingTask, task, task.config.fit, scaling, name=name, storage=storage, tracking=tracking, progress=progress
    )
    model = RankingModel(task.config.ranker, task.vocabulary, trained.weights)
    calibrate(model, read_lists(task.lists / VALIDATION_FILE))
    return TrainedRanking(model, trained.history, trained.best_epoch, task.config)


@torch.no_grad()
def calibrate(model: RankingModel, lists: RankingLists) -> None:
    """Fit what makes the probabilities of a ranker hold, on those of the lists that hold the chosen item."""
    network, told = model.network, lists[torch.nonzero(lists.positive_B >= 0).squeeze(1)]
    outputs = [network.outputs(some.inputs) for some in told.chunks(ROWS_AT_ONCE)]
    choice_BK = torch.cat([each.choice_BK for each in outputs])
    likes = [each.like_BK for each in outputs if each.like_BK is not None]
    like_line = (1.0, 0.0)
    if likes:
        like_B = torch.cat(likes).gather(1, told.positive_B.unsqueeze(1)).squeeze(1)
        like_line = fit_platt(like_B.double().numpy(), network.heads.liked(told.chosen).bool().numpy())
    network.calibrate(fit_slope(choice_BK.double().numpy(), told.positive_B.numpy()), like_line)
