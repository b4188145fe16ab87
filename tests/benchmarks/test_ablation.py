"""The ablation on a small data set, in this process and with one epoch each."""

import json
from collections.abc import Iterable
from pathlib import Path

import polars as pl
import pytest

from benchmarks import ablation, our_system, quality
from benchmarks.ablation import chosen
from benchmarks.ablation_rows import COMPLETE, ROWS
from benchmarks.our_system import RANKING, RETRIEVAL, OurSystem
from benchmarks.quality_bench import Bench
from benchmarks.quality_problem import Problem
from benchmarks.quality_runs import Run
from benchmarks.quality_systems import SYSTEMS
from tests.train.planted import plant
from train.models.sources import SOURCES
from tune.space import apply, field_of


def test_every_row_is_another_configuration_of_ours() -> None:
    made = [(apply(RETRIEVAL, row.retrieval), apply(RANKING, row.ranking)) for row in ROWS]
    assert all(configs not in made[:number] for number, configs in enumerate(made))
    for row in ROWS:
        for config, changes in ((RETRIEVAL, row.retrieval), (RANKING, row.ranking)):
            for name, value in changes.items():
                assert field_of(config, name)
                told = json.loads(json.dumps({name: value}))
                assert apply(config, told) == apply(config, {name: value}) != config


def test_a_row_stands_behind_the_one_that_it_is_compared_with() -> None:
    names = [row.name for row in ROWS]
    assert names[0] == COMPLETE
    assert len(set(names)) == len(names)
    assert all(row.against in names[:number] for number, row in enumerate(ROWS) if number)
    assert [row.name for row in chosen(["without_logq"])] == [COMPLETE, "in_batch_softmax", "without_logq"]
    assert [row.name for row in chosen(["without_text"])] == [COMPLETE, "without_text"]


def test_every_source_is_added_alone_and_all_of_them_find_candidates() -> None:
    rankings = {row.name: apply(RANKING, row.ranking) for row in ROWS}
    assert rankings[COMPLETE].ensemble.names == ()
    for kind in SOURCES:
        assert rankings[f"with_{kind}"].ensemble.names == (kind,)
    assert rankings["with_all_sources"].ensemble.names == tuple(SOURCES)
    assert rankings["with_all_sources"].ensemble.finders == ("two_tower",)
    assert rankings["blended_candidates"].ensemble.finders == ("two_tower", *SOURCES)
    (blended,) = (row for row in ROWS if row.name == "blended_candidates")
    assert blended.against == "with_all_sources"


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    planted = plant(tmp_path)
    monkeypatch.setenv("TOWERLINE_HOME", str(planted.home))
    monkeypatch.setattr(quality, "examples_folder", lambda *_: planted.folder)
    for name, config in (("RETRIEVAL", RETRIEVAL), ("RANKING", RANKING)):
        short = config.fit.model_copy(update={"epochs": 1})
        monkeypatch.setattr(our_system, name, config.model_copy(update={"fit": short}))
    finished: list[Run] = []

    def here(_: Bench, runs: Iterable[Run]) -> None:
        for run in sorted(runs, key=lambda run: bool(run.system.above)):
            task = run.task(threads=1)
            task.write()
            task.answer(OurSystem(task).lists())
            finished.append(run)

    monkeypatch.setattr(Bench, "finish", here)
    ablation.main(["--dataset", "planted", "--rows", "without_history", "--seeds", "1"])
    assert [run.label for run in finished] == [
        "without_ranker",
        "without_history/two_tower",
        "complete",
        "without_history",
    ]
    said = capsys.readouterr().out
    assert "without_history: two_tower.inputs = ['attributes', 'title']" in said
    reports = planted.home / "reports"
    report = json.loads((reports / "bench_ablation.json").read_text())
    figures = report["figures"]
    assert figures["ndcg@10/without_history/two_tower"] < figures["ndcg@10/without_ranker"]
    for name, other in (("without_history", "complete"), ("without_ranker", "complete")):
        difference = figures[f"ndcg@10/{name}"] - figures[f"ndcg@10/{other}"]
        assert figures[f"difference/{name}"] == pytest.approx(difference)
        assert figures[f"difference_low/{name}"] <= difference <= figures[f"difference_high/{name}"]
    assert report["config"]["rows"]["without_history"]["two_tower"]["two_tower.inputs"] == ["attributes", "title"]
    assert (reports / "bench_ablation.png").stat().st_size > 10_000
    values = pl.read_parquet(reports / "bench_ablation.parquet")
    assert set(values["model"]) == {run.label for run in finished}


def test_runs_that_share_a_training_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = plant(tmp_path)
    problem = Problem("some", planted.dataset, quality.PROTOCOLS["leave_one_out"], planted.folder, tmp_path)
    pair, alone = SYSTEMS["two_tower_ranker"], SYSTEMS["two_tower"]
    runs = [
        Run(pair, problem, {alone.name: {"learning_rate": rate}, pair.name: {"past_share": share}}, seed=0)
        for rate in (0.1, 0.2)
        for share in (0.7, 0.8)
    ]
    runs += [Run(alone, problem, {"learning_rate": rate}, seed=0) for rate in (0.1, 0.2)]
    bench = Bench(parallel=1)
    chains: list[list[Run]] = []
    monkeypatch.setattr(bench, "_finish_chain", chains.append)
    bench.finish(runs)
    assert [[run.system.name for run in chain] for chain in chains] == [[alone.name, pair.name, pair.name]] * 2
    assert [chain[0].settings["learning_rate"] for chain in chains] == [0.1, 0.2]
