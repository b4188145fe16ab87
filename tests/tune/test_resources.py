from typing import TYPE_CHECKING

import pytest
import ray

from cluster.errors import TowerlineError
from train.scaling import Scaling
from tune.config import SearchConfig
from tune.resources import concurrent_trials, trial_resources

if TYPE_CHECKING:
    from cluster.session import RaySession


@pytest.fixture
def cpus(ray_session: "RaySession") -> int:
    assert ray_session
    return int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]


def search(backend: str, workers: int | tuple[int, int] = 1, cpus: float = 1.0) -> SearchConfig:
    scaling = Scaling(backend=backend, num_workers=workers, cpus_per_worker=cpus)  # type: ignore[arg-type]
    return SearchConfig(concurrent_trials=1000, scaling=scaling)


@pytest.mark.parametrize("backend", ["horovod", "torch"])
def test_no_more_distributed_trials_run_than_have_room_for_all_their_workers(backend: str, cpus: int) -> None:
    assert concurrent_trials(search(backend)) == cpus
    assert concurrent_trials(search(backend, workers=cpus)) == 1
    assert concurrent_trials(search(backend, workers=2, cpus=cpus / 4)) == 2
    assert concurrent_trials(search(backend, workers=(1, cpus + 5))) == 1
    assert concurrent_trials(search(backend).model_copy(update={"concurrent_trials": 1})) == 1


def test_a_trial_alone_takes_its_own_cpus_and_a_distributed_one_none() -> None:
    assert trial_resources(search("none", workers=9, cpus=2.0)).bundles == [{"CPU": 2.0}]
    assert trial_resources(search("torch", workers=9)).bundles == [{"memory": 1.0}]


@pytest.mark.parametrize(
    ("backend", "workers", "each"), [("horovod", 100_000, 1.0), ("torch", (90_000, 100_000), 1.0), ("none", 1, 1e5)]
)
def test_what_can_never_fit_is_refused_with_what_is_needed_and_what_there_is(
    backend: str, workers: int | tuple[int, int], each: float, cpus: int
) -> None:
    fewest = workers if isinstance(workers, int) else workers[0]
    with pytest.raises(
        TowerlineError, match=rf"asks for {fewest * each:g} CPU .*the cluster has {cpus} CPU on 1 nodes"
    ):
        concurrent_trials(search(backend, workers, each))


def test_with_nodes_on_demand_nothing_is_refused() -> None:
    scaling = Scaling(backend="torch", num_workers=10_000, wait_for_nodes=True)
    assert concurrent_trials(SearchConfig(concurrent_trials=3, scaling=scaling)) == 3
