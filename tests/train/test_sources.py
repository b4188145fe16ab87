import json
from pathlib import Path

import pytest

from cluster.errors import TowerlineError
from tests.train.letters import events_of, letters
from train.models.popularity import Popularity, PopularityConfig
from train.models.sources import SOURCES, load_source


def test_a_folder_says_what_it_holds(tmp_path: Path) -> None:
    source = Popularity(PopularityConfig(window_days=3))
    source.fit(events_of("ab"), letters("ab"))
    source.save(tmp_path)
    loaded = load_source(tmp_path)
    assert isinstance(loaded, Popularity)
    assert loaded.config == source.config


def test_kinds_are_those_of_the_configurations() -> None:
    for kind, source in SOURCES.items():
        assert source().config.kind == kind


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"model\.json is not that of a candidate source: .*No such file"):
        load_source(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps({"embedding_dim": 4}), encoding="utf-8")
    with pytest.raises(TowerlineError, match="kind is None, expected one of popularity, item_item, ease, ials"):
        load_source(tmp_path)


def test_a_file_that_was_cut_short_is_named(tmp_path: Path) -> None:
    source = Popularity()
    source.fit(events_of("ab"), letters("ab"))
    source.save(tmp_path)
    (tmp_path / "model.json").write_text('{"kind": "popu', encoding="utf-8")
    with pytest.raises(TowerlineError, match=r"model\.json is not that of a candidate source: Unterminated"):
        load_source(tmp_path)
    source.save(tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(TowerlineError, match=r"weights\.safetensors cannot be read: .*; fetch or train"):
        load_source(tmp_path)
