"""Training the ranker forward in time.

Its candidates come from a retrieval model fitted on events before a moment T1 and its labels from events after T1:
the scores that a retrieval model gives its own training positives are better than any it will give when serving.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor
from torch.optim import Optimizer

from cluster.errors import TowerlineError
from data.dataset import Dataset
from data.schema import ITEM_ID, SEQUENCE, SOURCE_ROW, SPLIT
from data.splits import TRAIN, VALIDATION
from train.candidates import Candidates, ItemFeatures, find_candidates
from train.histories import Histories
from train.loop import EpochResult, FitConfig
from train.metrics.accuracy import first_places, hits_of, ndcg_at
from train.models.ensemble import CandidatesConfig, Ensemble, EnsembleConfig, SourceConfigs
from train.models.ials import IALSConfig
from train.models.ranker import Ranker, RankerConfig, RankerInputs, RankingBatch
from train.models.ranking import RankingModel, ranker_inputs
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.order import ExampleOrder, Share
from train.scaling import Scaling
from train.tracking import TrackingTarget
from train.trainer import train_distributed
from train.vocabulary import Vocabulary

ROWS_AT_ONCE = 2048
DEFAULT_SOURCES = (IALSConfig(),)


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
    sources: SourceConfigs = DEFAULT_SOURCES
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
        self._inputs, self._positive_B, row_ids_B = read_lists(task.lists / "train.safetensors")
        self._validation_inputs, self._validation_positive_B, _ = read_lists(task.lists / "validation.safetensors")
        self.order = ExampleOrder(row_ids_B, task.config.batch_size, task.config.seed)
        torch.manual_seed(task.config.seed)
        width = self._inputs.candidate_features_BKF.shape[2]
        self.model = Ranker(task.config.ranker, task.vocabulary, task.item_attributes_IA, width)
        self.model.describe_training(self._inputs, self._positive_B)

    def optimizer(self) -> Optimizer:
        """AdamW over all parameters."""
        return torch.optim.AdamW(
            self.model.parameters(), lr=self._config.learning_rate, weight_decay=self._config.weight_decay
        )

    def batch(self, share: Share) -> RankingBatch:
        """The candidate lists of a share."""
        return RankingBatch(self._inputs[share.rows], self._positive_B[share.rows], share.scale)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """NDCG@10 over all validation users; one whose item is not among the candidates counts 0."""
        logits = [self.model.score(inputs.to(self._device)).cpu() for inputs in self._validation_chunks()]
        order_BK = torch.cat(logits).argsort(dim=1, descending=True, stable=True).numpy()
        hits_BK = order_BK == self._validation_positive_B.numpy()[:, np.newaxis]
        return {"ndcg@10": float(ndcg_at(hits_BK, np.ones(len(hits_BK), dtype=np.int64), 10).mean())}

    @property
    def _device(self) -> torch.device:
        return self.model.item_seen_I1.device

    def _validation_chunks(self) -> Iterator[RankerInputs]:
        for rows in torch.split(torch.arange(len(self._validation_inputs)), ROWS_AT_ONCE):
            yield self._validation_inputs[rows]


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
) -> RankingTaskConfig:
    """Write the candidate lists to learn from and to validate on into `folder` and say what to train.

    `past_retrieval` was fitted on the training events before T1 and offers the candidates of those after;
    `retrieval` was fitted on all training events and offers those of the validation events. Sources are fitted here,
    anew for each, so that none has seen what it is asked about. `events`: those that item features are computed from,
    the data set's if None.

    Raises:
        TowerlineError: no candidate list holds the item that was chosen, or a source cannot be fitted.
    """
    vocabulary = retrieval.vocabulary
    histories = Histories(examples, vocabulary)
    items = ItemFeatures(dataset.events() if events is None else events, vocabulary)
    training = pl.col(SPLIT) == TRAIN
    before_t1 = pl.col(SEQUENCE) < moment_t1(examples, config.past_share)
    folder.mkdir(parents=True, exist_ok=True)
    for name, two_tower, fitted_on, chosen in (
        ("train", past_retrieval, training & before_t1, training & ~before_t1),
        ("validation", retrieval, training, pl.col(SPLIT) == VALIDATION),
    ):
        model = with_sources(two_tower, config, examples.filter(fitted_on))
        chunks = examples.filter(chosen).iter_slices(ROWS_AT_ONCE)
        lists = [find_candidates(model, rows, histories, items, config.num_candidates) for rows in chunks]
        _write_lists(folder / f"{name}.safetensors", lists, model, keep_all=name == "validation")
    return RankingTaskConfig(config, folder, vocabulary, item_attribute_codes(dataset.items(), vocabulary))


def train_ranking(
    task: RankingTaskConfig,
    scaling: Scaling,
    *,
    name: str,
    storage: Path,
    tracking: TrackingTarget | None = None,
    progress: Callable[[EpochResult], None] | None = None,
) -> TrainedRanking:
    """Fit a ranker on Ray Train; resumes where a run of the same name in the same `storage` stopped."""
    trained = train_distributed(
        RankingTask, task, task.config.fit, scaling, name=name, storage=storage, tracking=tracking, progress=progress
    )
    model = RankingModel(task.config.ranker, task.vocabulary, trained.weights)
    return TrainedRanking(model, trained.history, trained.best_epoch, task.config)


def _write_lists(path: Path, lists: list[Candidates], model: RetrievalModel, *, keep_all: bool) -> None:
    """Keep the lists that hold the chosen item; for validation keep all, with -1 for "not in the list"."""
    tensors: list[tuple[Tensor, ...]] = []
    for found in lists:
        targets_B = model.vocabulary.encode_items(found.rows[ITEM_ID])
        positive_B = first_places(hits_of(found.codes_BK, list(targets_B[:, np.newaxis])))
        kept = np.arange(len(positive_B)) if keep_all else np.flatnonzero(positive_B >= 0)
        lists_BK = found.codes_BK, found.scores_BK, found.item_features_BKF
        inputs = ranker_inputs(found.rows, *lists_BK, model, sources_BKS=found.sources_BKS)
        rows = torch.from_numpy(kept)
        chosen = inputs[rows]
        tensors.append(
            (
                chosen.user_attributes_BA,
                chosen.user_features_BF,
                chosen.candidates_BK,
                chosen.candidate_features_BKF,
                torch.from_numpy(positive_B)[rows],
                torch.tensor(found.rows[SOURCE_ROW].to_numpy())[rows],
            )
        )
    columns = [torch.cat(column).contiguous() for column in zip(*tensors, strict=True)]
    if not columns or len(columns[0]) == 0:
        raise TowerlineError(
            f"{path.stem}: retrieval offered no event's item among {lists[0].codes_BK.shape[1] if lists else 0} "
            "candidates; ingest more events, raise num_candidates or train retrieval longer"
        )
    safetensors.torch.save_file({str(number): column for number, column in enumerate(columns)}, path)


def read_lists(path: Path) -> tuple[RankerInputs, Tensor, Tensor]:
    """Candidate lists, the place of the chosen item in each, and the row ids of their events."""
    columns = safetensors.torch.load_file(path)
    return RankerInputs(columns["0"], columns["1"], columns["2"], columns["3"]), columns["4"], columns["5"]
