"""The endpoint under fire on a real Ray Serve: rollouts and killed replicas under load, and clients that nobody wants.

Every answer is compared with what the stages answer in one process.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import ray.serve

from benchmarks.abusive_clients import crowd
from benchmarks.checked_load import Notes, checked_load
from benchmarks.expected_answers import Expected, expected_answers
from benchmarks.faults import is_whole, kill_one, replicas, strike
from benchmarks.memory_watch import memory_watch
from benchmarks.sampling import sampled
from cluster.provenance import ROOT
from cluster.session import RaySession
from cluster.settings import Settings
from serve.app import NAME
from serve.config import AppConfig, Replicas
from serve.graph import GraphConfig
from serve.session import deploy, running
from tests.jobs.shell import Shell
from tests.serve.conftest import USERS
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

CLIENTS = 4
COUNT = 3
WINDOW_S = 20
"""A killed replica is noticed within this time, on a machine that is busy with other tests too."""
CROWD_MB = 300
"""What a gateway may hold of the crowd's requests at once."""


def config(count: int) -> AppConfig:
    """So many gateways and so many replicas of the ranking."""
    replicas = Replicas(min=count, max=count, num_cpus=0.1)
    graph = GraphConfig(ranking="remote", explain="off", budget_s=30)
    return AppConfig(dataset="shop", graph=graph, gateway_replicas=replicas, stage_replicas=replicas)


ONE, TWO = config(1), config(2)


@pytest.fixture(scope="module")
def url(ray_session: RaySession, settings: Settings, champion: dict[str, str]) -> Iterator[str]:  # noqa: ARG001
    with running(settings, ONE) as url:
        yield url


@pytest.fixture(scope="module")
def expected(url: str, settings: Settings) -> Expected:
    assert url
    return expected_answers(settings, ONE, "variant-a", USERS, COUNT)


def goes_on(notes: Notes, requests: int = 100) -> None:
    """Wait for so many more."""
    aim = notes.requests + requests
    wait_until(lambda: notes.requests > aim)


@dataclass(frozen=True)
class States:
    """How many replicas of each deployment are in which state of Ray Serve, at a moment of `time.monotonic`."""

    at: float
    counts: dict[str, dict[str, int]]

    def everywhere(self, state: str) -> bool:
        """Whether each deployment has a replica in it."""
        return all(count.get(state) for count in self.counts.values())

    def anywhere(self, state: str) -> bool:
        """Whether a deployment has one."""
        return any(count.get(state) for count in self.counts.values())


def states() -> States:
    at, deployments = time.monotonic(), ray.serve.status().applications[NAME].deployments
    return States(at, {name: dict(deployment.replica_states) for name, deployment in deployments.items()})


def test_a_rollout_of_single_replicas_fails_no_request(url: str, expected: Expected, settings: Settings) -> None:
    deploy(settings, ONE)
    with checked_load(url, expected, CLIENTS) as notes:
        goes_on(notes)
        before = {process.pid for name in ("Gateway", "RankingReplica") for process in replicas(name)}
        with sampled(states, 0.1) as seen:
            deploy(settings, ONE.model_copy(update={"champion_poll_s": ONE.champion_poll_s + 1}))
            wait_until(lambda: is_whole({"Gateway": 1, "RankingReplica": 1}))
        goes_on(notes)
        after = {process.pid for name in ("Gateway", "RankingReplica") for process in replicas(name)}
    assert len(before) == len(after) == 2
    assert not before & after
    assert notes.others == []
    assert [each for each in seen if not each.everywhere("RUNNING")] == []
    starting = [each.at for each in seen if each.anywhere("STARTING")]
    # Ray would let requests wait for a replica that starts, and fail none.
    assert max((end - begin for begin, end in notes.gaps), default=0) < max(starting) - min(starting), notes.gaps


def test_a_killed_replica_costs_at_most_what_it_had_in_hand(url: str, expected: Expected, settings: Settings) -> None:
    deploy(settings, TWO)
    wait_until(two_of_each)
    with checked_load(url, expected, CLIENTS) as notes:
        goes_on(notes)
        gateway = strike(lambda: kill_one("Gateway"), notes, lambda: True)
        ranking = strike(lambda: kill_one("RankingReplica"), notes, two_of_each)
    assert (gateway.wrong, ranking.wrong) == (0, 0), notes.others
    assert max(gateway.recovery_s, ranking.recovery_s) < WINDOW_S, (notes.others, notes.gaps)
    assert gateway.failed <= CLIENTS, notes.others
    assert ranking.failed == 0, notes.others


def test_a_killed_node_and_a_killed_store_cost_no_wrong_answer(
    settings: Settings,
    champion: dict[str, str],  # noqa: ARG001
) -> None:
    shell = Shell(ROOT, {"TOWERLINE_HOME": str(settings.home)})
    command = f"python -m benchmarks.soak --dataset shop --parts node store --clients {CLIENTS}"
    with shell.started(command, until="store: failed") as soak:
        soak.wait()
    report = settings.home / "reports" / "bench_soak.json"
    assert report.exists(), soak.output
    figures = json.loads(report.read_text())["figures"]
    assert figures["wrong"] == 0, soak.output
    assert max(figures["failed/node"], figures["failed/store"]) <= CLIENTS, soak.output
    assert shell.left_behind() == []


def two_of_each() -> bool:
    return is_whole({"Gateway": 2, "RankingReplica": 2})


def test_slow_huge_and_broken_clients_are_their_own_misfortune(url: str, expected: Expected) -> None:
    with memory_watch() as samples:
        wait_until(lambda: len(samples) > 0)
        came = crowd(url, expected, requests=600, connections=100)
    assert came.unexpected() == {}
    assert came.honest.requests == 480
    assert came.honest.others == []
    assert max(sample.gateway_mb for sample in samples) < samples[0].gateway_mb + CROWD_MB
