"""The planted data set and all that the workflow makes of it, once for the suite and without Ray."""

from dataclasses import dataclass

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from cluster.settings import Settings
from tests.train.planted import Planted, plant
from train.evaluation import Evaluation, Measurements
from train.loop import EpochResult, FitConfig
from train.models.retrieval import RetrievalModel, item_attribute_codes
from train.models.two_tower import TwoTower, TwoTowerConfig
from train.promotion import Decision
from train.ranking import RankingConfig, TrainedRanking
from train.registry import RegisteredPair
from train.retrieval import RetrievalConfig, TrainedRetrieval
from train.scaling import Scaling
from train.training_rows import ALL_EVENTS
from train.vocabulary import Vocabulary
from train.workflow import Workflow

RETRIEVAL = RetrievalConfig(
    two_tower=TwoTowerConfig(embedding_dim=16, history_length=8),
    batch_size=128,
    learning_rate=5e-3,
    fit=FitConfig(epochs=12, patience=4),
)
RANKING = RankingConfig(num_candidates=20, batch_size=32, fit=FitConfig(epochs=3, patience=2), sources=())


@dataclass(frozen=True)
class DonePath:
    """All steps of the workflow, done."""

    workflow: Workflow
    retrieval: TrainedRetrieval
    past: TrainedRetrieval
    ranking: TrainedRanking
    measured: Measurements
    refitted: TrainedRetrieval
    served: RetrievalModel
    """The refitted two-tower beside the ranker's sources."""
    challenger: str
    pair: RegisteredPair
    decision: Decision
    epochs: list[EpochResult]
    """What `progress` was told."""

    @property
    def evaluation(self) -> Evaluation:
        return self.measured.evaluation


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Two trainings beside each other would only be slower with more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def retrieval_config() -> RetrievalConfig:
    return RETRIEVAL


@pytest.fixture(scope="session")
def ranking_config() -> RankingConfig:
    return RANKING


@pytest.fixture(scope="session")
def path(planted: Planted) -> DonePath:
    """What `jobs.quickstart` does between search and serving."""
    epochs: list[EpochResult] = []
    workflow = Workflow(
        Settings(home=planted.home), planted.dataset, planted.folder, Scaling(backend="none"), progress=epochs.append
    )
    retrieval = workflow.train_retrieval(RETRIEVAL)
    past = workflow.train_past_retrieval(RETRIEVAL, retrieval.best_epoch + 1, RANKING.past_share)
    ranking = workflow.train_ranking(RANKING, past.model, retrieval.model)
    measured = workflow.compare(retrieval.model, ranking, RANKING.num_candidates)
    refitted = workflow.refit_retrieval(RETRIEVAL, retrieval.best_epoch + 1)
    pair = workflow.register_pair(refitted, RETRIEVAL, ranking, RANKING, measured)
    return DonePath(
        workflow,
        retrieval,
        past,
        ranking,
        measured,
        refitted,
        served=workflow.with_sources(refitted.model, RANKING, ALL_EVENTS),
        challenger=workflow.register_challenger(retrieval, RETRIEVAL, measured),
        pair=pair,
        decision=workflow.promote(pair),
        epochs=epochs,
    )


@pytest.fixture(scope="session")
def vocabulary(planted: Planted) -> Vocabulary:
    events = planted.dataset.events()
    return Vocabulary.build(events, planted.dataset.items(), planted.dataset.users(), events["value"])


@pytest.fixture
def network(planted: Planted, vocabulary: Vocabulary) -> TwoTower:
    """A two-tower with random weights of some size, which has met all items that have events."""
    torch.manual_seed(3)
    network = TwoTower(RETRIEVAL.two_tower, vocabulary, item_attribute_codes(planted.dataset.items(), vocabulary))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
        for module in network.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0  # as training leaves it
    codes = torch.from_numpy(vocabulary.encode_items(planted.dataset.events()["item_id"]))
    network.item_frequency_I.copy_(torch.bincount(codes, minlength=vocabulary.num_items + 1))
    return network.eval()


@pytest.fixture
def random_retrieval(network: TwoTower, vocabulary: Vocabulary) -> RetrievalModel:
    size = vocabulary.num_items + 1
    covisitation = scipy.sparse.csr_array(np.random.default_rng(0).random((size, size), dtype=np.float32))
    return RetrievalModel(RETRIEVAL.two_tower, vocabulary, network.state_dict(), covisitation)
