"""The pieces of the quality benchmark on a small data set; peers' lists are written by hand, none is installed."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import our_system, quality
from benchmarks.our_system import RANKING, RETRIEVAL, SOURCES, OurSystem
from benchmarks.peers.contract import EVENT_COLUMNS, Task, checkable
from benchmarks.quality_bench import Bench
from benchmarks.quality_lists import StoredLists, require_agreement
from benchmarks.quality_problem import Problem
from benchmarks.quality_report import goals
from benchmarks.quality_runs import Processes, Run
from benchmarks.quality_scores import best_peer, by_popularity, compare, figures_of, paired_figures
from benchmarks.quality_search import Found, Trial, read_settings, search, with_base, write_settings
from benchmarks.quality_systems import PEERS, SYSTEMS, System
from cluster.errors import TowerlineError
from data.features import with_sequence
from data.splits import FOLD_IN, TEST, TRAIN, VALIDATION
from tests.train.planted import Planted, plant
from train.protocols import GlobalTime, LeaveOneOut, StrongGeneralisation
from train.vocabulary import UNKNOWN
from tune.space import apply, sample_of

PEER = SYSTEMS["implicit_als"]


@dataclass(frozen=True)
class World:
    planted: Planted
    problems: Mapping[str, Problem]

    @property
    def first(self) -> Problem:
        return self.problems["leave_one_out"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    planted = plant(tmp_path_factory.mktemp("quality"))
    protocols = {
        "leave_one_out": LeaveOneOut(),
        "leave_one_out_1": LeaveOneOut(cut_off=1),
        "global_time": GlobalTime(),
        "strong_generalisation": StrongGeneralisation(),
    }
    root = planted.home / "bench"
    problems = {name: Problem(name, planted.dataset, each, planted.folder, root) for name, each in protocols.items()}
    for problem in problems.values():
        problem.prepare()
    return World(planted, problems)


@pytest.fixture(autouse=True)
def home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(world.planted.home))


def finish(run: Run, lists: Mapping[str, list[str]], own: Mapping[str, float], held_out: pl.DataFrame) -> None:
    """What a runner does, by hand."""
    task = run.task(threads=1)
    task.write()
    task.answer(lists, own, held_out)


def perfect(problem: Problem) -> dict[str, list[str]]:
    """The right answer first."""
    asked = pl.read_parquet(problem.events / "test.parquet")
    return {user: [item] for user, item in asked.select("user", "item").iter_rows()}


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


def test_short_and_missing_lists_are_filled_with_the_popular(world: World, tmp_path: Path) -> None:
    problem = world.first
    cases = problem.cases(TEST)
    popular = by_popularity(cases)
    assert np.all(np.diff(cases.training.events_I[popular]) <= 0)
    users = cases.rows["user_id"].to_list()
    items = problem.vocabulary.items
    named = next(item for item in items if problem.vocabulary.item_code(item) not in cases.exclude[0])
    task = Task(str(tmp_path), "", "x", {}, 0, "test", False)
    task.write()
    task.answer({users[0]: [named]})
    ranked_BK = StoredLists(tmp_path, problem.vocabulary, popular).recommend(cases.rows, cases.exclude, len(items) + 9)
    assert ranked_BK.shape == (len(users), len(items))
    assert ranked_BK[0, 0] == problem.vocabulary.item_code(named)
    for row in (0, 1):
        shown = ranked_BK[row][ranked_BK[row] != UNKNOWN]
        rest = [code for code in popular if code not in cases.exclude[row] and code not in shown[: 1 - row]]
        assert shown[1 - row :].tolist() == rest


def test_a_library_must_agree_with_us(world: World) -> None:
    run = Run(PEER, world.first, {"factors": 1}, seed=0)
    held_out = pl.read_parquet(world.first.events / "test.parquet")
    lists = perfect(world.first)
    half = dict(list(lists.items())[::2])
    share = len(half) / len(lists)
    finish(run, half, {"ndcg@10": share, "hit@10": share}, held_out)
    require_agreement(run.folder, world.first.vocabulary)
    finish(run, half, {"ndcg@10": share + 0.001}, held_out)
    with pytest.raises(
        TowerlineError, match=rf"ndcg@10 = {share + 0.001:.6f} over {len(lists)} users, and we {share:.6f}"
    ):
        require_agreement(run.folder, world.first.vocabulary)


def test_lists_of_what_is_no_item_are_refused(world: World) -> None:
    run = Run(PEER, world.first, {"factors": 5}, seed=0)
    finish(run, {"user 1": ["no such"]}, {}, pl.DataFrame({"user": [], "item": []}))
    with pytest.raises(TowerlineError, match="'no such', in the list of user 'user 1', is no item"):
        compare(world.first, {PEER.name: [run]})


def test_lists_that_do_not_mask_are_refused(world: World) -> None:
    run = Run(PEER, world.first, {"factors": 2}, seed=0)
    met = pl.read_parquet(world.first.events / "train.parquet").row(0, named=True)
    finish(run, {met["user"]: [met["item"]]}, {}, pl.DataFrame({"user": [], "item": []}))
    with pytest.raises(TowerlineError, match="implicit_als recommends an item that was excluded"):
        compare(world.first, {PEER.name: [run]})


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


def test_what_a_search_found_is_kept_system_by_system(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, kept = Bench(parallel=2), dict[str, Found]()
    monkeypatch.setattr(bench, "_search", lambda system, _, trials, known: _found(system, trials, known))
    systems = [SYSTEMS[name] for name in ("two_tower_ranker", "popularity", "ease", "two_tower")]
    known = {system.name: Found(system.start) for system in systems}
    assert bench.search(systems, world.first, 2, known, kept.__setitem__) == kept
    assert sorted(kept) == ["ease", "two_tower", "two_tower_ranker"]
    assert list(kept)[-1] == "two_tower_ranker"


def _found(system: System, trials: int, known: Mapping[str, Found]) -> Found:
    assert not system.above or known[system.above].trials, "what it is built on is searched first"
    return Found(system.start, (Trial(system.start, 0.1, 1.0),) * trials)


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


def test_figures_name_the_seeds_the_cut_offs_and_who_is_ahead(world: World) -> None:
    ours, problems = SYSTEMS["two_tower"], [world.problems[name] for name in ("leave_one_out", "leave_one_out_1")]
    comparisons = {}
    for problem in problems:
        held_out = pl.read_parquet(problem.events / "test.parquet")
        right = perfect(problem)
        runs: dict[str, list[Run]] = {ours.name: [], PEER.name: []}
        for seed in (0, 1):
            for system, lists in ((ours, right), (PEER, dict(list(right.items())[seed::3]))):
                run = Run(system, problem, {"made": "up"}, seed)
                finish(run, lists, {}, held_out)
                runs[system.name].append(run)
        comparisons[problem.name] = compare(problem, runs)
    names = [ours.name, PEER.name]
    figures = figures_of(comparisons, names)
    assert figures["ndcg@10/two_tower"] == figures["ndcg@10/two_tower/leave_one_out_1"] == 1
    assert figures["ndcg@10_low/implicit_als"] < figures["ndcg@10/implicit_als"] < figures["ndcg@10_high/implicit_als"]
    assert figures["ndcg@10_seeds_std/implicit_als"] > figures["ndcg@10_seeds_std/two_tower"] == 0
    first = comparisons["leave_one_out"]
    assert best_peer(first, names) == PEER.name
    pooled = pl.concat([each.values for each in comparisons.values()])
    tests = paired_figures(pooled, first, names)
    assert 0 < tests["difference_low/two_tower/implicit_als"] < tests["difference_high/two_tower/implicit_als"]
    assert tests["ratio/two_tower/best_peer"] == pytest.approx(1 / figures["ndcg@10/implicit_als"])
    assert goals(tests, names)[0].startswith("reached: two_tower has")
    unsure = tests | {"difference_low/two_tower/implicit_als": -0.01}
    assert goals(unsure, names)[0].startswith("MISSED: two_tower")
    assert "not significantly ahead of implicit_als" in goals(unsure, names)[0]
    for seconds, verdict in ((599, "reached"), (600, "MISSED")):
        said = goals({"seconds/two_tower_ranker": seconds}, ["two_tower_ranker"])
        assert said == [f"{verdict}: two_tower_ranker takes {seconds} s to train; less than 600 s is asked for"]


def test_the_report(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(quality, "examples_folder", lambda *_: world.planted.folder)
    arguments = ["--dataset", "planted", "--systems", "ease", "--protocols", "leave_one_out", "global_time"]
    arguments += ["strong_generalisation"]
    for kept in (0, 3):
        quality.main([*arguments, "--parallel", "2"])
        said = capsys.readouterr().out
        assert said.count(": kept") == kept
    assert "ease (ours)" in said
    assert "ease: NOT SEARCHED on this data set" in said
    assert "regularization 10 to 5000 by orders of magnitude" in said
    reports = world.planted.home / "reports"
    report = json.loads((reports / "bench_quality.json").read_text())
    for metric in ("ndcg@10", "recall@10", "ndcg@10_low", "ndcg@10_high", "seconds"):
        assert {f"{metric}/ease", f"{metric}/ease/global_time"} <= set(report["figures"])
    assert report["figures"]["ndcg@10_low/ease"] > 0.3
    assert {f"{metric}/ease/strong_generalisation" for metric in ("ndcg@100", "ndcg@100_low", "recall@20")} <= set(
        report["figures"]
    )
    assert report["config"]["searched"] == {"ease": 0}
    assert LeaveOneOut().hash in report["protocol"]
    assert (reports / "bench_quality.png").stat().st_size > 10_000
    values = pl.read_parquet(reports / "bench_quality.parquet")
    assert set(values["protocol_hash"]) == {each.hash for each in (LeaveOneOut(), GlobalTime(), StrongGeneralisation())}


def test_a_search_begins_at_the_start_and_keeps_the_best() -> None:
    tried: list[dict[str, Any]] = []

    def attempt(settings: dict[str, Any]) -> Trial:
        tried.append(settings)
        return Trial(settings, settings["alpha"], 1.0)

    found = search(PEER, 7, attempt)
    assert tried[0] == PEER.start
    assert len(tried) == len(found.trials) == 7
    assert found.settings["alpha"] == max(settings["alpha"] for settings in tried)
    assert [trial.settings for trial in search(PEER, 7, attempt).trials] == tried[:7]
    assert search(SYSTEMS["popularity"], 7, attempt) == Found({})


def test_what_was_searched_enough_is_not_searched_again() -> None:
    names = ("popularity", "ease", "ials", "two_tower", "two_tower_ranker", PEER.name)
    systems = [SYSTEMS[name] for name in names]

    def missing(**trials: int) -> list[str]:
        counts = {name: trials.get(name, 4) for name in names}
        found = {
            name: Found(SYSTEMS[name].start, tuple(Trial(SYSTEMS[name].start, 0.1, 1.0) for _ in range(count)))
            for name, count in counts.items()
        }
        return [system.name for system in quality.unsearched(systems, found, 4)]

    assert missing(popularity=0) == []
    assert missing(ease=0, ials=3, implicit_als=5) == ["ease", "ials"]
    assert missing(two_tower_ranker=1) == ["two_tower_ranker"]
    assert missing(two_tower=1) == ["two_tower", "two_tower_ranker"], "it is built on the first"


def test_settings_are_kept_with_their_trials(tmp_path: Path) -> None:
    better = PEER.start | {"factors": 128}
    found = Found(better, (Trial(PEER.start, 0.1, 2.0), Trial(better, 0.2, 3.0)))
    path = write_settings("some", {PEER.name: found, "ease": Found(SYSTEMS["ease"].start)}, "words", tmp_path)
    assert set(tomllib.loads(path.read_text())) == {PEER.name}
    read = read_settings("some", [PEER, SYSTEMS["ease"]], tmp_path)
    assert read == {PEER.name: found, "ease": Found(SYSTEMS["ease"].start)}
    path.write_text(path.read_text().replace("factors", "fctrs"))
    with pytest.raises(TowerlineError, match=r"some\.toml: \[implicit_als\.settings\] names .*fctrs.*SEARCH=1"):
        read_settings("some", [PEER], tmp_path)


def test_stored_settings_fit_their_systems() -> None:
    for file in (Path(quality.__file__).parent / "settings").glob("*.toml"):
        stored = tomllib.loads(file.read_text())
        found = read_settings(file.stem, [SYSTEMS[name] for name in stored])
        assert all(each.settings in [trial.settings for trial in each.trials] for each in found.values())
        assert len({len(each.trials) for each in found.values()}) == 1, f"{file}: not equally many trials"


@pytest.mark.parametrize("system", [each for each in SYSTEMS.values() if each.space], ids=lambda each: each.name)
def test_a_search_space_holds_its_start(system: Any) -> None:
    assert set(system.start) == set(system.space)
    for name, dimension in system.space.items():
        assert dimension.nearest(system.start[name]) == system.start[name]
        assert dimension.holding(system.start[name]) == dimension


def test_our_search_spaces_are_those_of_our_models() -> None:
    bases = {name: config() for name, (_, config) in SOURCES.items()} | {
        "two_tower": RETRIEVAL,
        "two_tower_ranker": RANKING,
    }
    assert set(bases) == {name for name, system in SYSTEMS.items() if not system.peer}
    for name, base in bases.items():
        for field, dimension in SYSTEMS[name].space.items():
            for value in dimension.points() or [dimension.low, dimension.high]:
                assert sample_of(apply(base, {field: value}), [field]) == {field: value}


def test_peers_are_pinned() -> None:
    for peer in {system.peer for system in SYSTEMS.values()} - {""}:
        lines = (PEERS / f"{peer}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))
        assert (PEERS / f"run_{peer}.py").exists()
