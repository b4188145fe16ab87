"""Lists become figures, a search becomes settings, and both a report; peers' lists are written by hand."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from benchmarks import quality
from benchmarks.our_system import RANKING, RETRIEVAL, SOURCES
from benchmarks.peers.contract import Task
from benchmarks.quality_bench import Bench
from benchmarks.quality_lists import StoredLists, require_agreement
from benchmarks.quality_problem import Problem
from benchmarks.quality_report import goals
from benchmarks.quality_runs import Run
from benchmarks.quality_scores import best_peer, by_popularity, compare, figures_of, paired_figures
from benchmarks.quality_search import Found, Trial, read_settings, search, write_settings
from benchmarks.quality_systems import PEERS, SYSTEMS, System
from cluster.errors import TowerlineError
from data.splits import TEST
from tests.benchmarks.conftest import PEER, World
from train.protocols import GlobalTime, LeaveOneOut, StrongGeneralisation
from train.vocabulary import UNKNOWN
from tune.space import apply, sample_of

pytestmark = pytest.mark.usefixtures("home")


def finish(run: Run, lists: Mapping[str, list[str]], own: Mapping[str, float], held_out: pl.DataFrame) -> None:
    """What a runner does, by hand."""
    task = run.task(threads=1)
    task.write()
    task.answer(lists, own, held_out)


def perfect(problem: Problem) -> dict[str, list[str]]:
    """The right answer first."""
    asked = pl.read_parquet(problem.events / "test.parquet")
    return {user: [item] for user, item in asked.select("user", "item").iter_rows()}


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
