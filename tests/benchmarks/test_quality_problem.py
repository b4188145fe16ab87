"""What a split hands to the systems, and what these are run on and learn from."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks import our_system
from benchmarks.our_system import RANKING, RETRIEVAL, OurSystem
from benchmarks.peers.contract import EVENT_COLUMNS, Task, checkable
from benchmarks.quality_bench import Bench
from benchmarks.quality_runs import Processes, Run
from benchmarks.quality_search import Found, read_settings, with_base
from benchmarks.quality_systems import SYSTEMS
from cluster.errors import TowerlineError
from data.features import with_sequence
from data.splits import FOLD_IN, TEST, TRAIN, VALIDATION
from tests.benchmarks.conftest import PEER, World

pytestmark = pytest.mark.usefixtures("home")


def test_files_hold_what_the_protocol_says(world: World) -> None:
    for problem in world.problems.values():
        expected = problem.protocol.assign(with_sequence(world.planted.dataset.events()))
        counts = dict(expected.group_by("split").len().iter_rows())
        for split in (TRAIN, VALIDATION, FOLD_IN, TEST):
            events = pl.read_parquet(problem.events / f"{split}.parquet")
            assert events.columns == EVENT_COLUMNS
            assert events.height == counts.get(split, 0)
    last = pl.read_parquet(world.first.events / "test.parquet")
    before = pl.read_parquet(world.problems["leave_one_out_1"].events / "test.parquet")
    assert set(last["order"]).isdisjoint(before["order"])
    assert set(before["user"]) == set(last["user"])


def test_files_are_written_once(world: World) -> None:
    file = world.first.events / "train.parquet"
    before = file.stat().st_mtime_ns
    world.first.prepare()
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("trains", [True, False])
def test_a_task_says_what_may_be_learnt(world: World, tmp_path: Path, trains: bool) -> None:
    task = Task(str(tmp_path / "run"), str(world.first.events), "x", {"a": 1.5}, 3, "test", trains)
    task.write()
    read = Task.read(tmp_path / "run")
    assert read == task
    history = {*read.train["order"], *read.validation["order"]}
    assert set(read.history()["order"]) == history
    assert read.history()["order"].is_sorted()
    assert set(read.fitted()["order"]) == (history if trains else set(read.train["order"]))
    searching = replace(read, target="validation")
    assert set(searching.fitted()["order"]) == set(searching.history()["order"]) == set(read.train["order"])
    some = read.train["user"].head(5)
    assert read.asked(some) == sorted(set(some))


def test_nobody_learns_from_users_who_are_only_told_of(world: World, tmp_path: Path) -> None:
    problem = world.problems["strong_generalisation"]
    for target, trains in ((TEST, True), (TEST, False), (VALIDATION, True)):
        task = Task(str(tmp_path), str(problem.events), "x", {}, 0, target, trains)
        asked = set(task.events(target)["user"])
        assert task.fitted().equals(task.train)
        assert asked.isdisjoint(task.fitted()["user"])
        assert set(task.asked(task.history()["user"])) == asked
        assert task.history().height == task.train.height + task.told.height


def test_only_events_that_every_library_can_score_are_compared() -> None:
    met = pl.DataFrame({"user": ["a", "a", "b"], "item": ["x", "y", "z"]})
    held_out = pl.DataFrame({"user": ["a", "a", "a", "c", "b", "b"], "item": ["x", "z", "new", "x", "y", "y"]})
    assert checkable(held_out, met, met).rows() == [("a", "z"), ("b", "y")]


def test_a_run_is_known_by_all_that_decides_it(world: World) -> None:
    run = Run(PEER, world.first, {"factors": 3}, seed=0)
    others = [
        replace(run, settings={"factors": 4}),
        replace(run, seed=1),
        replace(run, target=VALIDATION),
        replace(run, problem=world.problems["global_time"]),
        replace(run, system=SYSTEMS["implicit_bpr"]),
    ]
    folders = {each.folder for each in (run, *others, replace(run))}
    assert len(folders) == 1 + len(others)


def test_a_process_that_fails_is_shown(world: World) -> None:
    run = Run(SYSTEMS["ease"], world.first, {"regularization": -1.0}, seed=0)
    with pytest.raises(
        TowerlineError, match=r"ease failed on leave_one_out \(status 1\); see .*log(.|\n)*should be greater than"
    ):
        Bench(parallel=1)._finish(run)
    assert not run.finished()


def test_nothing_is_started_once_the_benchmark_ends(world: World) -> None:
    processes = Processes()
    processes.end()
    run = Run(SYSTEMS["ease"], world.first, {"regularization": 1.0}, seed=0)
    with pytest.raises(InterruptedError):
        processes.finish(run)
    assert not run.finished()


def test_what_a_seed_does_not_change_runs_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, order = Bench(parallel=1), []
    monkeypatch.setattr(bench, "_finish", order.append)
    systems = [SYSTEMS[name] for name in ("two_tower_ranker", "ease", "two_tower")]
    problems = {world.first: 3, world.problems["global_time"]: 1}
    runs = bench.run(systems, problems, read_settings("planted", list(SYSTEMS.values())))
    counts = {name: {system: len(each) for system, each in of_problem.items()} for name, of_problem in runs.items()}
    assert counts == {
        "leave_one_out": {"two_tower_ranker": 3, "ease": 1, "two_tower": 3},
        "global_time": {"two_tower_ranker": 1, "ease": 1, "two_tower": 1},
    }
    assert [run.system.name for run in order] == ["two_tower", "two_tower_ranker"] * 4 + ["ease"] * 2
    assert runs["global_time"]["two_tower_ranker"][0].settings.keys() == {"two_tower", "two_tower_ranker"}


@pytest.fixture
def one_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, config in (("RETRIEVAL", RETRIEVAL), ("RANKING", RANKING)):
        short = config.fit.model_copy(update={"epochs": 1})
        monkeypatch.setattr(our_system, name, config.model_copy(update={"fit": short}))


@pytest.mark.usefixtures("one_epoch")
@pytest.mark.parametrize("name", ["leave_one_out_1", "global_time"])
def test_our_models_learn_from_the_training_events_alone(world: World, name: str) -> None:
    problem, alone, pair = world.problems[name], SYSTEMS["two_tower"], SYSTEMS["two_tower_ranker"]
    train = pl.read_parquet(problem.events / "train.parquet")
    found = {alone.name: Found(alone.start | {"two_tower.embedding_dim": 8})}
    system = OurSystem(Run(pair, problem, with_base(pair, pair.start, found), 0).task(1))
    ranked = system.recommender()
    counts = dict(train.group_by("item").len().iter_rows())
    frequency_I = ranked._retrieval.network.item_frequency_I
    assert {system.vocabulary.items[code - 1]: int(frequency_I[code]) for code in np.flatnonzero(frequency_I)} == counts
    assert system.training["sequence"].to_list() == train["order"].to_list()


@pytest.mark.usefixtures("one_epoch")
def test_the_pair_is_trained_once_and_its_seconds_count(world: World) -> None:
    alone, pair = SYSTEMS["two_tower"], SYSTEMS["two_tower_ranker"]
    retrieval = alone.start | {"two_tower.embedding_dim": 8}
    found = {alone.name: Found(retrieval)}
    first = OurSystem(Run(alone, world.first, retrieval, 0).task(1))
    lists = first.lists()
    assert first.seconds_before == 0
    second = OurSystem(Run(pair, world.first, with_base(pair, pair.start, found), 0).task(1))
    ranked = second.lists()
    assert second.seconds_before > 0
    assert {user: set(items) for user, items in ranked.items()} == {user: set(items) for user, items in lists.items()}
    assert ranked.keys() == set(pl.read_parquet(world.first.events / "test.parquet")["user"])
