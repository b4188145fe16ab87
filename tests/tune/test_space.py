from typing import Any

import pytest

from cluster.errors import TowerlineError
from train.models.two_tower import TwoTowerConfig
from train.ranking import RankingConfig
from train.retrieval import RetrievalConfig
from tune.config import SearchConfig
from tune.dimensions import Choices, Range
from tune.models import SEARCHABLE, space_of
from tune.space import apply, around, field_names, grid, sample_of, start


def space(**dimensions: Any) -> Any:
    return SearchConfig(space={name.replace("__", "."): value for name, value in dimensions.items()})


@pytest.mark.parametrize("config", [RetrievalConfig(), RankingConfig()])
def test_the_models_own_spaces_fit_their_defaults_and_hold_them(config: RetrievalConfig | RankingConfig) -> None:
    own = space_of(SearchConfig(), config)
    assert around(own, config) == own
    assert start(own, config) == sample_of(config, own)
    assert set(own) <= set(field_names(config))


def test_a_sample_changes_what_it_names_and_nothing_else() -> None:
    config = RetrievalConfig.model_validate(
        {"batch_size": 77, "two_tower": {"history_length": 5}, "fit": {"epochs": 2}}
    )
    sample = {"learning_rate": 0.004, "two_tower.dropout": 0.3, "two_tower.loss": "sampled_softmax"}
    changed = apply(config, sample)
    assert sample_of(changed, sample) == sample
    assert apply(changed, sample_of(config, sample)) == config
    assert (changed.batch_size, changed.two_tower.history_length, changed.fit) == (77, 5, config.fit)


def test_any_field_can_be_searched() -> None:
    search = space(
        batch_size={"low": 256, "high": 1024, "step": 256},
        two_tower__loss={"choices": ["full_softmax", "sampled_softmax"]},
        two_tower__sampling_power={"low": 0, "high": 1},
        seed={"low": 0, "high": 9},
    )
    typed = space_of(search, RetrievalConfig())
    assert typed["two_tower.sampling_power"] == Range(low=0.0, high=1.0)
    assert not typed["two_tower.sampling_power"].whole  # type: ignore[union-attr]
    assert typed["seed"].whole  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "dimension", "message"),
    [
        ("learning_rat", {"choices": [1.0]}, r"no field 'learning_rat'.*there are: .*learning_rate"),
        ("two_tower.embeding_dim", {"choices": [8]}, r"no field 'two_tower\.embeding_dim'.*two_tower\.embedding_dim"),
        ("two_tower", {"choices": [8]}, "no field 'two_tower' that could be searched"),
        ("learning_rate.low", {"choices": [8]}, r"no field 'learning_rate\.low'"),
        ("learning_rate", {"low": -1.0, "high": 1.0}, r"learning_rate = -1\.0: Input should be greater than 0"),
        ("two_tower.dropout", {"low": 0.1, "high": 1.0}, r"two_tower\.dropout = 1\.0: Input should be less than 1"),
        ("two_tower.embedding_dim", {"low": 8.0, "high": 16.0}, r"two_tower\.embedding_dim = 8\.0.*valid integer"),
        ("two_tower.embedding_dim", {"choices": [48, "64"]}, r"two_tower\.embedding_dim = '64'.*valid integer"),
        ("two_tower.loss", {"choices": ["hinge"]}, r"two_tower\.loss = 'hinge'.*'full_softmax'"),
        ("two_tower.loss", {"low": 1, "high": 2}, r"two_tower\.loss is no number.*choices = \["),
        ("fit.epochs", {"low": 1, "high": 9}, r"fit\.epochs cannot be searched: a trial lasts search\.max_epochs"),
    ],
)
def test_what_the_config_does_not_admit_is_refused_by_name(name: str, dimension: Any, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        space_of(SearchConfig(space={name: dimension}), RetrievalConfig())


@pytest.mark.parametrize("name", ["past_share", "num_candidates"])
def test_what_the_candidate_lists_are_made_with_cannot_be_searched(name: str) -> None:
    value = getattr(RankingConfig(), name)
    with pytest.raises(TowerlineError, match=f"{name} cannot be searched: the candidate lists are made with it"):
        space_of(SearchConfig(space={name: {"choices": [value]}}), RankingConfig())


def test_the_rankers_attention_losses_and_weights_can_be_searched_but_not_its_labels() -> None:
    typed = space_of(
        space(
            ranker__history_heads={"choices": [0, 2, 4]},
            ranker__history_length={"low": 8, "high": 32, "step": 8},
            ranker__loss={"choices": ["listwise_softmax", "pointwise_logistic"]},
            ranker__heads__like_weight={"low": 0.03, "high": 0.5, "log": True},
            ranker__heads__value_weight={"low": 0.03, "high": 1},
        ),
        RankingConfig(),
    )
    assert typed["ranker.heads.value_weight"] == Range(low=0.03, high=1.0)
    with pytest.raises(TowerlineError, match="expected a multiple of history_heads, 3"):
        space_of(space(ranker__history_heads={"choices": [0, 3]}), RankingConfig())
    with pytest.raises(TowerlineError, match="like_min_value cannot be searched: it says what is to be learnt"):
        space_of(space(ranker__heads__like_min_value={"choices": [3.0]}), RankingConfig())


def test_values_that_do_not_go_together_are_refused() -> None:
    search = space(two_tower__embedding_dim={"low": 8, "high": 16}, learning_rate={"low": 1e-3, "high": 1e-2})
    with pytest.raises(TowerlineError, match=r"two_tower.embedding_dim = 9 .*expected a multiple of attention_heads"):
        space_of(search, RetrievalConfig())
    config = RetrievalConfig(two_tower=TwoTowerConfig(embedding_dim=60, attention_heads=5))
    with pytest.raises(TowerlineError, match=r"embedding_dim = 48.*a multiple of attention_heads, 5"):
        space_of(SearchConfig(), config)
    both = space(two_tower__embedding_dim={"choices": [45, 60]}, two_tower__attention_heads={"choices": [3, 5]})
    assert len(space_of(both, config)) == 2


def test_a_search_begins_at_the_config_or_as_near_to_it_as_the_space_allows() -> None:
    config = RetrievalConfig(learning_rate=2e-2, weight_decay=0, two_tower=TwoTowerConfig(embedding_dim=32))
    own = dict(SEARCHABLE[RetrievalConfig].space)
    wide = around(own, config)
    assert wide["learning_rate"] == Range(low=1e-3, high=2e-2, log=True)
    assert wide["weight_decay"] == own["weight_decay"], "a logarithmic range cannot hold 0"
    assert wide["two_tower.embedding_dim"] == Choices(choices=(48, 64, 32))
    assert start(wide, config) == {
        "learning_rate": 2e-2,
        "weight_decay": 1e-3,
        "two_tower.dropout": config.two_tower.dropout,
        "two_tower.embedding_dim": 32,
    }


def test_a_grid_is_every_point_once() -> None:
    found = grid({"a": Choices(choices=("x", "y")), "b": Range(low=0.1, high=0.3, step=0.1)}, 6)
    assert [point["a"] for point in found] == ["x"] * 3 + ["y"] * 3
    assert [point["b"] for point in found] == pytest.approx([0.1, 0.2, 0.3] * 2)


def test_a_grid_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(TowerlineError, match=r"rate has no step, so no grid can be made; give a step or choices"):
        grid({"rate": Range(low=0.1, high=0.2)}, 9)
    with pytest.raises(TowerlineError, match="grid has 12 points, but num_trials is 11; raise it to 12"):
        grid({"a": Range(low=1, high=4), "b": Range(low=1, high=3)}, 11)
