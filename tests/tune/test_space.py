import pytest
import ray.tune
from pydantic import ValidationError

from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig
from tune.space import RetrievalSpace, apply, sample_of


def test_every_draw_makes_a_config() -> None:
    space = RetrievalSpace()
    distributions = space.distributions()
    for _ in range(200):
        sample = {name: distribution.sample() for name, distribution in distributions.items()}
        config = apply(RetrievalConfig(), sample)
        assert space.learning_rate[0] <= config.learning_rate <= space.learning_rate[1]
        assert space.weight_decay[0] <= config.weight_decay <= space.weight_decay[1]
        assert space.dropout[0] <= config.two_tower.dropout <= space.dropout[1]
        assert config.two_tower.embedding_dim in space.embedding_dim


def test_rates_are_drawn_log_uniformly() -> None:
    drawn = [RetrievalSpace(learning_rate=(1e-6, 1e-2)).distributions()["learning_rate"].sample() for _ in range(2000)]
    below = sum(rate < 1e-4 for rate in drawn) / len(drawn)
    assert below == pytest.approx(0.5, abs=0.06)


def test_a_sample_changes_what_it_names_and_nothing_else() -> None:
    config = RetrievalConfig.model_validate(
        {
            "batch_size": 77,
            "seed": 3,
            "two_tower": {"history_length": 5, "loss": "sampled_softmax"},
            "fit": {"epochs": 2},
        }
    )
    sample = {"learning_rate": 0.004, "weight_decay": 0.02, "dropout": 0.3, "embedding_dim": 48}
    changed = apply(config, sample)
    assert sample_of(changed) == sample
    assert apply(changed, sample_of(config)) == config
    assert changed.two_tower.history_length == 5
    assert (changed.batch_size, changed.seed, changed.fit) == (77, 3, config.fit)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": (1e-2, 1e-3)}, r"0\.01 to 0\.001 is no range; give \(low, high\)"),
        ({"dropout": (0.2, 0.2)}, r"0\.2 to 0\.2 is no range"),
        ({"dropout": (0.1, 1.0)}, "less than 1"),
        ({"dropout": (-0.1, 0.4)}, "greater than or equal to 0"),
        ({"learning_rate": (0.0, 1e-3)}, r"logarithmic range cannot begin at 0\.0"),
        ({"weight_decay": (0.0, 0.1)}, r"logarithmic range cannot begin at 0\.0"),
        ({"embedding_dim": (48, 0, 64)}, "greater than 0"),
        ({"embedding_dim": ()}, "at least 1 item"),
        ({"embeding_dim": (48,)}, "embeding_dim"),
    ],
)
def test_a_range_that_no_config_admits_is_refused_at_once(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RetrievalSpace.model_validate(values)


def test_the_space_is_widened_to_where_the_search_begins() -> None:
    config = RetrievalConfig(
        learning_rate=2e-2, weight_decay=1e-4, two_tower=TwoTowerConfig(embedding_dim=32, dropout=0.0)
    )
    space = RetrievalSpace().around(config)
    assert space.learning_rate == (1e-3, 2e-2)
    assert space.weight_decay == (1e-4, 1e-1)
    assert space.dropout == (0.0, 0.4)
    assert space.embedding_dim == (32, 48, 64)
    assert RetrievalSpace().around(RetrievalConfig()) == RetrievalSpace()


def test_choices_must_fit_the_heads_of_the_config_that_is_searched_from() -> None:
    config = RetrievalConfig(two_tower=TwoTowerConfig(embedding_dim=60, attention_heads=5))
    with pytest.raises(ValidationError, match="embedding_dim is 48, expected a multiple of attention_heads, 5"):
        RetrievalSpace().around(config)
    assert RetrievalSpace(embedding_dim=(45, 50)).around(config).embedding_dim == (45, 50, 60)


def test_no_weight_decay_at_all_cannot_be_searched_from() -> None:
    with pytest.raises(ValidationError, match=r"weight_decay\n.*cannot begin at 0\.0; begin above 0"):
        RetrievalSpace().around(RetrievalConfig(weight_decay=0))


def test_ray_tune_understands_the_space() -> None:
    kinds = {name: type(domain) for name, domain in RetrievalSpace().distributions().items()}
    floats = dict.fromkeys(("learning_rate", "weight_decay", "dropout"), type(ray.tune.uniform(0, 1)))
    assert kinds == floats | {"embedding_dim": type(ray.tune.choice([1]))}
