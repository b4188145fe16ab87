from pathlib import Path

import pytest

from train.retrieval import RetrievalConfig
from tune.outcome import Mode, TrialOutcome, outcome_of, read_outcome, write_outcome

TRIALS = [
    TrialOutcome(number=1, sample={"learning_rate": 0.1}, state="finished", curve=[0.1, 0.3, 0.2], seconds=1.5),
    TrialOutcome(number=2, sample={"learning_rate": 0.2}, state="stopped", curve=[0.3]),
    TrialOutcome(number=3, sample={"learning_rate": 0.3}, state="stopped", curve=[0.05]),
    TrialOutcome(number=4, sample={"learning_rate": 0.4}, state="failed", error="the loss is nan"),
]


@pytest.mark.parametrize(("mode", "number", "rate"), [("max", 1, 0.1), ("min", 3, 0.3)])
def test_the_best_trial_is_what_is_found_the_first_of_equals(mode: Mode, number: int, rate: float) -> None:
    config = RetrievalConfig(batch_size=77)
    outcome = outcome_of(config, "ndcg@10", mode, TRIALS, 9.0)
    assert outcome is not None
    assert outcome.best.number == number
    assert outcome.config == config.model_copy(update={"learning_rate": rate})


def test_a_search_none_of_whose_trials_has_a_value_found_nothing() -> None:
    assert outcome_of(RetrievalConfig(), "ndcg@10", "max", TRIALS[3:], 9.0) is None


def test_what_was_written_is_read_as_it_was(tmp_path: Path) -> None:
    config = RetrievalConfig()
    outcome = outcome_of(config, "ndcg@10", "max", TRIALS, 9.0)
    assert outcome is not None
    assert read_outcome(tmp_path, config, "ndcg@10", "max") is None
    write_outcome(tmp_path, outcome)
    assert read_outcome(tmp_path, config, "ndcg@10", "max") == outcome
