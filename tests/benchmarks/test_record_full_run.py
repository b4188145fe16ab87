"""From a report of `benchmarks.quality` to what the demo reads."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.record_full_run import full_run_of, main
from cluster.errors import TowerlineError
from cluster.reports import Report, ReportClock
from jobs.demo import FullRun
from train.protocols import LEAVE_ONE_OUT

COMMIT = "0123456789" * 4


def report(commit: str = COMMIT, protocol: str = LEAVE_ONE_OUT.hash, **changes: Any) -> Report:
    """As the benchmark writes it."""
    config = {
        "dataset": "movielens-100k",
        "seeds": 3,
        "systems": ["popularity", "two_tower", "two_tower_ranker"],
        "protocols": ["leave_one_out", "global_time"],
        "settings": {"popularity": {}, "two_tower": {"learning_rate": 0.002}, "two_tower_ranker": {"past_share": 0.8}},
    }
    values = {"popularity": 0.04, "two_tower": 0.11, "two_tower_ranker": 0.13}
    figures = {f"ndcg@10/{name}": value for name, value in values.items()}
    figures |= {f"seconds/{name}": 100 * value for name, value in values.items()}
    finished = ReportClock("bench_quality").finish(
        config=config | changes, protocol=f"leave_one_out: {protocol}, words", data_version="d" * 64, figures=figures
    )
    return finished.model_copy(update={"git_commit": commit})


def test_it_is_kept_with_all_that_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    report().write(tmp_path)
    main(["--output", str(tmp_path / "full.json")])
    full = FullRun.read(tmp_path / "full.json")
    assert full.figures["ndcg@10/two_tower_ranker"] == 0.13
    assert full.settings == {"two_tower": {"learning_rate": 0.002}, "two_tower_ranker": {"past_share": 0.8}}
    assert (full.seeds, full.git_commit, full.data_version) == (3, COMMIT, "d" * 64)
    assert full.protocol_hash == LEAVE_ONE_OUT.hash
    assert "--seeds 3 --systems two_tower two_tower_ranker --protocols leave_one_out" in full.command


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (report(dataset="shop"), "data set: 'shop', the demo needs 'movielens-100k'"),
        (report(protocols=["global_time"]), "first protocol: 'global_time'"),
        (report(protocol="0" * 12), "its hash: False"),
        (report(systems=["two_tower"]), r"systems: \['two_tower'\]"),
        (report(commit=f"{COMMIT}-dirty"), "changed files: True"),
    ],
)
def test_what_the_demo_cannot_be_measured_against_is_refused(other: Report, message: str) -> None:
    with pytest.raises(TowerlineError, match=message):
        full_run_of(other)


def test_a_benchmark_that_was_not_run_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(tmp_path))
    with pytest.raises(TowerlineError, match=r"bench_quality\.json is not there; run `make bench-quality` first"):
        main([])
