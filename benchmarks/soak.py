"""The endpoint under fire: parts of it are killed under load, then minutes of load, then clients as nobody wants them.

    python -m benchmarks.soak --minutes 1 --requests 5000
    python -m benchmarks.soak --parts node store

Every answer is compared with what the stages say in one process. The exit status is 1 if an aim was missed.
"""

import argparse
import math
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.abusive_clients import Crowd, crowd
from benchmarks.checked_load import NOT_FULL, Notes, checked_load
from benchmarks.expected_answers import expected_answers
from benchmarks.faults import is_whole, kill_one, strike
from benchmarks.memory_watch import Sample, change, memory_watch
from benchmarks.redis_server import RedisServer, redis_server
from benchmarks.serving_champion import require_champion
from benchmarks.serving_load import COUNT
from benchmarks.soak_report import PARTS, Course, derived, missed, print_figures, write_picture
from benchmarks.two_nodes import TwoNodes, two_nodes
from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.ray_start import free_port
from cluster.reports import ReportClock
from cluster.session import connect
from cluster.settings import Settings
from data.dataset import Dataset
from data.schema import USER_ID
from serve.config import AppConfig, Replicas
from serve.graph import GraphConfig
from serve.session import deploy, running
from train.registry import champion_pair

DATASET = "movielens-100k"
USERS = 200
STORE_AWAY_S = 3.0
WARM_S = 20.0
"""Of load before anything is measured or killed."""
REPLICAS = {"Gateway": 2, "RankingReplica": 2}
PROTOCOL = f"""\
The champion pair on a Ray cluster of two nodes on one machine: two gateways, ranking remote with two replicas, \
features in Redis (append-only file, every write on the disk). Clients in one process ask POST /v1/recommend for \
{COUNT} items of {USERS} users without a pause; every answer is compared with what the stages answer in one process, \
also those that say that they go without a stage. One after the other: kill -9 of a node, of a gateway, of a ranking \
replica, of Redis, which is back after {STORE_AWAY_S:g} s, and a rollout of another configuration. failed: answers of \
another status than 200, and none; recovery_s: from the fault until all answers were full again, and came; gap_s: the \
longest time without one; whole_s: until all replicas are back. Then minutes of the same load (steady); memory is PSS, \
medians of the first and last tenth. Last a crowd: a fifth of its requests are abusive (a few bytes at a time or none, \
bodies of 8 MiB and, as declared, of a terabyte, broken chunks, no HTTP, resets)."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--dataset", default=DATASET)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=10, help="of load after the faults")
    parser.add_argument("--clients", type=int, default=8, help="of that load and during the faults")
    parser.add_argument("--requests", type=int, default=50_000, help="of the crowd")
    parser.add_argument("--connections", type=int, default=500, help="of the crowd")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Set up, let it happen, report."""
    asked, settings = parse(arguments), Settings()
    clock = ReportClock("bench_soak")
    folder = _empty(settings.home / "bench" / "soak")
    with redis_server(folder, durable=True) as store:
        dataset = require_champion(settings.model_copy(update={"online_store": store.address}), asked.dataset)
        own = _own(settings, folder, store.address)
        with two_nodes() as nodes, memory_watch() as samples:
            at_nodes = own.model_copy(update={"ray_address": nodes.address})
            with connect(at_nodes, log_to_driver=False):
                nodes.require_both()
                course = Soak(at_nodes, asked, dataset, store, nodes).run(samples)
    shutil.rmtree(folder)
    report = clock.finish(
        config=vars(asked), protocol=PROTOCOL, data_version=dataset.manifest.data_version, figures=course.figures
    )
    print_figures(course.figures)
    path = report.write(settings.home)
    print(f"report {path}, picture {write_picture(course, path.with_suffix('.png'))}")
    if found := [*missed(course.figures), *course.oddities]:
        raise TowerlineError(f"the soak found: {'; '.join(found)}")


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _own(settings: Settings, folder: Path, online_store: str) -> Settings:
    """The same data sets and models, but decisions of its own: minutes of load are gigabytes that nobody made."""
    (folder / "datasets").symlink_to(settings.home / "datasets", target_is_directory=True)
    return settings.model_copy(
        update={
            "home": folder,
            "mlflow_tracking_uri": settings.tracking_uri,
            "online_store": online_store,
            "serve_port": free_port(),
        }
    )


class Soak:
    """One run."""

    def __init__(
        self, settings: Settings, asked: argparse.Namespace, dataset: Dataset, store: RedisServer, nodes: TwoNodes
    ) -> None:
        self._settings = settings
        self._asked = asked
        self._users = dataset.events()[USER_ID].unique().sort().to_list()[:USERS]
        self._store = store
        self._nodes = nodes
        self._config = AppConfig(
            dataset=asked.dataset,
            graph=GraphConfig(ranking="remote", explain="off"),
            gateway_replicas=Replicas(min=2, max=2),
            stage_replicas=Replicas(min=2, max=2),
        )
        variant = champion_pair(settings.tracking_uri, asked.dataset).variant
        self._expected = expected_answers(settings, self._config, variant, self._users, COUNT)

    def run(self, samples: list[Sample]) -> Course:
        """Everything. `samples` of the memory are taken meanwhile."""
        asked = self._asked
        moments: dict[str, float] = {}
        figures: dict[str, float] = {}
        came = Crowd()
        with running(self._settings, self._config) as url:
            self._nodes.require_replica("Gateway")
            with checked_load(url, self._expected, asked.clients) as notes:
                time.sleep(WARM_S)
                for name, fault in self._faults().items():
                    if name in asked.parts:
                        moments[name] = time.monotonic()
                        figures |= strike(fault, notes, self._is_whole).figures(name)
                        _say(figures, name)
                if "steady" in asked.parts:
                    time.sleep(WARM_S)
                    moments["steady"] = steady = time.monotonic()
                    time.sleep(60 * asked.minutes)
                    figures |= _steady_figures(notes, steady, samples)
                    _say(figures, "steady")
            if "crowd" in asked.parts:
                moments["crowd"] = time.monotonic()
                came = crowd(url, self._expected, asked.requests, asked.connections)
                figures |= _crowd_figures(came, moments["crowd"], samples)
        figures |= derived(figures)
        figures["requests"] = float(notes.requests + came.honest.requests)
        figures["wrong"] = float(len(notes.since(0, "wrong")) + len(came.honest.since(0, "wrong")))
        return Course(figures, moments, notes, samples, _oddities(notes, moments, came))

    def _faults(self) -> dict[str, Callable[[], object]]:
        changed = self._config.model_copy(update={"champion_poll_s": self._config.champion_poll_s + 1})
        return {
            "node": self._nodes.kill_second,
            "gateway": lambda: kill_one("Gateway"),
            "ranking": lambda: kill_one("RankingReplica"),
            "store": self._store_leaves_and_returns,
            "rollout": lambda: deploy(self._settings, changed),
        }

    def _store_leaves_and_returns(self) -> None:
        self._store.kill()
        time.sleep(STORE_AWAY_S)
        self._store.start()

    def _is_whole(self) -> bool:
        return self._store.answers() and is_whole(REPLICAS)


def _steady_figures(notes: Notes, since: float, samples: list[Sample]) -> dict[str, float]:
    seconds = time.monotonic() - since
    answered = sum(count for second, count in notes.by_second["full"].items() if second >= since)
    endings = {ending: float(len(notes.since(since, ending))) for ending in NOT_FULL}
    return {
        "rps/steady": answered / seconds,
        **{f"{ending}/steady": count for ending, count in endings.items()},
        **change([sample for sample in samples if sample.at > since]),
    }


def _crowd_figures(came: Crowd, since: float, samples: list[Sample]) -> dict[str, float]:
    seconds = time.monotonic() - since
    during = [sample for sample in samples if sample.at > since]
    return {
        "rps/crowd": (came.honest.requests + sum(counts.total() for counts in came.abusive.values())) / seconds,
        **{f"{ending}/crowd": float(len(came.honest.since(0, ending))) for ending in NOT_FULL},
        "put_off/crowd": float(came.put_off),
        "abusive/crowd": float(sum(counts.total() for counts in came.abusive.values())),
        "unexpected/crowd": float(sum(counts.total() for counts in came.unexpected().values())),
        "memory_mb/gateway/crowd_peak": max((sample.gateway_mb for sample in during), default=0.0),
        "memory_mb/all/crowd_peak": max((sample.all_mb for sample in during), default=0.0),
    }


def _oddities(notes: Notes, moments: Mapping[str, float], came: Crowd) -> list[str]:
    """The first answers that should not have been, and what abuse was answered with against all rules."""
    unbroken = min((moments[name] for name in ("rollout", "steady") if name in moments), default=math.inf)
    wrong = [*notes.since(0, "wrong"), *notes.since(unbroken, "failed"), *came.honest.since(0, "wrong", "failed")]
    return [
        *(seen.why for seen in wrong[:5]),
        *(f"{abuse} was answered with {dict(counts)}" for abuse, counts in came.unexpected().items()),
    ]


def _say(figures: dict[str, float], name: str) -> None:
    words = (
        f"{metric.removesuffix(f'/{name}')} {value:.4g}" for metric, value in figures.items() if metric.endswith(name)
    )
    print(f"{name}: {', '.join(words)}", flush=True)


if __name__ == "__main__":
    run_job(main)
