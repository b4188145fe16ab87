"""What a chunk of rows contributes to the report of a validation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from data.expectations import Expectations, described_columns
from data.quality.rules import rule_of
from data.quality.statistics import Statistics
from data.sources.chunk import Broken

EXAMPLES = 3
"""Broken rows of each rule that a report shows."""


@dataclass(frozen=True)
class Findings:
    """What a report needs to know of some rows of one table. `Findings()` is of none; `+` takes any order."""

    rows_read: int = 0
    broken: Mapping[str, int] = field(default_factory=dict)
    """Rule → rows that broke it, by the reason's text up to the value."""
    examples: Mapping[str, tuple[Broken, ...]] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=Statistics)
    """Of the good rows."""

    @classmethod
    def of(
        cls,
        good: pl.DataFrame,
        broken: Sequence[Broken],
        expectations: Expectations,
        rows_read: int | None = None,
    ) -> "Findings":
        """Of a chunk: its good rows in the contract's columns, and all that is broken, unreadable rows included.

        `rows_read` is by default what both make together; pass 0 for rows that were counted as read before and turn
        out to be broken later (repeated ones), with an empty `good`.
        """
        by_rule: dict[str, list[Broken]] = {}
        for row in broken:
            by_rule.setdefault(rule_of(row.reason, expectations.rules), []).append(row)
        return cls(
            rows_read=good.height + len(broken) if rows_read is None else rows_read,
            broken={rule: len(rows) for rule, rows in by_rule.items()},
            examples={rule: tuple(sorted(rows)[:EXAMPLES]) for rule, rows in by_rule.items()},
            statistics=Statistics.of(good, described_columns(good)),
        )

    def __add__(self, other: "Findings") -> "Findings":
        rules = sorted(self.broken.keys() | other.broken.keys())
        return Findings(
            self.rows_read + other.rows_read,
            {rule: self.broken.get(rule, 0) + other.broken.get(rule, 0) for rule in rules},
            {rule: tuple(sorted(self._examples(rule) + other._examples(rule))[:EXAMPLES]) for rule in rules},
            self.statistics + other.statistics,
        )

    def _examples(self, rule: str) -> tuple[Broken, ...]:
        return self.examples.get(rule, ())

    @property
    def rows_broken(self) -> int:
        """All that went to quarantine."""
        return sum(self.broken.values())
