"""What an evaluation of re-ranking decides, shows and leaves for serving to read."""

from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from cluster.assets import SMOLLM2
from data.splits import TEST, VALIDATION
from jobs.evaluate_reranking import parse
from jobs.reranking import RerankingConfig, RerankingMeasurements, decide, policy_of
from jobs.reranking_report import draw_gains, figures_of, table_of
from serve.stages.rerank import prompt_version
from train.protocols import LEAVE_ONE_OUT
from train.reranking import Bucket

WEIGHTS = (0.25, 1.0)
KNOWN = (0, 1, 3)


def bucket(known_events: int, gains: tuple[float, float], seed: int) -> Bucket:
    """400 users whose gains have these means and vary."""
    random = np.random.default_rng(seed)
    without_N = random.random(400)
    with_NW = without_N[:, np.newaxis] + random.normal(gains, 0.1, size=(400, 2))
    return Bucket(known_events, pl.Series([f"u{number}" for number in range(400)]), without_N, with_NW, 40, 8.0)


def measurements(
    validation: list[tuple[float, float]], test: list[tuple[float, float]], config: RerankingConfig | None = None
) -> RerankingMeasurements:
    buckets = {
        split: [bucket(known, each, known + 10 * (split == TEST)) for known, each in zip(KNOWN, gains, strict=True)]
        for split, gains in ((VALIDATION, validation), (TEST, test))
    }
    return RerankingMeasurements(config or RerankingConfig(known_events=KNOWN), LEAVE_ONE_OUT, WEIGHTS, buckets)


HELPS_UP_TO_1 = [(0.1, 0.0), (0.1, -0.1), (0.0, -0.1)]
NOWHERE = [(0.0, -0.1)] * 3


def test_what_the_validation_events_show_and_the_test_events_confirm_is_served() -> None:
    found = measurements(HELPS_UP_TO_1, HELPS_UP_TO_1)
    decision = decide(found)
    policy = policy_of("shop", "v1", datetime(2024, 5, 1, tzinfo=UTC), found, decision)
    assert (policy.below_events, policy.weight, policy.candidates, policy.users) == (2, 0.25, 10, 400)
    assert policy.language_model == SMOLLM2.files[0].sha256
    assert (policy.prompt_version, policy.protocol_hash) == (prompt_version(), LEAVE_ONE_OUT.hash)
    assert policy.reason.startswith("on: weight 0.25 helps on the validation events up to 1 known events, and gains 0.")
    figures = figures_of(found, decision)
    assert (figures["below_events"], figures["weight"]) == (2, 0.25)
    test = found.buckets[TEST][1]
    assert figures["ndcg@10/with_llm/events_1"] == pytest.approx(test.with_NW[:, 0].mean())
    assert figures["ndcg@10/without_llm/events_1"] == pytest.approx(test.without_N.mean())
    gain = figures["ndcg@10/with_llm/events_1"] - figures["ndcg@10/without_llm/events_1"]
    assert figures["gain/events_1"] == pytest.approx(gain)
    assert figures["gain/events_1/low"] < gain < figures["gain/events_1/high"]
    assert figures["seconds/reordered_question"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("validation", "test", "words"),
    [
        (NOWHERE, HELPS_UP_TO_1, "off: no weight helps on the validation events with 0 known events (the best weight"),
        (HELPS_UP_TO_1, NOWHERE, "which does not confirm it, so nobody is re-ranked"),
        ([(0.0, -0.1), (0.1, 0.0), (0.1, 0.0)], HELPS_UP_TO_1, "off: no weight helps"),
    ],
)
def test_it_stays_off_otherwise(
    validation: list[tuple[float, float]], test: list[tuple[float, float]], words: str
) -> None:
    found = measurements(validation, test)
    decision = decide(found)
    assert decision.threshold is None
    assert words in decision.words
    policy = policy_of("shop", "v1", datetime(2024, 5, 1, tzinfo=UTC), found, decision)
    assert policy.below_events == 0
    assert figures_of(found, decision)["below_events"] == 0


def test_table_and_picture_show_every_bucket_and_weight() -> None:
    found = measurements(HELPS_UP_TO_1, NOWHERE)
    table = table_of(VALIDATION, found)
    assert [row[0] for row in table.rows] == ["0", "1", "3"]
    assert table.heads[-2:] == ["gain, weight 0.25", "gain, weight 1"]
    assert LEAVE_ONE_OUT.hash in table.title
    assert draw_gains(found).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--users", "1"], "users"),
        (["--candidates", "1"], "candidates"),
        (["--known-events", "-1"], "known_events"),
        (["--seed", "-1"], "seed"),
    ],
)
def test_a_value_out_of_range_is_refused(arguments: list[str], field: str) -> None:
    asked = vars(parse(["--dataset", "shop", *arguments]))
    with pytest.raises(ValidationError, match=field):
        RerankingConfig.model_validate({name: value for name, value in asked.items() if name != "dataset"})


def test_numbers_of_known_events_come_in_order() -> None:
    assert RerankingConfig(known_events=(5, 0, 5, 1)).known_events == (0, 1, 5)
