"""Re-ranking is on only by an evaluation of the very model and prompt that would do it."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cluster.assets import SMOLLM2
from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.app import application
from serve.config import AppConfig
from serve.graph import GraphConfig
from serve.loading import Parts, reranking_policy
from serve.reranking_policy import RerankingPolicy, policy_in_force, policy_path, read_policy, write_policy
from serve.stages.rerank import prompt_version

LLM = SMOLLM2.files[0].sha256


def policy(**changes: Any) -> RerankingPolicy:
    values = {
        "dataset": "shop",
        "below_events": 3,
        "weight": 0.25,
        "candidates": 10,
        "language_model": LLM,
        "prompt_version": prompt_version(),
        "protocol_hash": "0123456789ab",
        "data_version": "v1",
        "users": 100,
        "evaluated": datetime(2024, 5, 1, tzinfo=UTC),
        "reason": "on: it helps",
    }
    return RerankingPolicy.model_validate(values | changes)


def in_force(home: Path) -> RerankingPolicy | None:
    return policy_in_force(home, "shop", LLM, prompt_version())


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read_policy(tmp_path, "shop") is None
    path = write_policy(tmp_path, policy())
    assert path == policy_path(tmp_path, "shop") == tmp_path / "configs" / "shop.reranking.json"
    assert read_policy(tmp_path, "shop") == policy()
    assert in_force(tmp_path) == policy()
    assert [each.name for each in path.parent.iterdir()] == ["shop.reranking.json"]


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (None, "no evaluation has been made; `python -m jobs.evaluate_reranking --dataset shop`"),
        (policy(below_events=0, reason="off: it does not help"), "off: it does not help"),
        (policy(language_model="0" * 64), f"another language model (SHA-256 000000000000, here {LLM[:12]})"),
        (policy(prompt_version="older"), f"another prompt (older, here {prompt_version()})"),
    ],
)
def test_it_stays_off_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, written: RerankingPolicy | None, words: str
) -> None:
    if written is not None:
        write_policy(tmp_path, written)
    with caplog.at_level(logging.INFO):
        assert in_force(tmp_path) is None
    assert f"cold users are not re-ranked: {words}" in caplog.text.replace("the evaluation was of ", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "shop.reranking.json: dataset: Field required"),
        ("no json", "shop.reranking.json: the file: Invalid JSON"),
        (policy().model_dump_json().replace("0.25", "1.5"), "weight: Input should be less than or equal to 1"),
        (policy(dataset="shoes").model_dump_json(), "dataset is 'shoes', expected 'shop'"),
    ],
)
def test_a_broken_file_is_said_and_does_not_keep_an_endpoint_from_starting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str, message: str
) -> None:
    path = policy_path(tmp_path, "shop")
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(TowerlineError, match="evaluate_reranking --dataset shop") as raised:
        read_policy(tmp_path, "shop")
    assert message in str(raised.value)
    assert in_force(tmp_path) is None
    assert message in caplog.text


def test_a_policy_says_what_it_is_of() -> None:
    with pytest.raises(ValidationError, match="language_model"):
        policy(language_model="SmolLM2")


def test_a_stage_of_its_own_takes_a_config_that_asks_and_an_evaluation_that_speaks_for_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    asks = AppConfig(dataset="shop", graph=GraphConfig(rerank="remote"))
    off = application(settings, asks)._bound_deployment
    assert off.init_args[1].graph.rerank == "off"
    assert "rerank" not in off.init_args[2]
    write_policy(tmp_path, policy())
    assert reranking_policy(settings, AppConfig(dataset="shop")) is None
    on = application(settings, asks)._bound_deployment
    _, config, remote, reranking, _ = on.init_args
    assert (config, reranking) == (asks, policy())
    assert remote["rerank"]._bound_deployment.init_args == (settings, asks, policy())


def test_the_stages_without_a_policy_are_refused(tmp_path: Path) -> None:
    asks = AppConfig(dataset="shop", graph=GraphConfig(rerank="in_process"))
    with pytest.raises(TowerlineError, match=r"graph\.rerank is 'in_process', but no evaluation says whom to re-rank"):
        Parts(Settings(home=tmp_path), asks, "variant-a").stage("rerank")
