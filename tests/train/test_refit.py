"""The registered configuration, trained again by another protocol."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.settings import Settings
from tests.train.conftest import RANKING, RETRIEVAL, DonePath
from train.evaluation import evaluate
from train.protocols import LeaveOneOut, StrongGeneralisation
from train.ranking import RankingConfig
from train.refit import refit, registered_cards
from train.retrieval import RetrievalConfig


def test_the_champions_configuration_is_taken(path: DonePath) -> None:
    cards = registered_cards(path.workflow.settings.tracking_uri, "planted")
    assert RetrievalConfig.model_validate(cards["two-tower"].config).two_tower == RETRIEVAL.two_tower
    assert RankingConfig.model_validate(cards["ranker"].config) == RANKING


def test_where_nothing_is_registered_there_is_nothing_to_refit(path: DonePath) -> None:
    with pytest.raises(TowerlineError, match=r"jobs.train_retrieval --dataset nothing"):
        registered_cards(path.workflow.settings.tracking_uri, "nothing")


@pytest.mark.parametrize("protocol", [LeaveOneOut(cut_off=1), StrongGeneralisation(held_out_share=0.2)])
def test_a_refitted_pair_has_learnt_and_has_seen_no_answer(
    path: DonePath, protocol: LeaveOneOut | StrongGeneralisation, tmp_path: Path
) -> None:
    shutil.copy(path.workflow.settings.home / "mlflow.db", tmp_path)
    settings = Settings(home=tmp_path)
    workflow = replace(path.workflow, settings=settings, protocol=protocol, progress=None, _names=set())
    contestants = refit(workflow)
    workflow.forget()
    retrieval = contestants.recommenders["two_tower"]._retrieval  # type: ignore[attr-defined]
    trained = workflow.train_split.select(workflow.examples)
    assert retrieval.network.item_frequency_I.sum().item() == trained.height < path.workflow.examples.height
    asked = workflow.cases(contestants.vocabulary)
    recommenders = contestants.recommenders | {"popularity": workflow.baselines(contestants.vocabulary)["popularity"]}
    evaluation = evaluate(recommenders, asked, workflow.dataset.items())
    assert evaluation.protocol_hash == protocol.hash
    main = protocol.main_metrics[0]
    for model in ("two_tower", "two_tower_ranker"):
        assert evaluation.figures[f"{main}/{model}"] > 1.5 * evaluation.figures[f"{main}/popularity"]
