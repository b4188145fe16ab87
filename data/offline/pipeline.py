"""The examples of a data set with Ray Data: two maps over buckets, and no shuffle.

    bucket of items ─► features of its items, for each of its events ─► a slice for every bucket of users
    all events      ─► features of everything                        ─►   "
    bucket of users ─► features of its users ─► + its slices         ─► date=…/bucket-….parquet

Both maps run the functions of `data.offline.examples`; rows never pass through the driver. A task takes the memory of
one bucket, or of half a million events if the bucket has more. What is finished when a job is killed stays finished.
"""

import functools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cluster.errors import TowerlineError
from data import splits
from data.dataset import Dataset
from data.disk import clear_disk_errors
from data.features import HISTORY_LENGTH, computation, feature_fingerprints, views
from data.fingerprints import fingerprint_of_modules
from data.offline import examples, feature_build
from data.offline.building import Building, building
from data.offline.examples import example_columns
from data.offline.feature_build import Build, Note
from data.offline.store import FeatureManifest, definitions_fingerprint, has_examples, write_attributes
from data.parallel import Run, on_ray
from data.splits import LEAVE_ONE_OUT_PROTOCOL, protocol_hash, require_users
from data.views import FeatureView

KEPT = "what is finished is kept, and the same command goes on from there"


def examples_folder(home: Path, dataset: Dataset, history_length: int = HISTORY_LENGTH) -> Path:
    """Where the examples of this version of a data set and of the declared features belong."""
    if history_length < 1:
        raise TowerlineError(f"--history-length is {history_length}, expected 1 or more events")
    code = fingerprint_of_modules(examples, feature_build, splits)
    definitions = definitions_fingerprint(feature_fingerprints(history_length) | {"examples": code}, protocol_hash())
    return home / "features" / dataset.name / definitions / dataset.manifest.data_version[:12]


def ensure_examples(home: Path, dataset: Dataset, history_length: int = HISTORY_LENGTH) -> Path:
    """The folder of examples, built if it is not there yet. Needs a Ray session."""
    folder = examples_folder(home, dataset, history_length)
    return folder if has_examples(folder) else build_examples(dataset, folder, history_length)


def build_examples(
    dataset: Dataset,
    output: Path,
    history_length: int = HISTORY_LENGTH,
    declared: Sequence[FeatureView] | None = None,
    run: Run = on_ray,
) -> Path:
    """Compute one example per event and write the snapshot `output`, unless it is there; goes on with one begun.

    `declared`: the feature views, those of `data.features` if None. `run` on Ray needs a session.

    Raises:
        TowerlineError: the split has too few users, the data set is not whole, or the disk is full: what is finished
            then stays for the next time.
    """
    started = time.monotonic()
    require_users(dataset.manifest.held_out_users, 2, dataset.manifest.users)
    chosen = views(history_length) if declared is None else tuple(declared)
    with clear_disk_errors(f"building {output}", KEPT), building(output) as work:
        if work is None:
            return output
        build = Build(dataset, chosen, work.path, work.work)
        write_attributes(work.path, dataset.users(), dataset.items())
        partitions: Counter[str] = Counter()
        for note in _finished(work, build, run):
            partitions.update(note["partitions"])
        _require_all(dataset, partitions.total())
        manifest = FeatureManifest(
            dataset=dataset.name,
            data_version=dataset.manifest.data_version,
            history_length=history_length,
            columns=example_columns(chosen),
            definitions=[view.definition() for view in chosen],
            fingerprints=_fingerprints(history_length, declared),
            protocol=LEAVE_ONE_OUT_PROTOCOL,
            protocol_hash=protocol_hash(),
            examples=partitions.total(),
            partitioning=build.partitioning,
            partitions=dict(sorted(partitions.items())),
            created=datetime.now(UTC),
            seconds=round(time.monotonic() - started, 3),
        )
        work.publish(manifest)
    return output


def _fingerprints(history_length: int, declared: Sequence[FeatureView] | None) -> dict[str, str]:
    if declared is None:
        return feature_fingerprints(history_length)
    return {view.name: view.fingerprint(computation()) for view in declared}


def _finished(work: Building, build: Build, run: Run) -> list[Note]:
    """Do what is not done yet; gives the notes of all buckets of users, in order."""
    buckets = {bucket: f"users-{bucket:05d}" for bucket in range(build.buckets)}
    notes = {bucket: work.note(name) for bucket, name in buckets.items()}
    waiting = [bucket for bucket, note in notes.items() if note is None]
    others = {task: f"others-{task:05d}" for task in build.other_tasks} if waiting else {}
    missing = [task for task, name in others.items() if work.note(name) is None]
    for task, note in run(functools.partial(_with_task, build.other_task), missing):
        work.finish_work(others[task], note)
    for bucket, note in run(functools.partial(_with_task, build.user_bucket), waiting):
        work.finish(buckets[bucket], note, (Path(file) for file in note["files"]))
        notes[bucket] = note
    return list(notes.values())


def _with_task(do: Callable[[int], Note], task: int) -> tuple[int, Note]:
    return task, do(task)


def _require_all(dataset: Dataset, examples: int) -> None:
    if examples != dataset.manifest.events:
        raise TowerlineError(
            f"data set {dataset.name!r} has {dataset.manifest.events} events by its manifest, {examples} were read "
            f"from {dataset.path}; ingest it again"
        )
