"""The checks and the report of the soak; its clients and faults are tested in tests/serve/test_under_fire.py."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.checked_load import Notes, Seen
from benchmarks.expected_answers import Expected
from benchmarks.faults import over
from benchmarks.memory_watch import Sample, change
from benchmarks.soak_report import AIMS, FAULTS, Course, derived, missed, print_figures, write_picture

FULL = {"anna": {"a": 3.0, "b": 2.0, "c": 1.9999, "d": -1.0}, "ben": {"c": 1.0, "a": 0.5}}
UNRANKED = {"anna": {"d": 0.04, "c": 0.03, "b": 0.02, "a": 0.01}, "ben": {"a": 0.9, "c": 0.1}}
EXPECTED = Expected({frozenset(): FULL, frozenset({"ranking"}): UNRANKED}, "v", count=2)


def answer(user: str = "anna", *items: tuple[str, float], variant: str = "v", degraded: tuple[str, ...] = ()) -> Any:
    listed = [{"item_id": item, "score": score} for item, score in items]
    return {"user_id": user, "variant": variant, "degraded": list(degraded), "items": listed}


@pytest.mark.parametrize(
    "right",
    [
        answer("anna", ("a", 3.0), ("b", 2.0)),
        answer("anna", ("a", 3.0001), ("c", 1.9998)),
        answer("ben", ("c", 1.0), ("a", 0.5)),
        answer("anna", ("d", 0.04), ("c", 0.03), degraded=("ranking",)),
    ],
)
def test_an_answer_is_right_if_only_a_near_tie_fell_otherwise(right: Any) -> None:
    assert EXPECTED.fault(right["user_id"], right) is None


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (answer("ben", ("c", 1.0), ("a", 0.5)), "for 'ben' by v, not for 'anna'"),
        (answer("anna", ("a", 3.0), ("b", 2.0), variant="w"), "by w"),
        (answer("anna", ("a", 3.0)), "1 items"),
        (answer("anna", ("a", 3.0), ("a", 3.0)), "may be the same"),
        (answer("anna", ("a", 3.0), ("x", 2.0)), "'x' is no candidate"),
        (answer("anna", ("a", 3.0), ("d", -1.0)), "in a place from 2 on"),
        (answer("anna", ("a", 3.0), ("b", 2.1)), "'b' has 2.1, expected 2"),
        (answer("anna", ("d", 0.04), ("c", 0.03)), "'d' has 0.04"),
        (answer("anna", ("a", 3.0), ("b", 2.0), degraded=("ranking",)), "'a' has 3"),
        (answer("anna", ("a", 3.0), ("b", 2.0), degraded=("filter",)), "no fallback"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(wrong: Any, fault: str) -> None:
    assert fault in str(EXPECTED.fault("anna", wrong))


def test_full_answers_are_counted_and_others_kept() -> None:
    notes = Notes()
    for second, ending in enumerate(("full", "failed", "full", "degraded", "wrong", "full")):
        notes.add(Seen(second + 0.5, ending, ending))
    assert notes.requests == 6
    assert [seen.why for seen in notes.others] == ["failed", "degraded", "wrong"]
    assert [seen.why for seen in notes.since(2, "failed", "wrong")] == ["wrong"]
    assert notes.are_full_since(4.6, 0.5)
    assert not notes.are_full_since(4.4, 0.5)
    assert not notes.are_full_since(4.6, 2)


def test_a_wait_after_full_answers_is_no_part_of_a_fault() -> None:
    notes = Notes()
    for ended in (9.0, 12.0, 14.5, 15.0, 15.5, 16.0, 16.5, 17.0, 17.5, 18.0, 20.0):
        notes.add(Seen(ended, "full"))
    assert notes.gaps == [(9.0, 12.0), (12.0, 14.5), (18.0, 20.0)]
    assert over(notes, 10.0) == 14.5
    assert over(notes, 18.5) == 20.0
    notes.add(Seen(20.5, "failed"))
    assert over(notes, 10.0) == 20.5
    notes.add(Seen(23.0, "full"))
    assert over(notes, 10.0) == 23.0


def test_the_report_says_which_aims_were_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Sample(at=second, gateway_mb=200 + (second > 70), all_mb=900 + second) for second in range(100)]
    figures = {"memory_mb/gateway/crowd_peak": 240.0, **change(samples), **dict.fromkeys(AIMS, 0.0)}
    figures |= derived(figures)
    assert figures["memory_growth/gateway"] == pytest.approx(1 / 200)
    assert figures["memory_growth/all"] == pytest.approx(90 / 904.5)
    assert figures["memory_mb/gateway/crowd_more"] == 39
    figures["failed/rollout"] = 2.0
    assert missed(figures) == [
        "failed/rollout is 2, the aim is 0 at most",
        "memory_growth/all is 0.0995, the aim is 0.05 at most",
    ]
    print_figures(figures)
    assert capsys.readouterr().out.count("not met") == 2
    notes = Notes()
    notes.add(Seen(20.5, "full"))
    course = Course(figures, {name: 10.0 * at for at, name in enumerate(FAULTS)}, notes, samples, [])
    assert write_picture(course, tmp_path / "soak.png").stat().st_size > 10_000


def test_a_run_of_some_parts_is_judged_by_their_aims(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"wrong": 0.0, "failed/node": 3.0, "recovery_s/node": 61.0}
    assert derived(figures) == {}
    assert missed(figures) == ["recovery_s/node is 61, the aim is 60 at most"]
    print_figures(figures)
    assert "memory_growth" not in capsys.readouterr().out
