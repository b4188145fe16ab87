"""Hive partitions (`date=2024-01-01/`): which of them are asked for, and whether one is missing."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from cluster.errors import TowerlineError

Partition = tuple[tuple[str, str | None], ...]
"""Key and value of each folder, outermost first."""

_RANGE = re.compile(r"([^=]+)=(.+?)(?:\.\.(.+))?")
_NAMED = 5


@dataclass(frozen=True)
class Partitions:
    """The partitions that are asked for: those of `key` from `first` to `last`, or all if there is no key."""

    key: str = ""
    first: str = ""
    last: str = ""
    may_have_gaps: bool = False
    """Whether a day may be missing between the first and the last."""

    @classmethod
    def parse(cls, text: str | None, *, may_have_gaps: bool = False) -> "Partitions":
        """`date=2024-01-01..2024-01-31`, or one value; None for all. Raises TowerlineError for anything else."""
        match = _RANGE.fullmatch(text) if text else None
        if text and not match:
            raise TowerlineError(
                f"--partitions is {text!r}, expected KEY=FIRST..LAST, e.g. date=2024-01-01..2024-01-31"
            )
        if match is None:
            return cls(may_have_gaps=may_have_gaps)
        asked = cls(match[1], match[2], match[3] or match[2], may_have_gaps)
        if asked.first > asked.last and not (asked.first.isdigit() and int(asked.first) <= int(asked.last)):
            raise TowerlineError(f"--partitions {text}: the first comes after the last")
        return asked

    def choose(self, address: str, partitions: Sequence[Partition]) -> list[bool]:
        """Which of the partitions are asked for. Raises TowerlineError if one is missing."""
        if not self.key:
            self._require_no_gap(address, partitions)
            return [True] * len(partitions)
        values = [dict(partition).get(self.key) for partition in partitions]
        known = {value for value in values if value is not None}
        if not known:
            raise TowerlineError(f"{address} is not partitioned by {self.key!r}: no folder {self.key}=…")
        wanted = _values_between(self.first, self.last, known)
        missing = sorted(wanted - known)
        if missing and not self.may_have_gaps:
            raise TowerlineError(
                f"{address}: {_missing(self.key, missing)} of {self.key}={self.first}..{self.last} is missing; "
                "get a whole copy, or pass --allow-missing-partitions"
            )
        chosen = [value in wanted for value in values]
        if not any(chosen):
            raise TowerlineError(f"{address} has no partition {self.key}={self.first}..{self.last}")
        return chosen

    def _require_no_gap(self, address: str, partitions: Sequence[Partition]) -> None:
        if self.may_have_gaps:
            return
        for key in {key for partition in partitions for key, _ in partition}:
            values = {dict(partition).get(key) for partition in partitions}
            days = sorted(value for value in values if value is not None)
            if not all(_day(value) for value in days) or len(days) < len(values):
                continue
            missing = sorted(_values_between(days[0], days[-1], set()) - set(days))
            if missing:
                raise TowerlineError(
                    f"{address}: {_missing(key, missing)} is missing between {days[0]} and {days[-1]}; get a whole "
                    "copy, or pass --allow-missing-partitions if nothing happened then"
                )


def _values_between(first: str, last: str, known: set[str]) -> set[str]:
    """Days or whole numbers one by one; of other values those that are known."""
    if (start := _day(first)) and (end := _day(last)):
        return {str(start + timedelta(days=number)) for number in range((end - start).days + 1)}
    if first.isdigit() and last.isdigit():
        written = {int(value): value for value in known if value.isdigit()}
        return {written.get(number, str(number)) for number in range(int(first), int(last) + 1)}
    return {first, last} | {value for value in known if first <= value <= last}


def _day(text: str) -> date | None:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _missing(key: str, values: Sequence[str]) -> str:
    more = f" and {len(values) - _NAMED} more" if len(values) > _NAMED else ""
    return f"partition {', '.join(f'{key}={value}' for value in values[:_NAMED])}{more}"
