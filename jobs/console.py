"""What the jobs say while they work: steps, epochs, trials and the table of a comparison."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import rich.box
import rich.console
import rich.progress
from rich.table import Table

from jobs.evaluation_tables import TextTable
from train.evaluation import Evaluation
from train.gate import absolute_checks
from train.loop import EpochResult
from train.promotion import Decision
from train.registry import RegisteredPair, registered_name
from tune.outcome import SearchOutcome, TrialOutcome

Step = TypeVar("Step")

SECONDS_BETWEEN_TRIAL_LINES = 10.0
METRICS = ("recall@10", "ndcg@10", "mrr", "coverage@10")


class Console:
    """Lines for people, on standard output."""

    def __init__(self, first_step: int = 1) -> None:
        self._out = rich.console.Console(markup=False, highlight=False, soft_wrap=True)
        self._step = first_step - 1
        self._said_of_trials = time.monotonic()

    def say(self, line: str) -> None:
        """One indented line."""
        self._out.print(f"   {line}")

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """A numbered step; says at its end how long it took."""
        self._step += 1
        start = time.monotonic()
        self._out.print(f"\n{self._step:2d} {title}", style="bold")
        yield
        self.say(f"{time.monotonic() - start:.1f} s")

    def track(self, steps: Sequence[Step], what: str) -> Iterable[Step]:
        """The steps, with a bar that shows how far they are; on a terminal only."""
        if not self._out.is_terminal:
            return steps
        return rich.progress.track(steps, f"   {what}", console=self._out, transient=True)

    def epoch(self, result: EpochResult) -> None:
        """One line per epoch."""
        metrics = "".join(f", {name} {value:.4f}" for name, value in result.metrics.items())
        speed = (
            f"{result.seconds:.1f} s, {result.samples_per_s:,.0f} examples/s, {result.data_wait:.1%} waiting for data"
        )
        self.say(f"epoch {result.epoch + 1}: loss {result.loss:.4f}{metrics} ({speed})")

    def trial(self, trial: TrialOutcome) -> None:
        """One line per trial that ended; of those that run, one now and then, so that nobody waits in the dark."""
        now = time.monotonic()
        if trial.state == "running" and now - self._said_of_trials < SECONDS_BETWEEN_TRIAL_LINES:
            return
        self._said_of_trials = now
        if trial.error:
            self.say(f"trial {trial.number} failed: {_sample(trial)}: {trial.error}")
            return
        curve = " ".join(f"{value:.4f}" for value in trial.curve)
        self.say(f"trial {trial.number} {trial.state}: {_sample(trial)}: {curve}")

    def searched(self, outcome: SearchOutcome[Any], importance: Mapping[str, float]) -> None:
        """The best trial, and which fields mattered."""
        best = outcome.best
        value = f"{outcome.metric} {best.best(outcome.mode):.4f}"
        self.say(f"best of {len(outcome.trials)} trials: trial {best.number}, {value} on the validation events")
        if importance:
            self.say("importance: " + ", ".join(f"{name} {share:.0%}" for name, share in importance.items()))

    def comparison(self, evaluation: Evaluation) -> None:
        """The table of a comparison, its protocol, and whether it meets what is asked of it."""
        self._out.print(comparison_table(evaluation))
        self.say(f"protocol {evaluation.protocol_hash}, {evaluation.users:,} users: {evaluation.protocol}")
        for check in absolute_checks(evaluation):
            self.say(str(check))

    def tables(self, tables: Iterable[TextTable]) -> None:
        """Each under its title, as wide as its cells: a terminal may fold lines, nothing is cut."""
        for table in tables:
            self._out.print(f"\n{table.title}", style="bold")
            drawn = Table(*table.heads, box=rich.box.SIMPLE_HEAD, width=table.width)
            for row in table.rows:
                drawn.add_row(*row)
            self._out.print(drawn, crop=False)

    def registered(self, pair: RegisteredPair) -> None:
        """The versions of a variant."""
        for kind, version in pair.versions.items():
            self.say(f"registered {registered_name(pair.dataset, kind)} version {version}, variant {pair.variant}")

    def decision(self, decision: Decision) -> None:
        """What the gate found, and who is champion now."""
        for line in decision.lines():
            self.say(line)


def comparison_table(evaluation: Evaluation) -> Table:
    """A row per model, a column per metric."""
    table = Table("model", *METRICS, box=rich.box.SIMPLE_HEAD)
    for model in models_of(evaluation):
        table.add_row(model, *(f"{evaluation.figures[f'{metric}/{model}']:.4f}" for metric in METRICS))
    return table


def models_of(evaluation: Evaluation) -> list[str]:
    """The models that were compared, in their order."""
    return list(dict.fromkeys(name.partition("/")[2] for name in evaluation.figures))


def _sample(trial: TrialOutcome) -> str:
    """What a trial tried, by the last words of the fields' names."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:.3g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {value}"
        for name, value in trial.sample.items()
    )
