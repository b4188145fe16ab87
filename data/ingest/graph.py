"""An ingestion as a graph: parts → pieces → buckets of users → buckets of items → a new version of the data set.

Each step is a map over small descriptions of work (`data.parallel`); rows go through files in the new version's
temporary folder and never through the process that drives it.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from cluster.errors import TowerlineError
from data.buckets import buckets_for
from data.content import version_of
from data.dataset import INGEST_TIME_IS_EVENT_TIME, MANIFEST_FILE, Dataset, DatasetManifest, write_descriptions
from data.expectations import DatasetExpectations, TableName
from data.ingest.attributes import Entities
from data.ingest.bucket_files import IdChecker, ItemMerger, OldIds, UserBucket, UserMerger
from data.ingest.parts import NumberedPart, PartRead, PartReader, RepeatedReader, next_file, numbered_parts
from data.ingest.progress import progress
from data.ingest.quarantine import write_quarantine
from data.parallel import Run
from data.quality.findings import Findings
from data.quality.rules import Context, without_value
from data.quality.validation import EventRules, resolve_columns
from data.quality.validation_report import HTML_FILE, ValidationReport, conclude
from data.schema import EVENT_ID, INGEST_TIME, ITEM_ID, USER_ID
from data.sources.source import Source
from data.splits import require_users

MINIMUM_USERS = 2
"""Users with enough events to be held out that a data set must have, for any later job to be able to evaluate."""

Reasons = Counter[tuple[str, str]]
"""(table, reason) → rows in quarantine."""


@dataclass(frozen=True)
class Built:
    """A new version, complete but not yet visible."""

    manifest: DatasetManifest
    rows_read: int
    already_there: int
    """Events of the source that the version before has."""
    reasons: Reasons


@dataclass(frozen=True)
class IngestionGraph:
    """What is ingested, and into what."""

    name: str
    source: Source
    label: str
    """What is read, for people."""
    rules: EventRules
    expectations: DatasetExpectations
    items: Entities
    users: Entities
    previous: Dataset | None
    """The version that the events are added to; None to begin anew."""
    last_report: ValidationReport | None
    """Of the version before this one."""
    version: Path
    """Temporary folder of the new version."""
    refusals: Path
    """Folder for the report of a validation that was not passed."""
    run: Run

    def build(self) -> Built:
        """Everything but making it current. Raises TowerlineError for whatever is wrong with the source as a whole."""
        self._work.mkdir()
        parts = numbered_parts(self.source, self.previous.manifest.next_file if self.previous else 0)
        read = self._read(parts)
        tables = write_descriptions(self.version, self.items.table, self.users.table)
        buckets = self._merge_users(read)
        require_users(sum(b.held_out_users for b in buckets), MINIMUM_USERS, sum(b.users for b in buckets))
        repeated, findings = self._read_repeated(parts, buckets)
        report = self._report([*(part.findings for part in read), *findings])
        self._require_passed(report)
        merger = ItemMerger(self.version, len(buckets), tuple(bucket.by_item for bucket in buckets))
        items = sum(self.run(merger, range(len(buckets))))
        quarantined = write_quarantine(self.version, self._work, parts, self.items, self.users, previous=self.previous)
        manifest = self._manifest(parts, buckets, tables, items, quarantined)
        (self.version / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
        report.write(self.version)
        shutil.rmtree(self._work)
        rows_read, already_there = sum(p.rows_read for p in read), sum(b.already_there for b in buckets)
        return Built(manifest, rows_read, already_there, self._reasons(read, repeated))

    @property
    def _work(self) -> Path:
        """For what is needed no longer than the ingestion lasts."""
        return self.version / "work"

    @cached_property
    def _columns(self) -> dict[str, str]:
        return resolve_columns(self.rules.columns, self.source.columns(), self.source.name)

    def _read(self, parts: Sequence[NumberedPart]) -> list[PartRead]:
        """All parts, read. Raises TowerlineError if there are no events, or too many broken rows."""
        tables = {f"items.{ITEM_ID}": self.items.table, f"users.{USER_ID}": self.users.table}
        known = {name: table.to_series(0) for name, table in tables.items() if not table.is_empty()}
        reader = PartReader(
            folder=self._work,
            source=self.source.name,
            has_types=self.source.has_types,
            columns=self._columns,
            rules=self.rules,
            expectations=self.expectations.events,
            context=Context(self.rules.now, known),
        )
        with progress(self._work, self.source.name):
            read = sorted(self.run(reader, parts), key=lambda part: part.number)
        _require_events(self.source.name, read)
        self._require_passed(self._report([part.findings for part in read]))
        return read

    def _merge_users(self, read: Sequence[PartRead]) -> list[UserBucket]:
        """The buckets of users, written; again if so many events were repeated that there are fewer buckets."""
        old = self.previous.manifest.events if self.previous else 0
        events = old + sum(part.good for part in read)
        buckets = self._merge_users_into(read, buckets_for(events))
        unique = sum(bucket.events for bucket in buckets)
        if buckets_for(unique) == len(buckets):
            return buckets
        for bucket in buckets:
            bucket.remove(self.version)
        return self._merge_users_into(read, buckets_for(unique))

    def _merge_users_into(self, read: Sequence[PartRead], buckets: int) -> list[UserBucket]:
        merger = UserMerger(
            version=self.version,
            folder=self._work,
            buckets=buckets,
            pieces=tuple(piece for part in read for piece in part.by_user),
            repeated_ids=self._repeated_ids(read, buckets) if EVENT_ID in self._columns else None,
            previous=self.previous,
            expectations=self.expectations.events,
        )
        return sorted(self.run(merger, range(buckets)), key=lambda bucket: bucket.bucket)

    def _repeated_ids(self, read: Sequence[PartRead], buckets: int) -> tuple[Path, ...]:
        pieces = tuple(piece for part in read for piece in part.by_id)
        old: list[Path] = []
        if self.previous is not None:
            old = sorted(self.run(OldIds(self._work, self.previous), range(self.previous.manifest.buckets)))
        found = self.run(IdChecker(self._work, buckets, pieces, tuple(old)), range(buckets))
        return tuple(sorted(path for path in found if path is not None))

    def _read_repeated(
        self, parts: Sequence[NumberedPart], buckets: Sequence[UserBucket]
    ) -> tuple[Counter[str], list[Findings]]:
        """The rows of repeated events, from the parts that hold any, go to quarantine."""
        files = tuple(bucket.repeated for bucket in buckets if bucket.repeated)
        numbers = frozenset[int]().union(*(bucket.repeated_in for bucket in buckets))
        here = [part for part in parts if part.file in numbers]
        wanted = here if numbers <= {part.file for part in parts} else parts
        results = list(self.run(RepeatedReader(self._work, self.expectations.events, files), wanted)) if files else []
        return sum((reasons for reasons, _ in results), Counter[str]()), [findings for _, findings in results]

    def _manifest(
        self,
        parts: Sequence[NumberedPart],
        buckets: Sequence[UserBucket],
        tables: Sequence[pa.Table],
        items: int,
        quarantined: int,
    ) -> DatasetManifest:
        return DatasetManifest(
            name=self.name,
            data_version=version_of((bucket.content for bucket in buckets), tables),
            buckets=len(buckets),
            events=sum(bucket.events for bucket in buckets),
            users=sum(bucket.users for bucket in buckets),
            held_out_users=sum(bucket.held_out_users for bucket in buckets),
            items=items,
            quarantined=quarantined,
            first_event_time=min(bucket.first for bucket in buckets if bucket.first),
            last_event_time=max(bucket.last for bucket in buckets if bucket.last),
            next_file=next_file(parts, self.previous.manifest.next_file if self.previous else 0),
            ingest_time_rule=self._ingest_time_rule(),
            source=self.label,
        )

    def _require_passed(self, report: ValidationReport) -> None:
        """Raise TowerlineError if anything passed its limit; the report is written for whoever looks into it."""
        try:
            report.raise_if_failed()
        except TowerlineError as error:
            self.refusals.mkdir(parents=True, exist_ok=True)
            report.write(self.refusals)
            raise TowerlineError(f"{error}; what came in: {self.refusals / HTML_FILE}") from error

    def _report(self, events: Sequence[Findings]) -> ValidationReport:
        findings: dict[TableName, Findings] = {"events": sum(events, Findings())}
        if self.items.findings is not None:
            findings["items"] = self.items.findings
        if self.users.findings is not None:
            findings["users"] = self.users.findings
        return conclude(self.expectations, findings, dataset=self.name, now=self.rules.now, previous=self.last_report)

    def _reasons(self, read: Sequence[PartRead], repeated: Counter[str]) -> Reasons:
        events = sum((part.reasons for part in read), repeated)
        reasons: Reasons = Counter({("events", reason): count for reason, count in events.items()})
        described = (("items", self.items, self.expectations.items), ("users", self.users, self.expectations.users))
        for table, entities, expected in described:
            reasons.update((table, without_value(row.reason, expected.rules)) for row in entities.broken)
        return reasons

    def _ingest_time_rule(self) -> str:
        known = self._columns.get(INGEST_TIME)
        rule = f"ingest_time from column {known!r}" if known else INGEST_TIME_IS_EVENT_TIME
        before = self.previous.manifest.ingest_time_rule if self.previous else rule
        return rule if rule in before.split("; then ") else f"{before}; then {rule}"


def _require_events(source: str, read: Sequence[PartRead]) -> None:
    rows_read = sum(part.rows_read for part in read)
    if not rows_read:
        raise TowerlineError(f"{source} is empty: it has no rows; pass one with events")
    if not any(part.good for part in read):
        reason, count = sum((part.reasons for part in read), Counter[str]()).most_common(1)[0]
        first = next(part.first_broken for part in read if part.first_broken)
        raise TowerlineError(
            f"{source}: none of its {rows_read} rows is an event; {count} of them: {reason} (line {first.line}: "
            f"{first.row[:200]}). Check --columns and --time-unit"
        )
