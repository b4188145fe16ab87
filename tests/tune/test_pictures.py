import struct
import zlib
from itertools import product

import pytest

from train.retrieval import RetrievalConfig
from tune.dimensions import Choices, Dimension, Range
from tune.outcome import Mode, SearchOutcome, TrialOutcome, outcome_of
from tune.pictures import draw_search, importance

SPACE: dict[str, Dimension] = {
    "learning_rate": Range(low=0.001, high=0.009),
    "two_tower.embedding_dim": Choices(choices=(16, 32, 64)),
    "seed": Range(low=0, high=2),
}


def searched(mode: Mode = "max", trials: int = 27) -> SearchOutcome[RetrievalConfig]:
    """All that matters is the learning rate, and a little the embedding."""
    points = list(product((0.001, 0.005, 0.009), (16, 32, 64), (0, 1, 2)))[:trials]
    sign = 1 if mode == "max" else -1
    found = [
        TrialOutcome(
            number=number,
            sample=dict(zip(SPACE, point, strict=True)),
            state="finished",
            curve=[0.5, 0.5 + sign * (40 * point[0] + 1e-4 * point[1])],
        )
        for number, point in enumerate(points, start=1)
    ]
    failed = TrialOutcome(number=len(found) + 1, sample=found[0].sample, state="failed", error="nan")
    outcome = outcome_of(RetrievalConfig(), "ndcg@10", mode, [*found, failed], 1.0)
    assert outcome is not None
    return outcome


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_field_that_decides_is_the_most_important(mode: Mode) -> None:
    shares = importance(searched(mode), SPACE)
    assert list(shares) == ["learning_rate", "two_tower.embedding_dim", "seed"]
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["learning_rate"] > 0.8


def test_of_too_few_trials_nothing_is_said() -> None:
    assert importance(searched(trials=3), SPACE) == {}


def test_of_trials_that_all_did_the_same_nothing_is_said() -> None:
    trial = TrialOutcome(number=1, sample={"seed": 0}, state="finished", curve=[0.0])
    trials = [trial.model_copy(update={"number": number, "sample": {"seed": number % 3}}) for number in range(1, 9)]
    outcome = outcome_of(RetrievalConfig(), "ndcg@10", "max", trials, 1.0)
    assert outcome is not None
    assert importance(outcome, {"seed": SPACE["seed"]}) == {}


@pytest.mark.parametrize("trials", [1, 27])
def test_the_picture_is_a_png_with_something_on_both_sides(trials: int) -> None:
    outcome = searched(trials=trials)
    png = draw_search(outcome, importance(outcome, SPACE))
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG")
    rows = _rows(png, width, height)
    half = len(rows[0]) // 2
    for side in (slice(0, half), slice(half, None)):
        assert len({bytes(row[side]) for row in rows}) > 20, "not one colour"


def _rows(png: bytes, width: int, height: int) -> list[bytes]:
    """The filtered scan lines."""
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += 12 + length
    pixels = zlib.decompress(data)
    stride = len(pixels) // height
    assert stride > width
    return [pixels[row * stride : (row + 1) * stride] for row in range(height)]
