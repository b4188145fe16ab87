import re

import pytest

from jobs.console import Console, comparison_table, models_of
from train.evaluation import Evaluation
from train.loop import EpochResult
from train.retrieval import RetrievalConfig
from tune.outcome import TrialOutcome, outcome_of

EVALUATION = Evaluation(
    protocol="the last event of each user [bold]",
    protocol_hash="abc123",
    users=1234,
    figures={
        f"{metric}/{model}": value + number / 100
        for number, model in enumerate(("popularity", "two_tower"))
        for metric, value in (("recall@10", 0.1), ("ndcg@10", 0.05), ("mrr", 0.03), ("coverage@10", 0.5))
    },
)


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> "Lines":
    return Lines(capsys)


class Lines:
    """What was printed since the last look."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self) -> list[str]:
        return [line.rstrip() for line in self._capsys.readouterr().out.splitlines() if line.strip()]


def test_steps_are_numbered_and_timed(lines: Lines) -> None:
    console = Console(first_step=2)
    for title in ("Data", "Features"):
        with console.step(title):
            console.say("done")
    first, said, seconds, second, *_ = lines()
    assert (first, said, second) == (" 2 Data", "   done", " 3 Features")
    assert re.fullmatch(r"   \d+\.\d s", seconds)


def test_a_step_that_fails_does_not_say_how_long_it_took(lines: Lines) -> None:
    def fail() -> None:
        with Console().step("Data"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert lines() == [" 1 Data"]


def test_an_epoch_is_a_line(lines: Lines) -> None:
    console = Console()
    first = EpochResult(epoch=0, loss=7.12345, seconds=2.04, samples_per_s=43210.9, data_wait=0.0123)
    console.epoch(first.model_copy(update={"metrics": {"ndcg@10": 0.0712}}))
    console.epoch(EpochResult(epoch=1, loss=6.5, seconds=1, samples_per_s=10, data_wait=0))
    assert lines() == [
        "   epoch 1: loss 7.1235, ndcg@10 0.0712 (2.0 s, 43,211 examples/s, 1.2% waiting for data)",
        "   epoch 2: loss 6.5000 (1.0 s, 10 examples/s, 0.0% waiting for data)",
    ]


SAMPLE = {"learning_rate": 0.0012345, "two_tower.embedding_dim": 48}
TRIALS = [
    TrialOutcome(number=1, sample=SAMPLE, state="finished", curve=[0.05, 0.0712]),
    TrialOutcome(number=2, sample=SAMPLE, state="stopped", curve=[0.04]),
    TrialOutcome(number=3, sample=SAMPLE, state="failed", error="the training loss of epoch 0 is nan"),
]


def test_a_trial_that_ended_is_a_line(lines: Lines) -> None:
    for trial in TRIALS:
        Console().trial(trial)
    assert lines() == [
        "   trial 1 finished: learning_rate 0.00123, embedding_dim 48: 0.0500 0.0712",
        "   trial 2 stopped: learning_rate 0.00123, embedding_dim 48: 0.0400",
        "   trial 3 failed: learning_rate 0.00123, embedding_dim 48: the training loss of epoch 0 is nan",
    ]


def test_of_trials_that_run_something_is_said_now_and_then(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    running = TrialOutcome(number=4, sample=SAMPLE, curve=[0.05])
    console = Console()
    console.trial(running)
    assert lines() == []
    monkeypatch.setattr("jobs.console.SECONDS_BETWEEN_TRIAL_LINES", 0.0)
    console.trial(running)
    assert lines() == ["   trial 4 running: learning_rate 0.00123, embedding_dim 48: 0.0500"]


def test_what_a_search_found_is_said_with_what_mattered(lines: Lines) -> None:
    outcome = outcome_of(RetrievalConfig(), "ndcg@10", "max", TRIALS, 9.0)
    assert outcome is not None
    Console().searched(outcome, {"learning_rate": 0.755, "two_tower.embedding_dim": 0.245})
    assert lines() == [
        "   best of 3 trials: trial 1, ndcg@10 0.0712 on the validation events",
        "   importance: learning_rate 76%, two_tower.embedding_dim 24%",
    ]


def test_markup_of_others_is_printed_as_it_is(lines: Lines) -> None:
    """Titles may hold brackets; none of them is a command to the console, and long lines are not cut."""
    Console().say("[red]Alien[/red] (1979) " + "long " * 60)
    assert lines() == ["   [red]Alien[/red] (1979) " + ("long " * 60).rstrip()]


def test_the_comparison_names_its_protocol_and_what_was_asked_for(lines: Lines) -> None:
    Console().comparison(EVALUATION)
    text = lines()
    assert [line.split() for line in text if "popularity  " in line] == [
        ["popularity", "0.1000", "0.0500", "0.0300", "0.5000"]
    ]
    assert [line.split() for line in text if line.strip().startswith("two_tower")] == [
        ["two_tower", "0.1100", "0.0600", "0.0400", "0.5100"]
    ]
    assert "   protocol abc123, 1,234 users: the last event of each user [bold]" in text
    assert text[-1].startswith("   passed: two-tower NDCG@10 0.0600 is 1.20 x popularity's 0.0500")


def test_models_and_columns_keep_their_order() -> None:
    assert models_of(EVALUATION) == ["popularity", "two_tower"]
    table = comparison_table(EVALUATION)
    assert [column.header for column in table.columns] == ["model", "recall@10", "ndcg@10", "mrr", "coverage@10"]
    assert table.row_count == 2
