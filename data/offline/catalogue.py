"""What features there are and which snapshots of them, as tables for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.box
from rich.console import Console
from rich.table import Table

from cluster.errors import TowerlineError
from data.aggregations import Aggregation, LastN, Latest, RecencyWeighted, TimeSince
from data.checks.leakage import lint_views
from data.features import feature_fingerprints, views
from data.offline.store import Snapshot, list_snapshots
from data.views import FeatureView


def show_features(home: Path, dataset: str | None, history_length: int) -> None:
    """The declared views, and the snapshots of one data set or of all."""
    fingerprints = feature_fingerprints(history_length)
    print_views(views(history_length), fingerprints)
    names = [dataset] if dataset else sorted(folder.name for folder in (home / "features").glob("[!.]*"))
    print_snapshots([snapshot for name in names for snapshot in list_snapshots(home, name)], fingerprints)


def show_leakage(history_length: int) -> None:
    """Change the future of generated examples. Raises TowerlineError if a declared feature changes with it."""
    found = lint_views(views(history_length))
    table = Table("view", "features", "examples compared", "leaks", box=rich.box.SIMPLE_HEAD)
    for view, features, examples, leaks in found.iter_rows():
        table.add_row(view, f"{features}", f"{examples:,}", leaks or "none")
    _console().print(table)
    if leaks := [leak for leak in found["leaks"] if leak]:
        raise TowerlineError(leaks[0])


def print_views(declared: Sequence[FeatureView], fingerprints: Mapping[str, str]) -> None:
    """Every view with its features: how each is computed, over how long a past, and from which columns."""
    console = _console()
    for view in declared:
        always = set.intersection(*(set(view.lineage(feature)) for feature in view.features))
        console.print(f"[bold]{view.name}[/]: {view.description}")
        console.print(f"of {view.entity.name}, by {view.owner}, fingerprint {fingerprints[view.name]}")
        console.print(f"from {view.source}: {', '.join(sorted(always))}")
        if view.where is not None:
            console.print(f"where {view.where}", markup=False)
        table = Table(box=rich.box.SIMPLE_HEAD)
        table.add_column("feature", no_wrap=True)
        for name in ("is", "over", "default", "and from"):
            table.add_column(name)
        for feature, aggregation in view.features.items():
            more = ", ".join(name for name in view.lineage(feature) if name not in always)
            table.add_row(feature, _kind(view, feature), _past(aggregation, view), str(aggregation.default), more)
        console.print(table)


def print_snapshots(snapshots: Sequence[Snapshot], current: Mapping[str, str]) -> None:
    """Every snapshot on disk, and whether its definitions are those of today."""
    if not snapshots:
        print("no examples on disk; make them with `python -m jobs.build_features --dataset NAME`")
        return
    table = Table("data set", "made", "examples", "data", "history", "definitions", "", box=rich.box.SIMPLE_HEAD)
    for snapshot in snapshots:
        manifest = snapshot.manifest
        changed = [name for name, each in manifest.fingerprints.items() if current.get(name) != each]
        table.add_row(
            manifest.dataset,
            f"{manifest.created:%Y-%m-%d %H:%M}",
            f"{manifest.examples:,}",
            manifest.data_version[:12],
            f"{manifest.history_length}",
            snapshot.path.parent.name,
            f"other {', '.join(changed)}" if changed else "of today",
        )
    _console().print(table)


def _kind(view: FeatureView, feature: str) -> str:
    """An aggregation in words: `mean of value`."""
    aggregation = view.features[feature]
    column = view.column_of(feature)
    name = type(aggregation).__name__
    words = {"TimeSince": "seconds since", "RecencyWeighted": "recency-weighted sum", "LastN": "last values"}
    return words.get(name, name.lower()) + (f" of {column}" if column else "")


def _past(aggregation: Aggregation, view: FeatureView) -> str:
    """How long a past a feature looks at."""
    match aggregation:
        case LastN(length=length):
            past = f"{length} events"
        case RecencyWeighted(half_life=half_life):
            past = f"all time, half-life {half_life.total_seconds() / 86_400:g} d"
        case TimeSince() | Latest():
            past = "the newest event"
        case _:
            past = str(aggregation.window)
    return past if view.ttl is None else f"{past}, not older than {view.ttl}"


def _console() -> Console:
    return Console(highlight=False)
