"""Where a search begins and what it leaves behind; the searches themselves are in tests/tune."""

from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from cluster.reports import Report, ReportClock
from cluster.settings import Settings
from jobs.console import Console
from jobs.searching import finish_search, search_config
from jobs.training import TrainingConfig, found_config, read_training_config, write_found_config
from tests.train.planted import plant
from train.scaling import Scaling
from train.workflow import Workflow
from tune.outcome import TrialOutcome, outcome_of


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


def test_the_same_command_is_the_same_search_whatever_it_found_before(settings: Settings) -> None:
    first = search_config(settings, "shop", None, "retrieval", 3)
    found = first.model_copy(update={"retrieval": first.retrieval.model_copy(update={"learning_rate": 0.5})})
    write_found_config(settings, "shop", found)
    assert search_config(settings, "shop", None, "retrieval", 3) == first
    assert first.search.retrieval.num_trials == 3
    assert first.search.ranking == TrainingConfig().search.ranking


def test_what_the_search_for_the_other_model_found_is_kept(settings: Settings) -> None:
    default = TrainingConfig()
    retrieval = default.retrieval.model_copy(update={"learning_rate": 0.5})
    write_found_config(settings, "shop", default.model_copy(update={"retrieval": retrieval}))
    config = search_config(settings, "shop", None, "ranking", None)
    assert config.retrieval == retrieval
    assert config.ranking == default.ranking


def test_a_file_that_is_asked_for_decides_everything(settings: Settings, tmp_path: Path) -> None:
    write_found_config(settings, "shop", TrainingConfig.model_validate({"ranking": {"seed": 4}}))
    asked = tmp_path / "asked.toml"
    asked.write_text('[retrieval]\nseed = 7\n[search.retrieval]\nalgorithm = "random"\n')
    config = search_config(settings, "shop", asked, "retrieval", None)
    assert (config.retrieval.seed, config.ranking.seed, config.search.retrieval.algorithm) == (7, 0, "random")


def test_a_space_that_does_not_fit_is_refused(settings: Settings, tmp_path: Path) -> None:
    asked = tmp_path / "asked.toml"
    asked.write_text("[retrieval.two_tower]\nembedding_dim = 15\nattention_heads = 5\n")
    with pytest.raises(TowerlineError, match="expected a multiple of attention_heads, 5"):
        search_config(settings, "shop", asked, "retrieval", None)
    assert search_config(settings, "shop", asked, "ranking", None).retrieval.two_tower.embedding_dim == 15


def test_what_was_found_is_ready_for_training_and_reported_with_a_picture(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = plant(settings.home)
    workflow = Workflow(settings, planted.dataset, planted.folder, Scaling(backend="none"))
    config = TrainingConfig()
    widths = (32, 32, 48, 48, 64, 64)
    trials = [
        TrialOutcome(
            number=number,
            sample={
                "learning_rate": 8e-4 * number + 2e-4,
                "weight_decay": 1e-2,
                "ranker.dropout": 0.2,
                "ranker.hidden_dim": width,
            },
            state="finished",
            curve=[0.1, 0.1 * number],
        )
        for number, width in enumerate(widths, start=1)
    ]
    trials[0] = trials[0].model_copy(update={"state": "failed", "curve": [], "error": "nan"})
    outcome = outcome_of(config.ranking, "ndcg@10", "max", trials, 12.5)
    assert outcome is not None
    finish_search("ranking", outcome, config, workflow, clock=ReportClock("tune_ranking"), console=Console())
    path = found_config(settings, planted.dataset.name)
    assert path is not None
    assert read_training_config(path) == config.model_copy(update={"ranking": outcome.config})
    reports = settings.home / "reports"
    report = Report.model_validate_json((reports / "tune_ranking.json").read_text())
    assert report.figures["ndcg@10/best"] == report.figures["ndcg@10/trial_6"] == pytest.approx(0.6)
    assert "ndcg@10/trial_1" not in report.figures
    assert (report.figures["trials/finished"], report.figures["trials/failed"]) == (5, 1)
    shares = [value for name, value in report.figures.items() if name.startswith("importance/")]
    assert sum(shares) == pytest.approx(1)
    assert (reports / "tune_ranking.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert str(path) in said
    assert "tune_ranking.png" in said
