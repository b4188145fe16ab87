"""The configuration of the training jobs: files in, files out."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from cluster.errors import TowerlineError
from cluster.provenance import ROOT
from cluster.reports import ReportClock
from cluster.settings import Settings
from data.expectations import DatasetExpectations, read_expectations
from jobs.training import TrainingConfig, found_config, read_training_config, report_of, write_found_config
from serve.config import AppConfig
from tests.train.planted import plant
from train.evaluation import Evaluation
from train.loop import EpochResult, FitConfig
from train.scaling import Scaling
from train.workflow import Workflow
from tune.dimensions import Range

CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.toml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_file_loads(path: Path) -> None:
    if path.name == "serve_models.toml":
        assert AppConfig.model_validate({"dataset": "x", **tomllib.loads(path.read_text())}) == AppConfig(dataset="x")
    elif path.name == "expectations.toml":
        assert isinstance(read_expectations(path), DatasetExpectations)
    else:
        assert isinstance(read_training_config(path), TrainingConfig)


def test_the_example_says_the_defaults(tmp_path: Path) -> None:
    """Each line of it, and together they are what a training without a file does."""
    path = ROOT / "jobs" / "configs" / "training.toml"
    assert read_training_config(path) == TrainingConfig() == read_training_config(None)
    assert read_training_config(write(tmp_path, "")) == TrainingConfig()


def test_what_a_section_leaves_out_keeps_the_default_of_that_section(tmp_path: Path) -> None:
    """Both trainings stop early by default, a `FitConfig` of its own does not."""
    config = read_training_config(write(tmp_path, "[retrieval.fit]\nepochs = 3\n[ranking.fit]\nseed = 4\n"))
    default = TrainingConfig()
    assert FitConfig().patience is None
    assert config.retrieval.fit == default.retrieval.fit.model_copy(update={"epochs": 3})
    assert config.ranking.fit == default.ranking.fit.model_copy(update={"seed": 4})
    assert config.retrieval.fit.patience == 2
    assert config.model_copy(update={"retrieval": default.retrieval, "ranking": default.ranking}) == default


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("[retrievel]\nseed = 1", "retrievel", "Extra inputs"),
        ("[retrieval]\nlearning_rat = 1", "retrieval.learning_rat", "Extra inputs"),
        ("[retrieval.two_tower]\nembeding_dim = 8", "retrieval.two_tower.embeding_dim", "Extra inputs"),
        ("[retrieval]\nlearning_rate = 0", "retrieval.learning_rate", "greater than 0"),
        ("[retrieval.two_tower]\ndropout = 1.0", "retrieval.two_tower.dropout", "less than 1"),
        ("[ranking]\npast_share = 1.5", "ranking.past_share", "less than 1"),
        ("[ranking]\nnum_candidates = 'many'", "ranking.num_candidates", "valid integer"),
        (
            "[search.retrieval.space]\nlearning_rate = {low = 0.1, high = 0.01}",
            "search.retrieval.space.learning_rate.range",
            "is no range",
        ),
        ("[scaling]\nbackend = 'gloo'", "scaling.backend", "'horovod', 'torch' or 'none'"),
        ("retrieval = 3", "retrieval", "valid dictionary or instance"),
    ],
)
def test_a_wrong_key_or_value_is_refused_by_name(tmp_path: Path, text: str, field: str, message: str) -> None:
    with pytest.raises(TowerlineError) as refused:
        read_training_config(write(tmp_path, text))
    assert f"config.toml: TrainingConfig: {field} = " in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("section", "line", "message"),
    [
        ("retrieval", "two_tower.embeding_dim = {choices = [8]}", "no field 'two_tower.embeding_dim'"),
        ("retrieval", "two_tower.dropout = {low = 0.1, high = 1.5}", "two_tower.dropout = 1.5: Input should be less"),
        ("ranking", "past_share = {low = 0.1, high = 0.5}", "past_share cannot be searched"),
    ],
)
def test_a_search_space_that_does_not_fit_the_model_is_refused_when_it_is_read(
    tmp_path: Path, section: str, line: str, message: str
) -> None:
    with pytest.raises(TowerlineError, match=re.escape(message)):
        read_training_config(write(tmp_path, f"[search.{section}.space]\n{line}\n"))


def test_a_search_space_that_is_named_replaces_the_models_own(tmp_path: Path) -> None:
    config = read_training_config(write(tmp_path, "[search.retrieval.space]\nseed = {low = 0, high = 9}\n"))
    assert config.search.retrieval.space == {"seed": Range(low=0, high=9)}
    assert config.search.ranking == TrainingConfig().search.ranking


@pytest.mark.parametrize("text", ["[retrieval", "a = ", "\x00"])
def test_what_is_not_toml_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TowerlineError, match=rf"{path}: .*see jobs/configs/training.toml"):
        read_training_config(path)


def test_a_file_that_is_not_there_or_is_no_text_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"nowhere\.toml: .*No such file"):
        read_training_config(tmp_path / "nowhere.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TowerlineError, match=r"bytes\.toml: .*utf-8"):
        read_training_config(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"retrieval": {"learning_rate": 0.0012345678901234567, "two_tower": {"loss": "sampled_softmax"}}},
        {"retrieval": {"fit": {"epochs": 1, "patience": 9, "mode": "min", "metric": "loss"}}},
        {
            "search": {
                "retrieval": {
                    "num_trials": 77,
                    "time_budget_s": 60.5,
                    "space": {
                        "learning_rate": {"low": 1e-7, "high": 1e3, "log": True},
                        "two_tower": {"embedding_dim": {"choices": [2, 4, 6]}},
                    },
                },
                "ranking": {"algorithm": "random", "scaling": {"backend": "torch"}},
            }
        },
        {"scaling": {"interface": "eth0", "backend": "none", "cpus_per_worker": 0.5}, "ranking": {"past_share": 0.3}},
    ],
)
def test_what_a_search_found_is_read_as_it_was(tmp_path: Path, values: dict[str, Any]) -> None:
    config = read_training_config(write(tmp_path, tomlkit.dumps(values)))
    settings = Settings(home=tmp_path)
    assert found_config(settings, "shop") is None
    path = write_found_config(settings, "shop", config)
    assert found_config(settings, "shop") == path
    assert found_config(settings, "another") is None
    assert read_training_config(path) == config


def test_a_later_search_replaces_what_was_found(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    for seed in (1, 2):
        config = TrainingConfig.model_validate({"search": {"ranking": {"seed": seed}}})
        path = write_found_config(settings, "shop", config)
    assert read_training_config(path).search.ranking.seed == 2
    assert [file.name for file in path.parent.iterdir()] == ["shop.toml"]


def test_the_report_of_a_training(tmp_path: Path) -> None:
    planted = plant(tmp_path)
    workflow = Workflow(Settings(home=tmp_path), planted.dataset, planted.folder, Scaling(backend="none"))
    evaluation = Evaluation(protocol="in words", protocol_hash="h", users=3, figures={"mrr/popularity": 0.5})
    config = TrainingConfig()
    epochs = [
        EpochResult(epoch=0, loss=1.0, seconds=1.0, samples_per_s=100.0, data_wait=0.4),
        EpochResult(epoch=1, loss=0.5, seconds=3.0, samples_per_s=300.0, data_wait=0.0),
    ]
    curves = {"two-tower": epochs}
    report = report_of(ReportClock("train_retrieval"), workflow, config, evaluation, curves)
    assert report.name == "train_retrieval"
    assert report.config == config.model_dump(mode="json")
    assert report.protocol == "h: in words"
    assert report.data_version == planted.dataset.manifest.data_version
    speed = {"samples_per_s/two-tower": 250.0, "data_wait/two-tower": 0.1}
    assert report.figures == evaluation.figures | speed
