"""The file beside a report, and tests on what it holds."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from cluster.reports import ReportClock
from train.bootstrap import paired_bootstrap, randomisation_test
from train.user_values import averaged, metrics_in, models_in, paired_test, read_user_values, write_user_values

USERS = [f"u{number}" for number in range(50)]


def values_of(model: str, seed: int, protocol: str = "p", better: float = 0.0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "user_id": USERS,
            "protocol_hash": protocol,
            "model": model,
            "segments": [["warm"]] * len(USERS),
            "ndcg@10": random.random(len(USERS)) + better,
            "ndcg@10/head": random.random(len(USERS)),
        }
    )


@pytest.fixture
def values() -> pl.DataFrame:
    return pl.concat([values_of("a", 0, better=0.3), values_of("b", 1)])


def test_the_test_is_over_the_same_questions(values: pl.DataFrame) -> None:
    shuffled = values.sample(fraction=1, shuffle=True, seed=2)
    test = paired_test(shuffled, "a", "b", "ndcg@10")
    a, b = (values.filter(model=model)["ndcg@10"].to_numpy() for model in "ab")
    assert test.difference.mean == pytest.approx((a - b).mean())
    assert test.difference.low == pytest.approx(paired_bootstrap(a, b).low, abs=0.02)
    assert test.p_value == pytest.approx(randomisation_test(a - b), abs=0.01)
    assert test.difference.excludes_zero
    assert (test.a, test.b, test.metric, test.users) == ("a", "b", "ndcg@10", 50)


def test_questions_without_a_value_are_left_out(values: pl.DataFrame) -> None:
    some = pl.when(pl.col("user_id") < "u3").then(pl.col("ndcg@10")).otherwise(float("nan"))
    test = paired_test(values.with_columns(some.alias("ndcg@10")), "a", "b", "ndcg@10")
    assert test.users == sum(user < "u3" for user in USERS)


def test_seeds_are_averaged_and_cut_offs_pooled_by_user() -> None:
    frames = [
        values_of(model, 10 * seed + cut_off, protocol=f"cut-off {cut_off}", better=0.05 if model == "a" else 0)
        for model in "ab"
        for seed in range(3)
        for cut_off in range(3)
    ]
    pooled = averaged(frames)
    assert pooled.height == 2 * 3 * 50
    one = pooled.filter(model="a", user_id="u7", protocol_hash="cut-off 1")["ndcg@10"].item()
    assert one == pytest.approx(
        np.mean(
            [
                each.filter(user_id="u7")["ndcg@10"].item()
                for each in frames[:9]
                if each["protocol_hash"][0] == "cut-off 1"
            ]
        )
    )
    test = paired_test(pooled, "a", "b", "ndcg@10")
    assert test.users == 50
    assert test.difference.mean == pytest.approx(0.05)


def test_runs_that_were_not_averaged_are_refused(values: pl.DataFrame) -> None:
    with pytest.raises(TowerlineError, match="'a' has several values for the same question; average its runs"):
        paired_test(pl.concat([values, values]), "a", "b", "ndcg@10")


@pytest.mark.parametrize(
    ("b", "message"),
    [
        (values_of("b", 1, protocol="q"), "50 by protocol p and 50 by protocol q, of which 0 are the same"),
        (values_of("b", 1).head(40), "50 by protocol p and 40 by protocol p, of which 40 are the same"),
    ],
)
def test_other_questions_are_refused(b: pl.DataFrame, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        paired_test(pl.concat([values_of("a", 0), b]), "a", "b", "ndcg@10")


def test_what_there_is_not_is_named(values: pl.DataFrame) -> None:
    with pytest.raises(TowerlineError, match=r"no values of 'c' \(there are: a, b\)"):
        paired_test(values, "a", "c", "ndcg@10")
    with pytest.raises(TowerlineError, match=r"no values of 'mrr' \(there are: ndcg@10, ndcg@10/head\)"):
        paired_test(values, "a", "b", "mrr")


def test_values_come_back_from_the_file_beside_the_report(values: pl.DataFrame, tmp_path: Path) -> None:
    report = ReportClock("evaluate_models").finish(config={}, protocol="p", data_version="d", figures={})
    path = write_user_values(values, tmp_path, report)
    assert path == report.write(tmp_path).with_suffix(".parquet")
    again = read_user_values(path)
    assert again.equals(values)
    assert (models_in(again), metrics_in(again)) == (["a", "b"], ["ndcg@10", "ndcg@10/head"])
    assert len(list(path.parent.glob("*.parquet"))) == 2


def test_a_file_cut_short_or_of_something_else_is_refused(values: pl.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "values.parquet"
    with pytest.raises(TowerlineError, match=r"values.parquet cannot be read.*evaluate_models"):
        read_user_values(path)
    values.write_parquet(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(TowerlineError, match=r"values.parquet cannot be read"):
        read_user_values(path)
    pl.DataFrame({"user_id": ["a"]}).write_parquet(path)
    with pytest.raises(TowerlineError, match="has no column 'protocol_hash'"):
        read_user_values(path)
