import json
from dataclasses import asdict

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from cluster.errors import TowerlineError
from train.vocabulary import UNKNOWN, Vocabulary, encode, require_same_codes, title_tokens

ODD_IDS = ("a b", "a/b", "it's", '"quoted"', "千と千尋", "🦄", "..", "%2F", "nul\x00inside", "line\nbreak", "0", "None")
ENTITIES = {"attributes": pl.List(pl.String)}
TITLES = pl.DataFrame(
    {
        "item_id": ["1", "2", "3", "4"],
        "title": ["Star Wars: star!", "The Wars of ÉCLAIR", None, "Éclair"],
        "attributes": [["genre=War"], [], ["genre=War"], []],
    }
)


def build(
    events: list[tuple[str, float]], items: list[tuple[str, list[str]]], users: list[tuple[str, list[str]]]
) -> Vocabulary:
    return Vocabulary.build(
        pl.DataFrame(events, schema={"item_id": pl.String, "value": pl.Float32}, orient="row").with_columns(
            event_type=pl.lit("seen")
        ),
        pl.DataFrame(items, schema={"item_id": pl.String, **ENTITIES}, orient="row").with_columns(
            title=pl.lit(None, dtype=pl.String)
        ),
        pl.DataFrame(users, schema={"user_id": pl.String, **ENTITIES}, orient="row"),
        values=pl.Series([value for _, value in events], dtype=pl.Float32),
    )


@pytest.fixture
def odd() -> Vocabulary:
    return build(
        [("only in events", 1.0), ("a b", 2.5), ("Only in events", 4.0)],
        [(item, [f"kind={item}", "kind=all"]) for item in ODD_IDS],
        [("u", ["lives=in a/b", "名=x"]), ("v", [])],
    )


def test_listed_items_come_first_then_those_of_events_alone(odd: Vocabulary) -> None:
    assert odd.items == (*ODD_IDS, "Only in events", "only in events")
    assert odd.num_items == len(ODD_IDS) + 2
    assert odd.item_attributes == tuple(sorted({f"kind={item}" for item in ODD_IDS} | {"kind=all"}))
    assert odd.user_attributes == ("lives=in a/b", "名=x")


@pytest.mark.parametrize("item", ODD_IDS)
def test_an_odd_id_has_a_code_of_its_own_and_comes_back(odd: Vocabulary, item: str) -> None:
    code = odd.item_code(item)
    assert code == ODD_IDS.index(item) + 1
    assert odd.item_ids([code]) == [item]
    assert odd.encode_items(pl.Series([item])).tolist() == [code]


@pytest.mark.parametrize("stranger", ["", "A B", "a b ", "千", "nul", "13"])
def test_an_id_that_is_only_similar_is_unknown(odd: Vocabulary, stranger: str) -> None:
    assert odd.item_code(stranger) == UNKNOWN
    assert odd.encode_items(pl.Series([stranger])).tolist() == [UNKNOWN]


def test_encoding_keeps_the_order_and_repeats(odd: Vocabulary) -> None:
    codes = odd.encode_items(pl.Series(["🦄", "?", "a b", "🦄", None], dtype=pl.String))
    assert codes.tolist() == [6, UNKNOWN, 1, 6, UNKNOWN]
    assert codes.dtype == np.int64
    assert odd.encode_items(pl.Series([], dtype=pl.String)).tolist() == []


def test_encoding_many_ids_equals_encoding_each(odd: Vocabulary) -> None:
    ids = np.random.default_rng(0).choice([*odd.items, "stranger"], 5000)
    assert odd.encode_items(pl.Series(ids)).tolist() == [odd.item_code(str(item)) for item in ids]


def test_json_brings_back_the_same_vocabulary(odd: Vocabulary) -> None:
    again = Vocabulary.from_json(json.dumps(asdict(odd), ensure_ascii=False))
    assert again == odd
    assert [again.item_code(item) for item in odd.items] == list(range(1, odd.num_items + 1))


def test_values_fall_into_bins_of_equal_shares() -> None:
    vocabulary = build([("x", float(value)) for value in range(80)], [], [])
    assert len(vocabulary.value_edges) == 7
    bins = vocabulary.encode_values(np.arange(80, dtype=np.float32))
    assert np.bincount(bins, minlength=9).tolist() == [0, *[10] * 8]
    assert vocabulary.encode_values(np.array([-1e30, 1e30], dtype=np.float32)).tolist() == [1, 8]


def test_few_distinct_values_make_few_bins_and_the_same_value_always_the_same_bin() -> None:
    ratings = build([("x", float(value % 2)) for value in range(100)], [], [])
    assert ratings.value_edges == (0.0, 0.5, 1.0) or len(ratings.value_edges) <= 3
    low, high = ratings.encode_values(np.array([0, 1], dtype=np.float32))
    assert 1 <= low < high
    constant = build([("x", 1.0)] * 10, [], [])
    assert constant.value_edges == (1.0,)
    assert constant.encode_values(np.array([[0.5, 1.0, 2.0]], dtype=np.float32)).tolist() == [[1, 2, 2]]


def titled(*inputs: str) -> Vocabulary:
    users = pl.DataFrame({"user_id": ["u"], "attributes": [["age=9"]]})
    events = pl.DataFrame({"item_id": ["1", "2", "2"], "event_type": ["seen", "bought", "seen"]})
    return Vocabulary.build(events, TITLES, users, pl.Series([1.0]), inputs)


def test_words_that_several_titles_share_are_tokens_of_items() -> None:
    assert title_tokens(TITLES).to_list() == [
        ["title=star", "title=wars"],
        ["title=the", "title=wars", "title=of", "title=éclair"],
        [],
        ["title=éclair"],
    ]
    assert titled("attributes", "title").item_attributes == ("genre=War", "title=wars", "title=éclair")


def test_what_is_not_an_input_is_not_known() -> None:
    assert titled("title").item_attributes == ("title=wars", "title=éclair")
    assert titled("title").user_attributes == ()
    assert titled("attributes").item_attributes == ("genre=War",)
    assert titled("attributes").user_attributes == ("age=9",)
    assert titled().item_attributes == ()


def test_types_of_events_have_codes() -> None:
    assert titled().event_types == ("bought", "seen")
    assert titled().event_type_codes == {"bought": 1, "seen": 2}


def test_no_attributes_at_all_are_fine() -> None:
    vocabulary = build([("x", 1.0)], [], [("u", [])])
    assert (vocabulary.items, vocabulary.item_attributes, vocabulary.user_attributes) == (("x",), (), ())
    assert encode(pa.array(["kind=x"]), vocabulary.item_attribute_codes).tolist() == [UNKNOWN]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (("a", "c", "b"), "item code 2 is 'c' here and 'b' there"),
        (("a", "b"), "it knows 2 items instead of 3"),
        (("a", "b", "c", "d"), "it knows 4 items instead of 3"),
    ],
)
def test_codes_of_other_items_are_refused(items: tuple[str, ...], message: str) -> None:
    expected = Vocabulary(("a", "b", "c"), (), (), ())
    require_same_codes("the ranker", expected, "its two-tower", expected)
    with pytest.raises(TowerlineError, match=f"vocabulary of the ranker is not that of its two-tower: {message}"):
        require_same_codes("the ranker", Vocabulary(items, (), (), ()), "its two-tower", expected)
