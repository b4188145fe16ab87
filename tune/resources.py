"""What a trial needs of the cluster, and how many find room in it at a time.

A distributed trial is a Train run whose workers hold their CPUs as one placement group, all or nothing, while the
trial itself holds none. No more trials run than there is room for, so that none waits for what another one holds.
"""

import ray
import ray.tune

from cluster.errors import TowerlineError
from train.ray_failures import alive_nodes, resources_per_worker
from tune.config import SearchConfig


def trial_resources(search: SearchConfig) -> ray.tune.PlacementGroupFactory:
    """What Tune sets aside for a trial; nothing at all it would refuse, so for a distributed one it is a byte."""
    alone = search.scaling.backend == "none"
    return ray.tune.PlacementGroupFactory([resources_per_worker(search.scaling) if alone else {"memory": 1.0}])


def concurrent_trials(search: SearchConfig) -> int:
    """How many trials to run at a time.

    Raises:
        TowerlineError: the cluster has no room for a single one; names what it needs and what there is.
    """
    scaling = search.scaling
    if scaling.wait_for_nodes:
        return search.concurrent_trials
    count = scaling.num_workers
    fewest, most = (1, 1) if scaling.backend == "none" else (count, count) if isinstance(count, int) else count
    wanted = resources_per_worker(scaling)
    places: int = sum(
        min(int(node["Resources"].get(name, 0) / amount) for name, amount in wanted.items()) for node in alive_nodes()
    )
    if places < fewest:
        total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        asked = ", ".join(f"{fewest * amount:g} {name}" for name, amount in wanted.items())
        there = ", ".join(f"{total.get(name, 0):g} {name}" for name in wanted)
        raise TowerlineError(
            f"a trial of the search asks for {asked} (search.scaling: {fewest} workers with "
            f"{scaling.cpus_per_worker:g} CPUs each), but the cluster has {there} on {len(alive_nodes())} nodes, room "
            f"for {places} such workers; ask for fewer, or add nodes"
        )
    return min(search.concurrent_trials, max(1, places // most))
