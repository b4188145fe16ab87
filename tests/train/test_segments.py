import numpy as np

from tests.train.told import ITEMS, codes_of, told_cases
from train.segments import head_items, user_segments

USERS = [f"u{number}" for number in range(30)]


def test_users_are_cold_or_warm_by_what_is_known_of_them() -> None:
    histories = {user: "abcdefghij"[: number % 8] for number, user in enumerate(USERS)}
    cases = told_cases(histories, dict.fromkeys(USERS, "j"))
    for user, segments in zip(USERS, user_segments(cases, cold_below=3), strict=True):
        assert segments.to_list() == ["cold" if len(histories[user]) < 3 else "warm"]


def test_every_attribute_is_a_segment_and_rare_values_are_one_together() -> None:
    attributes = {user: ["sex=F" if number % 2 else "sex=M"] for number, user in enumerate(USERS)}
    attributes["u0"] = ["sex=M", "zip=1", "zip=2"]
    attributes["u1"] = []
    cases = told_cases(dict.fromkeys(USERS, ""), dict.fromkeys(USERS, "j"), attributes=attributes)
    found = user_segments(cases, minimum=10).to_list()
    assert found[:4] == [["cold", "sex=M", "zip=(rare)"], ["cold"], ["cold", "sex=M"], ["cold", "sex=F"]]


def test_the_head_is_the_fifth_with_the_most_events() -> None:
    counts = {item: 20 - number for number, item in enumerate(ITEMS)} | {"d": 90}
    cases = told_cases({"u": ""}, {"u": "a"}, trained=counts)
    assert np.flatnonzero(head_items(cases.training)).tolist() == sorted(codes_of("ad").tolist())


def test_items_without_a_training_event_are_of_the_tail() -> None:
    cases = told_cases({"u": ""}, {"u": "a"}, trained={"b": 1, "c": 1, "e": 1, "f": 1, "g": 1})
    assert np.flatnonzero(head_items(cases.training)).tolist() == codes_of("b").tolist()
    assert not head_items(told_cases({"u": ""}, {"u": "a"}, trained={}).training).any()
