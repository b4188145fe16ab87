import pickle

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from data.expectations import DatasetExpectations
from data.quality.findings import EXAMPLES, Findings
from data.sources.chunk import Broken

EVENTS = DatasetExpectations().events
REASONS = ("user_id is missing", "value in -1000000000..1000000000: 2e9", "duplicate event: again")
GOOD = pl.DataFrame({"user_id": ["a", "b"], "value": [1.0, 2.0], "source_row": [1, 2], "extra": [0, 0]})

rows = st.lists(st.builds(Broken, st.integers(1, 99), st.sampled_from(REASONS), st.just("{}")), max_size=12)


def test_broken_rows_are_counted_by_rule() -> None:
    broken = [Broken(line, reason, "{}") for line in range(9) for reason in REASONS]
    found = Findings.of(GOOD, broken, EVENTS)
    assert found.broken == {"user_id present": 9, "value in -1000000000..1000000000": 9, "duplicate event": 9}
    assert (found.rows_read, found.rows_broken) == (29, 27)
    assert [row.line for row in found.examples["user_id present"]] == [0, 1, 2]
    assert list(found.statistics.columns) == ["user_id", "value"]


@settings(deadline=None)
@given(st.lists(rows, max_size=5), st.randoms())
def test_findings_do_not_depend_on_chunks(chunks: list[list[Broken]], random: object) -> None:
    parts = [Findings.of(GOOD.clear(), chunk, EVENTS) for chunk in chunks]
    random.shuffle(parts)  # type: ignore[attr-defined]
    whole = Findings.of(GOOD.clear(), [row for chunk in chunks for row in chunk], EVENTS)
    assert sum(parts, Findings()) == whole
    assert all(len(examples) <= EXAMPLES for examples in whole.examples.values())


def test_rows_that_turn_out_to_be_broken_are_not_read_again() -> None:
    late = Findings.of(GOOD.clear(), [Broken(2, REASONS[2], "{}")], EVENTS, rows_read=0)
    found = Findings.of(GOOD, [], EVENTS) + late
    assert (found.rows_read, found.rows_broken) == (2, 1)


def test_they_travel() -> None:
    found = Findings.of(GOOD, [Broken(1, REASONS[0], "{}")], EVENTS)
    assert len(pickle.dumps(found)) < 5_000
    assert pickle.loads(pickle.dumps(found)).broken == found.broken
