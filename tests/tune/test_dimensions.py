from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter, ValidationError

from tune.dimensions import Choices, Range, Space

SPACES: TypeAdapter[Any] = TypeAdapter(Space)


def test_a_range_of_rates_is_drawn_log_uniformly() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    rates = {"rate": Range(low=1e-6, high=1e-2, log=True).distribution()}
    drawn = [study.ask(fixed_distributions=rates).params["rate"] for _ in range(500)]
    assert sum(rate < 1e-4 for rate in drawn) / len(drawn) == pytest.approx(0.5, abs=0.08)
    assert all(1e-6 <= rate <= 1e-2 for rate in drawn)


def test_whole_numbers_stay_whole_and_steps_are_kept() -> None:
    assert Range(low=2, high=8).points() == [2, 3, 4, 5, 6, 7, 8]
    assert Range(low=16, high=64, step=16).points() == [16, 32, 48, 64]
    assert Range(low=0.1, high=0.4, step=0.1).points() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert Range(low=0.1, high=0.4).points() is None
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    lengths = {"length": Range(low=16, high=64, step=16).distribution()}
    drawn = {study.ask(fixed_distributions=lengths).params["length"] for _ in range(100)}
    assert drawn == {16, 32, 48, 64}
    assert {type(length) for length in drawn} == {int}


@pytest.mark.parametrize(
    ("dimension", "value", "holding", "nearest"),
    [
        (Range(low=1.0, high=2.0), 1.5, Range(low=1.0, high=2.0), 1.5),
        (Range(low=1.0, high=2.0), 3.0, Range(low=1.0, high=3.0), 2.0),
        (Range(low=1.0, high=2.0, log=True), 0, Range(low=1.0, high=2.0, log=True), 1.0),
        (Range(low=2, high=8, step=2), 10, Range(low=2, high=10, step=2), 8),
        (Range(low=2, high=8, step=2), 5, Range(low=2, high=8, step=2), 6),
        (Range(low=2, high=8), None, Range(low=2, high=8), 2),
        (Choices(choices=(48, 64)), 32, Choices(choices=(48, 64, 32)), 48),
        (Choices(choices=(48, 64)), 64, Choices(choices=(48, 64)), 64),
        (Choices(choices=("a", "b")), None, Choices(choices=("a", "b")), "a"),
    ],
)
def test_it_is_widened_to_hold_a_value_where_it_can_be(
    dimension: Choices | Range, value: Any, holding: Choices | Range, nearest: Any
) -> None:
    assert dimension.holding(value) == holding
    assert dimension.nearest(value) == pytest.approx(nearest)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"low": 1e-2, "high": 1e-3}, r"0\.01 to 0\.001 is no range; low must be less than high"),
        ({"low": 0.2, "high": 0.2}, r"0\.2 to 0\.2 is no range"),
        ({"low": 0.0, "high": 1e-3, "log": True}, r"logarithmic range cannot begin at 0\.0"),
        ({"low": 1, "high": 8, "log": True, "step": 1}, "log or step, not both"),
        ({"low": 1, "high": 8, "step": 0}, "step is 0, expected more than 0"),
        ({"low": 1, "high": 8, "step": 3}, "high is 8, which no number of steps of 3 from 1 reaches"),
        ({"low": float("nan"), "high": 1.0}, "finite number"),
        ({"low": 1.0}, "high\n  Field required"),
        ({"low": 1, "high": 2, "steps": 1}, "steps\n  Extra inputs"),
        ({"choices": []}, "at least 1 item"),
        ({"choices": [48, 48]}, "names a choice twice"),
        ({"choices": [[1, 2]]}, "choices"),
        ([0.1, 0.2], "valid dictionary or instance of Range"),
        ("wide", "valid dictionary or instance of Range"),
    ],
)
def test_an_impossible_dimension_is_refused_by_the_name_of_its_field(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message) as refused:
        SPACES.validate_python({"two_tower": {"dropout": written}})
    assert "two_tower.dropout" in str(refused.value)


def test_sections_of_a_file_are_dotted_names_and_come_back_as_they_were() -> None:
    written = {
        "two_tower": {"embedding_dim": {"choices": [48, 64]}, "dropout": {"low": 0.1, "high": 0.4}},
        "two_tower.history_length": {"low": 16, "high": 64, "step": 16},
    }
    space = SPACES.validate_python(written)
    assert space == {
        "two_tower.embedding_dim": Choices(choices=(48, 64)),
        "two_tower.dropout": Range(low=0.1, high=0.4),
        "two_tower.history_length": Range(low=16, high=64, step=16),
    }
    assert SPACES.validate_python(SPACES.dump_python(space, mode="json", exclude_none=True)) == space


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ValidationError, match="at least 1 item"):
        SPACES.validate_python({})


def test_choices_keep_their_types() -> None:
    space = SPACES.validate_python({"flag": {"choices": [True, False]}, "size": {"choices": [1, 2.5, "three"]}})
    assert [type(choice) for choice in space["flag"].choices] == [bool, bool]
    assert [type(choice) for choice in space["size"].choices] == [int, float, str]
