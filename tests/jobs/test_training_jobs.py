"""The training jobs where they must refuse: one line, before Ray starts, nothing written."""

import importlib
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from cluster.errors import TowerlineError
from cluster.job import explain
from cluster.settings import Settings
from data.ingest.ingestion import TabularSource, ingest_files
from data.quality.validation import EventRules
from tests.ports import free_port
from train.registry import load_challenger

NOBODY = "http://127.0.0.1:9"
"""The discard port, where nobody listens."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a data set of six users."""
    folder = tmp_path_factory.mktemp("home")
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [(f"u{user}", f"i{user + step}", start + timedelta(hours=step)) for user in range(6) for step in range(4)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "event_time"], orient="row").write_parquet(folder / "e.parquet")
    ingest_files(folder, "shop", TabularSource(folder / "e.parquet"), EventRules(datetime.now(UTC)))
    return folder


@pytest.mark.parametrize(
    ("job", "arguments", "changes", "message"),
    [
        ("train_retrieval", ["--dataset", "shoes"], {}, "data set 'shoes' does not exist"),
        ("train_ranking", ["--dataset", "shoes"], {}, "there are: shop"),
        ("tune_retrieval", ["--dataset", "shop", "--trials", "0"], {}, "search.retrieval.num_trials = 0"),
        ("tune_ranking", ["--dataset", "shop"], {}, "jobs.train_retrieval --dataset shop"),
        ("train_retrieval", ["--dataset", "shop", "--config", "nowhere.toml"], {}, "nowhere.toml"),
        ("train_retrieval", ["--dataset", "shop"], {"TOWERLINE_MLFLOW_TRACKING_URI": NOBODY}, NOBODY),
        ("train_ranking", ["--dataset", "shop"], {}, "jobs.train_retrieval --dataset shop"),
        ("serve_models", ["--dataset", "shop"], {}, "has no champion of data set 'shop'"),
        ("quickstart", [], {"TOWERLINE_SERVE_PORT": "taken"}, "set TOWERLINE_SERVE_PORT"),
        ("quickstart", [], {"TOWERLINE_MLFLOW_TRACKING_URI": NOBODY}, "TOWERLINE_MLFLOW_TRACKING_URI"),
    ],
)
def test_it_refuses_before_ray_starts(
    home: Path,
    job: str,
    arguments: list[str],
    changes: dict[str, str],
    message: str,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the job raises, and what a person would be told of it; the next test is a person's own shell."""
    before = _written(home)
    monkeypatch.setattr("cluster.session.connect", _ray_is_asked_for)
    monkeypatch.setattr("jobs.searching.connect", _ray_is_asked_for)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = {"TOWERLINE_HOME": str(home), "TOWERLINE_SERVE_PORT": str(free_port())} | changes
        for name, value in settings.items():
            monkeypatch.setenv(name, str(listener.getsockname()[1]) if value == "taken" else value)
        with pytest.raises((TowerlineError, ValidationError)) as refused:
            importlib.import_module(f"jobs.{job}").main(arguments)
    said = explain(refused.value)
    assert said is not None
    assert message in said
    assert len(said.splitlines()) == 1
    assert _written(home) == before


def test_a_person_is_told_in_one_line(home: Path) -> None:
    before = _written(home)
    done = subprocess.run(
        [sys.executable, "-m", "jobs.tune_ranking", "--dataset", "shop"],
        env={**os.environ, "TOWERLINE_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert re.fullmatch(r"error: .*jobs\.train_retrieval --dataset shop.*\n", done.stderr)
    assert _written(home) == before


def test_ranking_without_a_challenger_names_the_job_that_makes_one(home: Path) -> None:
    message = r"no challenger of model 'shop-two-tower'.*jobs.train_retrieval --dataset shop"
    with pytest.raises(TowerlineError, match=message):
        load_challenger(Settings(home=home).tracking_uri, "shop")


def _ray_is_asked_for(*_: object, **__: object) -> None:
    pytest.fail("Ray was to be started")


def _written(home: Path) -> list[Path]:
    """All but MLflow's database, which is made, empty, by the first look at it."""
    return sorted(path for path in home.rglob("*") if not path.name.startswith("mlflow.db"))
