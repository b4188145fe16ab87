"""What the demo promises of `configs/demo.toml`, the smaller configuration that it trains: how long, and how good.

The full configuration is that of `make bench-quality`. What it reaches on the same data by the same protocol lies in
`configs/demo_full.json`, which `python -m benchmarks.record_full_run` writes from that benchmark's report.
"""

from datetime import datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, PositiveInt

from cluster.errors import TowerlineError
from train.evaluation import Evaluation
from train.gate import PAIR, GateConfig, absolute_checks
from train.ledger import Check

METRIC = "ndcg@10"
CONFIG = Path(__file__).with_name("configs") / "demo.toml"
FULL_RUN = CONFIG.with_name("demo_full.json")
OVER_POPULARITY = 1.6
"""The two-tower's NDCG@10, as a multiple of popularity's."""
SHARE_OF_FULL = 0.9
"""The pair's NDCG@10, as a share of the full configuration's."""
TRAINING_S = 100.0
"""Seconds from the first example to the pair that serves, the search aside, on 2 cores."""


class FullRun(BaseModel):
    """What the full configuration reached, and the run that measured it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    """Prints the figures."""
    started: datetime
    git_commit: str
    data_version: str
    protocol_hash: str
    seeds: PositiveInt
    """That the figures are means of."""
    settings: dict[str, Any]
    """Of each system, as that benchmark names them."""
    figures: dict[str, FiniteFloat]
    """`<metric>/<model>` to value, with `seconds/<model>` for training and recommending."""

    @classmethod
    def read(cls, path: Path = FULL_RUN) -> Self:
        """The run that is recorded beside the demo's configuration."""
        return cls.model_validate_json(path.read_text())

    @property
    def words(self) -> str:
        """Where the figures come from."""
        seeds = "one seed" if self.seeds == 1 else f"mean of {self.seeds} seeds"
        return f"`{self.command}`, {seeds}, commit {self.git_commit[:10]}, data version {self.data_version[:12]}"

    def require_asked_alike(self, protocol_hash: str, data_version: str) -> None:
        """Raise TowerlineError, naming both, if the demo asks other questions than this run did."""
        for name, ours, its in (
            ("protocol", protocol_hash, self.protocol_hash),
            ("data version", data_version, self.data_version),
        ):
            if ours != its:
                raise TowerlineError(
                    f"{FULL_RUN.name}: the full configuration was measured by {name} {its[:12]}, the demo by "
                    f"{ours[:12]}: not comparable; measure it again with `{self.command}` and keep what it finds with "
                    "`python -m benchmarks.record_full_run`"
                )


def quality_checks(evaluation: Evaluation, full: FullRun) -> list[Check]:
    """Whether the models are as good as the demo promises: beside popularity, each other and the full configuration."""
    share = share_of_full(evaluation, full)
    words = (
        f"two-tower + ranker NDCG@10 {evaluation.figures[f'{METRIC}/{PAIR}']:.4f} is {share:.0%} of the full "
        f"configuration's {full.figures[f'{METRIC}/{PAIR}']:.4f} ({full.words}); at least {SHARE_OF_FULL:.0%} is "
        "promised"
    )
    promised = GateConfig(metric=METRIC, over_popularity=OVER_POPULARITY)
    return [*absolute_checks(evaluation, promised), Check(words=words, passed=share >= SHARE_OF_FULL)]


def time_check(training_s: float) -> Check:
    """Whether training took as long as the demo promises."""
    words = f"training took {training_s:.0f} s, the search aside; at most {TRAINING_S:.0f} s is promised on 2 cores"
    return Check(words=words, passed=training_s <= TRAINING_S)


def demo_figures(evaluation: Evaluation, full: FullRun, training_s: float) -> dict[str, float]:
    """What the report says besides the comparison."""
    return {
        "training_s/demo": training_s,
        f"{METRIC}_full/{PAIR}": full.figures[f"{METRIC}/{PAIR}"],
        f"share_of_full/{PAIR}": share_of_full(evaluation, full),
    }


def share_of_full(evaluation: Evaluation, full: FullRun) -> float:
    """The pair's NDCG@10 in units of the full configuration's."""
    return evaluation.figures[f"{METRIC}/{PAIR}"] / full.figures[f"{METRIC}/{PAIR}"]


def require_passed(checks: list[Check]) -> None:
    """Raise TowerlineError, with the numbers of those that failed."""
    failed = [check.words for check in checks if not check.passed]
    if failed:
        raise TowerlineError("; ".join(failed))
