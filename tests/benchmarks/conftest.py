"""A small data set as the quality benchmark's protocols split it."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from benchmarks.quality_problem import Problem
from benchmarks.quality_systems import SYSTEMS
from tests.train.planted import Planted, plant
from train.protocols import GlobalTime, LeaveOneOut, StrongGeneralisation

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


@pytest.fixture
def home(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOWERLINE_HOME", str(world.planted.home))
