"""A run over many users: which parts there are, which are missing, and when it is complete.

    $TOWERLINE_HOME/recommendations/<data set>/<moment>-<key>/
        manifest.json, part-00000.parquet …   a row per user and item, best first

A run that was interrupted goes on where it was. The folder has this name when all parts are there; until then it is
`.building-<key>`, where the key stands for all that the recommendations are made of and by.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from cluster.errors import TowerlineError
from cluster.files import sync, write_atomically
from cluster.provenance import git_commit, versions
from cluster.settings import Settings
from data.dataset import Dataset, open_dataset
from data.disk import clear_disk_errors
from data.features import feature_fingerprints
from data.folder_lock import locked
from data.online.store import OnlineStore
from data.parallel import Run
from data.schema import USER_ID
from data.views import USER
from serve.batch_scoring import Provenance, Scoring, part_file
from serve.config import AppConfig
from serve.loading import online_store
from serve.schemas import MAX_COUNT
from train.registry import champion_cards, champion_pair

MANIFEST_FILE = "manifest.json"
USERS_PER_PART = 2_000
KEPT = "what is finished is kept, and the same command goes on from there"


@dataclass(frozen=True)
class Recommended:
    """A run that is complete."""

    folder: Path
    provenance: Provenance
    rows: int
    parts: int
    made: int
    """Of the parts, now; the others were there."""

    def figures(self) -> dict[str, float]:
        """For a report."""
        return {"users": self.provenance.users, "rows": self.rows, "parts": self.parts, "parts/made": self.made}


def recommend_all(
    settings: Settings,
    config: AppConfig,
    *,
    users: Sequence[str] | None,
    at: datetime | None,
    count: int,
    run: Run,
    users_per_part: int = USERS_PER_PART,
) -> Recommended:
    """Recommend to `users`, all that are known if None, as of `at`, now if None; goes on with a run that was begun.

    The data set's current version is published to the online store first, as for the endpoint.

    Raises:
        TowerlineError: there is no such data set, it has no champion, there is nobody to recommend to, or the disk is
            full: what is finished then stays for the next time.
    """
    if not 1 <= count <= MAX_COUNT:
        raise TowerlineError(f"--count is {count}, expected 1 to {MAX_COUNT} items")
    dataset = open_dataset(settings.home, config.dataset)
    cards = champion_cards(settings.tracking_uri, config.dataset)
    store = online_store(settings, config.dataset, cards["two-tower"].history_length)
    store.publish(dataset)
    asked = sorted(set(_all_users(dataset, store) if users is None else users))
    store.close()
    if not asked:
        raise TowerlineError(f"there is nobody to recommend to; name users of data set {config.dataset!r} in --users")
    pair = champion_pair(settings.tracking_uri, config.dataset)
    wanted = Provenance(
        dataset=config.dataset,
        variant=pair.variant,
        models={str(kind): version for kind, version in pair.versions.items()},
        data_version=dataset.manifest.data_version,
        feature_views=feature_fingerprints(cards["two-tower"].history_length),
        at=at or datetime.now(UTC),
        count=count,
        users=len(asked),
        users_hash=hashlib.sha256("\0".join(asked).encode()).hexdigest(),
        graph=config.graph,
        rules=config.rules.model_dump(mode="json"),
        git_commit=git_commit(),
        versions=versions(),
    )
    parts = [asked[start : start + users_per_part] for start in range(0, len(asked), users_per_part)]
    root = settings.home / "recommendations" / config.dataset
    plan = _Plan(root, wanted, parts, _key(wanted, at, users_per_part))
    with clear_disk_errors(f"writing recommendations below {root}", KEPT):
        return _complete(plan, lambda begun, folder: Scoring(settings, config, begun, folder), run)


@dataclass(frozen=True)
class _Plan:
    root: Path
    wanted: Provenance
    parts: Sequence[Sequence[str]]
    """The users of each."""
    key: str


def _complete(plan: _Plan, scoring: Callable[[Provenance, Path], Scoring], run: Run) -> Recommended:
    building = plan.root / f".building-{plan.key}"
    while not (finished := plan.root / _name(plan.wanted, plan.key)).exists():
        building.mkdir(parents=True, exist_ok=True)
        with locked(building) as is_there:
            if not is_there:
                continue
            begun = _begun(building, plan.wanted)
            parts = enumerate(plan.parts)
            missing = [(number, users) for number, users in parts if not part_file(building, number).exists()]
            for _ in run(scoring(begun, building), missing):
                pass
            finished = plan.root / _name(begun, plan.key)
            building.rename(finished)
            sync(plan.root)
            return _recommended(finished, len(plan.parts), len(missing))
    return _recommended(finished, len(plan.parts), 0)


def _begun(building: Path, wanted: Provenance) -> Provenance:
    """The run in this folder, whose moment may be an earlier one."""
    manifest = building / MANIFEST_FILE
    if not manifest.exists():
        write_atomically(manifest, wanted.model_dump_json(indent=2) + "\n")
    for left in building.glob(".*.part"):
        left.unlink()
    return Provenance.model_validate_json(manifest.read_bytes())


def _recommended(folder: Path, parts: int, made: int) -> Recommended:
    rows = sum(pq.read_metadata(part_file(folder, number)).num_rows for number in range(parts))
    return Recommended(folder, Provenance.model_validate_json((folder / MANIFEST_FILE).read_bytes()), rows, parts, made)


def _key(wanted: Provenance, at: datetime | None, users_per_part: int) -> str:
    """Another one wherever the recommendations could be others. Without a moment, whatever moment was begun with."""
    content = wanted.model_dump(mode="json") | {"at": at and at.isoformat(), "users_per_part": users_per_part}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def _name(run: Provenance, key: str) -> str:
    return f"{run.at:%Y%m%dT%H%M%S}-{key}"


def _all_users(dataset: Dataset, store: OnlineStore) -> list[str]:
    """Those with events, appended ones included, and those with attributes only."""
    buckets = [dataset.bucket(USER, bucket, [USER_ID]).unique() for bucket in range(dataset.manifest.buckets)]
    tables = (*buckets, dataset.users(), store.appended_events())
    users: list[str] = pl.concat([table.get_column(USER_ID) for table in tables]).unique().to_list()
    return users


def read_users(path: Path) -> list[str]:
    """The users in a file: Parquet with a column `user_id`, or text with one on each line.

    Raises TowerlineError if it cannot be read.
    """
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path, columns=[USER_ID]).get_column(USER_ID).cast(pl.String).to_list()
        return [line for line in path.read_text().split("\n") if line]
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        how = f"expected Parquet with a column {USER_ID!r}, or text with a user on each line"
        raise TowerlineError(f"--users {path}: {error}; {how}") from error
