"""The arguments of the application, as code, TOML and through Ray Serve's own builder."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from cluster.errors import TowerlineError
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
