"""The sampler and ASHA, driven as Tune drives them."""

import math
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from cluster.errors import TowerlineError
from tune.algorithms import BEST, FAILED, Halving, searcher
from tune.config import SearchConfig
from tune.dimensions import Choices, Dimension, Range

SPACE: dict[str, Dimension] = {"rate": Range(low=1e-4, high=1e-1, log=True), "width": Choices(choices=(8, 16))}
FIRST = {"rate": 1e-3, "width": 16}


def result(value: float, iteration: int = 1, failed: str = "") -> dict[str, Any]:
    return {BEST: value, FAILED: failed, "training_iteration": iteration}


def suggested(search: SearchConfig, count: int) -> list[dict[str, Any]]:
    suggesting, _ = searcher(search, SPACE, FIRST, "max", concurrent=9)
    found = []
    for number in range(count):
        sample = suggesting.suggest(f"t{number}")
        suggesting.on_trial_result(f"t{number}", result(0.5))
        suggesting.on_trial_complete(f"t{number}", result(-abs(math.log10(sample["rate"]) + 2)))
        found.append(sample)
    return found


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_the_first_trial_is_given_and_the_same_seed_suggests_the_same(algorithm: str) -> None:
    search = SearchConfig(algorithm=algorithm, num_trials=30, seed=7)  # type: ignore[arg-type]
    found = suggested(search, 30)
    assert found[0] == FIRST
    assert found == suggested(search, 30)
    assert found != suggested(search.model_copy(update={"seed": 8}), 30)
    assert all(1e-4 <= sample["rate"] <= 1e-1 for sample in found)


def test_tpe_learns_and_random_does_not() -> None:
    """The best rate is 0.01."""

    def distance(algorithm: str) -> float:
        late = suggested(SearchConfig(algorithm=algorithm, num_trials=40), 40)[20:]  # type: ignore[arg-type]
        return sum(abs(math.log10(sample["rate"]) + 2) for sample in late) / len(late)

    assert distance("tpe") < 0.7 * distance("random")


def test_a_grid_is_every_point_and_no_more() -> None:
    space: dict[str, Dimension] = {"width": Choices(choices=(8, 16)), "depth": Range(low=1, high=3)}
    search = SearchConfig(algorithm="grid", num_trials=10)
    suggesting, trials = searcher(search, space, {"width": 8, "depth": 1}, "max", concurrent=9)
    found = [suggesting.suggest(f"t{number}") for number in range(trials)]
    assert found == [{"width": width, "depth": depth} for width in (8, 16) for depth in (1, 2, 3)]
    with pytest.raises(TowerlineError, match="rate has no step"):
        searcher(search, SPACE, FIRST, "max", concurrent=9)


def test_tpe_keeps_away_from_where_trials_failed() -> None:
    search = SearchConfig(num_trials=40)
    suggesting, _ = searcher(search, SPACE, FIRST, "max", concurrent=9)
    found = []
    for number in range(40):
        sample = suggesting.suggest(f"t{number}")
        failed = "the loss is nan" if sample["rate"] > 1e-3 else ""
        last = result(math.nan if failed else 0.5, failed=failed)
        suggesting.on_trial_result(f"t{number}", last)
        suggesting.on_trial_complete(f"t{number}", last)
        found.append(bool(failed))
    assert sum(found[20:]) < sum(found[:20])


def test_what_was_suggested_is_gone_on_with_after_a_restart_with_room_for_less(tmp_path: Path) -> None:
    search = SearchConfig(num_trials=20)
    whole = suggested(search, 20)
    suggesting, _ = searcher(search, SPACE, FIRST, "max", concurrent=3)
    for number in range(12):
        sample = suggesting.suggest(f"t{number}")
        assert sample == whole[number]
        suggesting.on_trial_complete(f"t{number}", result(-abs(math.log10(sample["rate"]) + 2)))
    suggesting.save(str(tmp_path / "searcher"))
    state = suggesting.get_state()
    again, _ = searcher(search, SPACE, FIRST, "max", concurrent=1)
    again.set_state(state)
    again.restore(str(tmp_path / "searcher"))
    assert again.suggest("t12") == whole[12]
    assert again.suggest("t13") is None, "one at a time now"


def test_asha_stops_what_does_not_pay_and_keeps_failures_out_of_the_comparison() -> None:
    halving = Halving(max_epochs=4)
    halving.set_search_properties(BEST, "max")
    controller: Any = None
    trials = {name: Trial(name, config={}, stub=True) for name in ("good", "failed", "bad", "better")}
    for trial in trials.values():
        halving.on_trial_add(controller, trial)
    assert halving.on_trial_result(controller, trials["good"], result(0.5)) == TrialScheduler.CONTINUE
    failed = result(math.nan, failed="the loss is nan")
    assert halving.on_trial_result(controller, trials["failed"], failed) == TrialScheduler.STOP
    halving.on_trial_complete(controller, trials["failed"], failed)
    assert halving.on_trial_result(controller, trials["bad"], result(0.4)) == TrialScheduler.STOP
    assert halving.on_trial_result(controller, trials["better"], result(0.6)) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(controller, trials["better"], result(0.6, iteration=4)) == TrialScheduler.STOP
