"""A ranker that reads another source's scores, through all that a pair goes through: training, gate, files."""

from dataclasses import dataclass, replace

import pytest

from cluster.reports import Report
from cluster.settings import Settings
from jobs import export_models
from tests.train.conftest import RANKING, RETRIEVAL, DonePath
from tests.train.planted import Planted, plant
from train.evaluation import Measurements
from train.export import load_export
from train.gate import GateConfig
from train.models.candidate_features import feature_names
from train.models.ials import IALSConfig
from train.promotion import Decision
from train.ranking import TrainedRanking
from train.registry import RegisteredPair, champion_pair, load_pair
from train.training_rows import ALL_EVENTS, TRAIN_SPLIT
from train.workflow import Workflow

DATASET = "sourced"
CONFIG = RANKING.model_copy(update={"sources": (IALSConfig(),)})
PATIENT = GateConfig(max_latency_ms=60_000)
"""The machine may be busy."""


@dataclass(frozen=True)
class Sourced:
    planted: Planted
    workflow: Workflow
    ranking: TrainedRanking
    measured: Measurements
    pair: RegisteredPair
    decision: Decision


@pytest.fixture(scope="module")
def sourced(path: DonePath, tmp_path_factory: pytest.TempPathFactory) -> Sourced:
    """The session's two-towers with a ranker of its own, as another data set beside it in the registry."""
    planted = plant(tmp_path_factory.mktemp("sourced"), DATASET)
    settings = Settings(home=planted.home, mlflow_tracking_uri=path.workflow.settings.tracking_uri)
    workflow = replace(
        path.workflow, settings=settings, dataset=planted.dataset, examples_folder=planted.folder, _names=set()
    )
    ranking = workflow.train_ranking(CONFIG, path.past.model, path.retrieval.model)
    measured = workflow.compare(path.retrieval.model, ranking, CONFIG.num_candidates)
    workflow.register_challenger(path.retrieval, RETRIEVAL, measured)
    pair = workflow.register_pair(path.refitted, RETRIEVAL, ranking, CONFIG, measured)
    return Sourced(planted, workflow, ranking, measured, pair, workflow.promote(pair, PATIENT))


def test_the_ranker_reads_the_source(sourced: Sourced, path: DonePath) -> None:
    width = sourced.ranking.model.network.candidate_range_4F.shape[1]
    assert width == len(feature_names(("ials",)))
    assert path.ranking.model.network.candidate_range_4F.shape[1] < width
    assert sourced.ranking.config.ensemble.names == ("ials",)


def test_it_passes_the_gate_and_is_served_with_a_source_of_all_events(sourced: Sourced, path: DonePath) -> None:
    assert sourced.decision.report.passed, sourced.decision.lines()
    assert sourced.measured.evaluation.figures["ndcg@10/two_tower_ranker"] > 0.6
    uri = sourced.workflow.settings.tracking_uri
    assert champion_pair(uri, DATASET).variant == sourced.pair.variant
    loaded = load_pair(uri, sourced.pair)
    cases = sourced.workflow.cases(loaded.retrieval.vocabulary)
    rows, exclude = cases.rows[:40], cases.exclude[:40]
    found = loaded.retrieval.find(rows, exclude, CONFIG.num_candidates)
    for trained_on, same in ((ALL_EVENTS, True), (TRAIN_SPLIT, False)):
        beside = sourced.workflow.with_sources(path.refitted.model, CONFIG, trained_on)
        scores_BKS = beside.find(rows, exclude, CONFIG.num_candidates).sources_BKS
        assert (scores_BKS == found.sources_BKS).all() == same


@pytest.mark.cluster
def test_it_is_exported_and_onnx_ranks_as_torch_does(sourced: Sourced, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, output = sourced.workflow.settings, sourced.planted.home / "exported"
    monkeypatch.setenv("TOWERLINE_HOME", str(settings.home))
    monkeypatch.setenv("TOWERLINE_MLFLOW_TRACKING_URI", settings.tracking_uri)
    export_models.main(["--dataset", DATASET, "--output", str(output)])
    report = Report.model_validate_json((settings.home / "reports" / "export_models.json").read_text())
    ours = sourced.measured.evaluation.figures["ndcg@10/two_tower_ranker"]
    assert report.figures["ndcg@10/torch"] == ours
    assert report.figures["ndcg@10/onnx"] == pytest.approx(ours, abs=1e-3)
    assert load_export(output).manifest.variant == sourced.pair.variant
