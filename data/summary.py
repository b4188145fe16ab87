"""What was ingested and computed, as tables for people."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.reports import Report, ReportClock
from data.dataset import QUARANTINE_FILE
from data.ingest.ingestion import Ingested
from data.offline.store import FeatureManifest
from data.quality.validation_report import HTML_FILE, JSON_FILE, print_validation, read_validation


def print_ingested(ingested: Ingested) -> None:
    """Rows read, good and quarantined, by reason; users, items, the time they span, and where it all is."""
    manifest, path = ingested.dataset.manifest, ingested.dataset.path
    table = _table(f"data set {manifest.name}")
    table.add_row("source", manifest.source)
    table.add_row("rows read", f"{ingested.rows_read:,}")
    if ingested.already_there:
        table.add_row("already there", f"{ingested.already_there:,}")
    table.add_row("events", f"{manifest.events:,}")
    table.add_row("users / items", f"{manifest.users:,} / {manifest.items:,}")
    table.add_row("from", f"{manifest.first_event_time:%Y-%m-%d %H:%M:%S} UTC")
    table.add_row("to", f"{manifest.last_event_time:%Y-%m-%d %H:%M:%S} UTC")
    table.add_row("known since", manifest.ingest_time_rule)
    table.add_row("quarantined", f"{sum(ingested.quarantined.values()):,}")
    for (name, reason), count in ingested.quarantined.items():
        table.add_row("", f"{count:,} {name}: {reason}")
    table.add_row("version", manifest.data_version[:12])
    _print(table, f"written to {path}" if ingested.is_new else f"nothing new, so nothing was written; it is in {path}")
    if ingested.is_new and ingested.quarantined:
        print(f"what is wrong with which line: {path / QUARANTINE_FILE}")
    report = read_validation(path / JSON_FILE) if ingested.is_new else None
    if report:
        print_validation(report)
        print(f"what was expected of the rows, and found: {path / HTML_FILE}")


def print_features(folder: Path, manifest: FeatureManifest) -> None:
    """Which examples there are, by which definitions, and where."""
    table = _table(f"features of {manifest.dataset}")
    table.add_row("examples", f"{manifest.examples:,}")
    table.add_row("history", f"last {manifest.history_length} events")
    for view, fingerprint in manifest.fingerprints.items():
        table.add_row(view, fingerprint)
    table.add_row("protocol", manifest.protocol_hash)
    table.add_row("data version", manifest.data_version[:12])
    table.add_row("computed in", f"{manifest.seconds:.1f} s")
    _print(table, f"written to {folder}")


def report_ingested(clock: ReportClock, ingested: Ingested, config: dict[str, Any]) -> Report:
    """The report of an ingestion."""
    manifest = ingested.dataset.manifest
    figures = {
        "rows_read": ingested.rows_read,
        "already_there": ingested.already_there,
        "events": manifest.events,
        "users": manifest.users,
        "items": manifest.items,
        "quarantined": sum(ingested.quarantined.values()),
    }
    return clock.finish(
        config=_plain(config),
        protocol=manifest.ingest_time_rule,
        data_version=manifest.data_version,
        figures=figures,
    )


def report_features(clock: ReportClock, manifest: FeatureManifest, config: dict[str, Any]) -> Report:
    """The report of a feature pipeline; `pipeline_s` is the time it took when it ran."""
    return clock.finish(
        config=_plain(config),
        protocol=manifest.protocol,
        data_version=manifest.data_version,
        figures={"examples": manifest.examples, "pipeline_s": manifest.seconds},
    )


def _plain(config: dict[str, Any]) -> dict[str, Any]:
    """Paths as text, and what was not given left out."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in config.items() if value}


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _print(table: Table, last_line: str) -> None:
    """A path is never folded: people copy it."""
    Console(markup=False, highlight=False).print(table)
    print(last_line)
