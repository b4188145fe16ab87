"""The events of a data version, found again when more have come."""

import polars as pl
import pytest

from cluster.errors import TowerlineError
from data.events import FIRST_APPENDED_ROW, ROWS_PER_FILE
from data.known_events import KnownEvents


def events(rows: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"event_id": [f"e{row}" for row in rows], "source_row": rows})


OF_BOTH = [0, 1, 5, FIRST_APPENDED_ROW, FIRST_APPENDED_ROW + 1]
LATER = [ROWS_PER_FILE, ROWS_PER_FILE + 1, FIRST_APPENDED_ROW + 2]


@pytest.mark.parametrize("rows", [OF_BOTH, OF_BOTH[:3], OF_BOTH[3:]], ids=["both", "files", "online"])
def test_what_came_later_is_not_known(rows: list[int]) -> None:
    known = KnownEvents.of("v1", events(rows))
    grown = events([*LATER, *reversed(rows)])
    known.require_in(grown, "a model")
    assert sorted(grown.filter(known.are_known)["source_row"]) == rows
    assert known.events == len(rows)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [(events(OF_BOTH[1:]), "4 events in their place"), (events([*OF_BOTH[:2], 4, *OF_BOTH[3:]]), "others instead")],
)
def test_another_data_set_is_refused(changed: pl.DataFrame, problem: str) -> None:
    known = KnownEvents.of("v1", events(OF_BOTH))
    with pytest.raises(TowerlineError, match=f"a model has seen the 5 events of data version v1, .* holds {problem}"):
        known.require_in(changed, "a model")
