"""Made-up events for checks of features, with the values that the features' own expressions ask for."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data.schema import DECISION_ID, EVENT_ID, EVENT_TIME, EVENT_TYPE, INGEST_TIME, ITEM_ID, SOURCE_ROW, USER_ID, VALUE
from data.views import EVENT_TYPES

_START_US = 1_704_067_200_000_000
_DAY_US = 86_400_000_000
_TEXTS = {USER_ID, ITEM_ID, EVENT_TYPE, DECISION_ID}

Literals = Mapping[str, Sequence[Any]]
"""Column of events → values that it should have now and then."""


def generate_events(count: int, seed: int, literals: Literals | None = None) -> pl.DataFrame:
    """Seeded events of 3 users and 4 items over 12 days, in the total order; half with ties, a third ingested late.

    With `literals`, a third of the events has such values in all these columns, a third in none, the others in some.
    """
    random = np.random.default_rng(seed)
    days = np.where(random.random(count) < 0.5, random.integers(0, 12, count), random.random(count) * 12)
    times = np.sort(_START_US + (days * _DAY_US).astype(np.int64))
    delays = np.where(random.random(count) < 1 / 3, random.integers(1, 3 * _DAY_US, count), 0)
    contents: dict[str, list[Any]] = {
        USER_ID: random.choice(["anna", "boris", "chen"], count).tolist(),
        ITEM_ID: random.choice(["w", "x", "y", "z"], count).tolist(),
        EVENT_TYPE: random.choice(["seen", "bought"], count).tolist(),
        VALUE: random.integers(1, 6, count).tolist(),
        DECISION_ID: random.choice(["one", "two"], count).tolist(),
    }
    shares = random.choice([0.0, 0.5, 1.0], count)
    for name, values in (literals or {}).items():
        contents[name] = _mixed(random, contents[name], values, shares)
    return pl.DataFrame(
        {
            EVENT_ID: [f"event-{row}" for row in range(count)],
            **contents,
            EVENT_TIME: times,
            INGEST_TIME: times + delays,
            SOURCE_ROW: np.arange(count),
        },
        schema_overrides={VALUE: pl.Float64},
    ).select(pl.col(name).cast(kind) for name, kind in EVENT_TYPES.items())


def literals_in(expressions: Iterable[pl.Expr]) -> dict[str, list[Any]]:
    """What expressions compare the columns of an event with: texts as they are, numbers also a little off."""
    found: dict[str, dict[Any, None]] = {}
    for expression in expressions:
        _collect(expression, found)
    return {name: list(values) for name, values in found.items()}


def _collect(expression: pl.Expr, found: dict[str, dict[Any, None]]) -> list[Any]:
    """Note the literals of an expression for the columns that stand nearest to them; gives those that have none."""
    if expression.meta.is_literal():
        literal = pl.select(expression.alias("literal")).to_series()
        return (literal.explode() if isinstance(literal.dtype, pl.List) else literal).to_list()
    if expression.meta.is_column():
        return []
    columns = set(expression.meta.root_names())
    left = []
    for literal in [each for part in expression.meta.pop() for each in _collect(part, found)]:
        is_number = isinstance(literal, int | float) and not isinstance(literal, bool) and np.isfinite(literal)
        fitting = sorted(columns & ({VALUE} if is_number else _TEXTS if isinstance(literal, str) else set()))
        for name in fitting:
            found.setdefault(name, {}).update(
                dict.fromkeys([literal - 1, literal, literal + 1] if is_number else [literal])
            )
        left += [] if fitting else [literal]
    return left


def _mixed(
    random: np.random.Generator, usual: list[Any], others: Sequence[Any], shares: npt.NDArray[np.float64]
) -> list[Any]:
    """Each value with its share of a chance replaced by one of the others."""
    is_other = random.random(len(usual)) < shares
    chosen = random.integers(0, len(others), len(usual))
    return [others[place] if wanted else value for value, place, wanted in zip(usual, chosen, is_other, strict=True)]
