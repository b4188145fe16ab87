"""Our side: features and the point-in-time join on Ray Data, in a session that is started before the clock.

python -m benchmarks.our_features build HOME DATASET OUTPUT
python -m benchmarks.our_features join HOME DATASET EXAMPLES OUTPUT
"""

import json
import sys
import time
from pathlib import Path

from cluster.environment import prepare_environment

prepare_environment()

import psutil  # noqa: E402

from benchmarks.views import benchmark_views, newest_view  # noqa: E402
from cluster.session import connect  # noqa: E402
from cluster.settings import Settings  # noqa: E402
from data.dataset import open_dataset  # noqa: E402
from data.offline.feature_join import join_features  # noqa: E402
from data.offline.pipeline import build_examples  # noqa: E402
from data.parallel import on_ray  # noqa: E402

TASKS_TO_WARM = 4


def main(what: str, home: Path, dataset_name: str, *paths: Path) -> None:
    """Do the work and print the seconds that it took."""
    dataset = open_dataset(home, dataset_name)
    with connect(Settings(home=home), log_to_driver=False):
        list(on_ray(_warm, list(range(TASKS_TO_WARM))))
        started, used = time.perf_counter(), _cpu_seconds()
        if what == "build":
            build_examples(dataset, paths[0], declared=benchmark_views())
        else:
            join_features(dataset, [newest_view()], [paths[0]], paths[1])
        answer = {"wall_s": time.perf_counter() - started, "cpu_s": _cpu_seconds() - used}
        print(json.dumps(answer), flush=True)


def _cpu_seconds() -> float:
    """What this process and all of Ray's have used so far; a worker that has ended takes its share with it."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in family)


def _warm(number: int) -> int:
    """A worker has imported what it needs."""
    import data.offline.feature_build
    import data.offline.feature_join  # noqa: F401

    return number


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], *(Path(argument) for argument in sys.argv[4:]))
