import pytest

from jobs.evaluation_tables import models_in, segments_of, tables_of
from tests.train.told import Told, catalogue, told_cases
from train.evaluation import Measurements, measure
from train.protocols import StrongGeneralisation

HISTORIES = {f"u{number}": "ab" for number in range(40)}
TARGETS = dict.fromkeys(HISTORIES, "c")


@pytest.fixture
def measurements() -> Measurements:
    attributes = {user: [f"sex={'FM'[number % 2]}"] for number, user in enumerate(HISTORIES)}
    cases = told_cases(HISTORIES, TARGETS, attributes=attributes)
    late = {user: "dc" if number % 2 else "hc" for number, user in enumerate(HISTORIES)}
    return measure({"late": Told(late), "good": Told(dict.fromkeys(HISTORIES, "cd"))}, cases, catalogue())


def test_the_best_model_comes_first_with_its_interval(measurements: Measurements) -> None:
    assert models_in(measurements.evaluation, "ndcg@10") == ["good", "late"]
    table = tables_of(measurements)[0]
    assert table.heads == ["model", "ndcg@10", "recall@10"]
    assert table.rows[0] == ["good", "1.0000 [1.0000, 1.0000]", "1.0000 [1.0000, 1.0000]"]
    assert table.rows[1][:2] == ["late", "0.6309 [0.6309, 0.6309]"]


def test_every_table_bears_the_hash(measurements: Measurements) -> None:
    tables = tables_of(measurements)
    assert len(tables) == 4
    for table in tables:
        assert table.title.endswith(f"protocol {measurements.protocol.hash}, 40 users")
        assert {len(row) for row in table.rows} == {len(table.heads)}


def test_segments_have_their_users_and_every_model(measurements: Measurements) -> None:
    assert segments_of(measurements.evaluation) == ["cold", "tail", "sex=F", "sex=M"]
    table = tables_of(measurements)[2]
    assert table.heads == ["segment", "users", "good", "late"]
    assert [row[:2] for row in table.rows] == [["cold", "40"], ["tail", "40"], ["sex=F", "20"], ["sex=M", "20"]]
    assert table.rows[2][3] == "0.6309 [0.6309, 0.6309]"


def test_pairs_have_their_difference_and_p(measurements: Measurements) -> None:
    assert tables_of(measurements)[3].rows == [["late - good", "-0.3691 [-0.3691, -0.3691]", "0.0005", "40"]]


def test_metrics_that_nobody_has_are_no_column(measurements: Measurements) -> None:
    heads = tables_of(measurements)[1].heads
    assert "novelty@10" in heads
    assert not {"diversity@10", "miscalibration@10"} & set(heads)


def test_another_protocol_has_other_main_metrics() -> None:
    cases = told_cases(HISTORIES, TARGETS, protocol=StrongGeneralisation())
    measurements = measure({"good": Told(dict.fromkeys(HISTORIES, "cd"))}, cases, catalogue())
    tables = tables_of(measurements)
    assert tables[0].heads == ["model", "ndcg@100", "recall@20", "recall@50"]
    assert tables[3].rows == []


def test_the_width_leaves_room_for_every_cell(measurements: Measurements) -> None:
    for table in tables_of(measurements):
        for row in (table.heads, *table.rows):
            assert len("   ".join(row)) < table.width
