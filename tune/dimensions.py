"""What one field of a configuration may become: a choice of values, or a range of numbers."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Self

import optuna
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, FiniteFloat, Tag, model_validator

Value = bool | int | FiniteFloat | str


class Choices(BaseModel):
    """One of these, in no order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    choices: Annotated[tuple[Value, ...], Field(min_length=1)]
    """Numbers, words, true or false."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(map(repr, self.choices))) < len(self.choices):
            raise ValueError(f"{list(self.choices)} names a choice twice; name each once")
        return self

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """As Optuna wants it."""
        return optuna.distributions.CategoricalDistribution(self.choices)

    def points(self) -> list[Any]:
        """Every value there is."""
        return list(self.choices)

    def holding(self, value: Any) -> "Choices":
        """The same with `value` among them."""
        return self if value in self.choices or value is None else Choices(choices=(*self.choices, value))

    def nearest(self, value: Any) -> Any:
        """`value`, or the first choice."""
        return value if value in self.choices else self.choices[0]


class Range(BaseModel):
    """A number from `low` to `high`, both included; whole numbers if both are written as such."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: int | FiniteFloat
    """The least."""
    high: int | FiniteFloat
    """The most."""
    log: bool = False
    """Each order of magnitude is as likely as another."""
    step: int | FiniteFloat | None = None
    """Only `low`, `low + step`, `low + 2 step` …"""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"{self.low} to {self.high} is no range; low must be less than high")
        if self.log and not self.low > 0:
            raise ValueError(f"a logarithmic range cannot begin at {self.low}; begin above 0")
        if self.step is None:
            return self
        if self.log:
            raise ValueError("a range has log or step, not both; leave one out")
        if not self.step > 0:
            raise ValueError(f"step is {self.step}, expected more than 0")
        if not self._on_a_step(self.high):
            raise ValueError(f"high is {self.high}, which no number of steps of {self.step} from {self.low} reaches")
        return self

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    def distribution(self) -> optuna.distributions.BaseDistribution:
        """As Optuna wants it."""
        if self.whole:
            step = 1 if self.step is None else int(self.step)
            return optuna.distributions.IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return optuna.distributions.FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def of_fractions(self) -> "Range":
        """The same, of fractional numbers."""
        step = None if self.step is None else float(self.step)
        return Range(low=float(self.low), high=float(self.high), log=self.log, step=step)

    def points(self) -> list[Any] | None:
        """Every value, in order; None if there are more than can be counted."""
        step = self.step or (1 if self.whole else None)
        if step is None:
            return None
        return [self.low + number * step for number in range(round((self.high - self.low) / step) + 1)]

    def holding(self, value: Any) -> "Range":
        """The same, widened to hold `value` where that can be done."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (self.log and value <= 0) or (self.whole and not isinstance(value, int)):
            return self
        if self.step is not None and not self._on_a_step(value):
            return self
        return self.model_copy(update={"low": min(self.low, value), "high": max(self.high, value)})

    def nearest(self, value: Any) -> Any:
        """The value of the range that lies nearest to `value`; its lowest if that is no number."""
        if not isinstance(value, int | float):
            return self.low
        inside = min(max(value, self.low), self.high)
        step = self.step or (1 if self.whole else None)
        return inside if step is None else self.low + round((inside - self.low) / step) * step

    def _on_a_step(self, value: float) -> bool:
        assert self.step is not None
        steps = (value - self.low) / self.step
        return math.isclose(steps, round(steps), abs_tol=1e-9)


def _kind(value: Any) -> str:
    named = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    return "choices" if "choices" in named else "range"


def _flat(space: Any) -> Any:
    """Sections of a TOML file become dotted names."""
    if not isinstance(space, Mapping):
        return space
    leaves = {*Choices.model_fields, *Range.model_fields}
    found: dict[str, Any] = {}
    for name, value in space.items():
        if isinstance(value, Mapping) and value and not leaves & set(value):
            inner = _flat(value)
            found |= {f"{name}.{rest}": each for rest, each in inner.items()}
        else:
            found[str(name)] = value
    return found


Dimension = Choices | Range
Space = Annotated[
    dict[str, Annotated[Annotated[Choices, Tag("choices")] | Annotated[Range, Tag("range")], Discriminator(_kind)]],
    BeforeValidator(_flat),
    Field(min_length=1),
]
"""Dotted name of a field to what it may become."""
