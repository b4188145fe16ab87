"""The arguments of the application, as code, TOML and through Ray Serve's own builder."""

from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.app import application, build
from serve.config import AppConfig, Replicas, read_config

EXAMPLE = Path(__file__).parents[2] / "jobs" / "configs" / "serve_models.toml"


def test_the_example_file_holds_the_defaults() -> None:
    assert read_config("shop", EXAMPLE) == read_config("shop") == AppConfig(dataset="shop")


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('[graph]\nranking = "remote"\n')
    assert read_config("shop", tmp_path / "serve.toml").graph.remote() == ("ranking", "explain")


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"none\.toml"):
        read_config("shop", tmp_path / "none.toml")
    (tmp_path / "broken.toml").write_text("[graph\n")
    with pytest.raises(TowerlineError, match=r"broken\.toml.*line 1"):
        read_config("shop", tmp_path / "broken.toml")


def test_unknown_keys_and_contradictions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('[graph]\nrankign = "remote"\n')
    with pytest.raises(ValidationError, match="rankign"):
        read_config("shop", tmp_path / "serve.toml")
    with pytest.raises(ValidationError, match="min is 3, which is over max 2"):
        Replicas(min=3, max=2)
    with pytest.raises(ValidationError, match=r"completions\.max_tokens is 1024.* explain\.context = 1024"):
        AppConfig.model_validate({"dataset": "shop", "completions": {"max_tokens": 1024}})


def test_only_the_language_model_may_have_no_replica() -> None:
    assert AppConfig(dataset="shop", explain_replicas=Replicas(min=0)).explain_replicas.min == 0
    for name in ("gateway_replicas", "stage_replicas"):
        with pytest.raises(ValidationError, match=f"{name}.min is 0, but every answer needs one"):
            AppConfig.model_validate({"dataset": "shop", name: {"min": 0}})


def test_completions_take_no_place_of_explanations() -> None:
    """Each deployment has room for them beside what it had before."""
    config = AppConfig.model_validate({"dataset": "shop", "explain_replicas": {"max_ongoing_requests": 5, "max": 3}})
    gateway = application(Settings(), config)._bound_deployment
    explain = gateway.init_args[2]["explain"]._bound_deployment
    assert explain._deployment_config.max_ongoing_requests == 5 + config.completions.most
    assert gateway._deployment_config.max_ongoing_requests > config.graph.most_requests() + config.most_completions


def test_ray_serve_builds_the_application_from_plain_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `serve deploy serve.app:build dataset=shop` does: arguments become the typed config or are refused."""
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    arguments = {"dataset": "shop", "graph": {"ranking": "remote"}, "gateway_replicas": {"min": 2, "max": 5}}
    application = call_user_app_builder_with_args_if_necessary(build, arguments)
    gateway = application._bound_deployment
    scaling = gateway._deployment_config.autoscaling_config
    assert (gateway.name, scaling.min_replicas, scaling.max_replicas) == ("Gateway", 2, 5)
    bound = AppConfig.model_validate(arguments).graph.most_requests()
    assert bound < gateway._deployment_config.max_ongoing_requests
    assert gateway._deployment_config.backpressure_config.status_code == 429
    _, config, remote, reranking, shards = gateway.init_args
    assert config == AppConfig.model_validate(arguments)
    assert (reranking, shards) == (None, ())
    assert {name: bound._bound_deployment.name for name, bound in remote.items()} == {
        "ranking": "RankingReplica",
        "explain": "ExplainReplica",
    }
    with pytest.raises(ValidationError, match="datasett"):
        call_user_app_builder_with_args_if_necessary(build, {"datasett": "shop"})
