"""The ledger: which variant of a data set is champion, and every promotion and rollback that made it so.

It is a registered model of MLflow, `<dataset>-champion`, with one version per entry: MLflow numbers versions itself and
writes a version with its tags in one transaction, on SQLite as on a server. An entry is only ever appended, and
appending it is all that makes a variant the champion: a kill leaves the champion of before or the new one, for both of
its models. An entry names the one that it follows. Of two writers that saw the same ledger the first takes effect; the
other's entry stays, without effect, and its writer is told.
"""

import getpass
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from cluster.errors import TowerlineError
from train.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
ENTRY_TAG = "entry"
PAGE = 1000
"""Versions asked for at once."""

APPEND_ATTEMPTS = 10


class Check(BaseModel):
    """A condition that a variant meets or not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    words: str
    """What is asked for and what was measured, with the numbers."""
    passed: bool
    segment: str | None = None
    """Of the users or items that it is about; None if about all."""

    def __str__(self) -> str:
        return f"{'passed' if self.passed else 'FAILED'}: {self.words}"


class GateReport(BaseModel):
    """What the gate found about a variant."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str
    against: str | None
    """The champion that it was compared with; None if there was none."""
    comparable: bool
    """Whether both were measured on the same cases, or there is nothing to compare with."""
    protocol_hash: str
    """Of the protocol that both were measured by."""
    protocol: str = ""
    """The same in words."""
    data_version: str = ""
    """Of the data set that they were measured on."""
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every condition is met."""
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """For people: segments that are no worse, of which there may be many, are one line."""
        lines = [str(check) for check in self.checks if check.segment is None or not check.passed]
        fine = [check.segment for check in self.checks if check.segment is not None and check.passed]
        return lines + ([f"passed: no segment of these is much worse: {', '.join(fine)}"] if fine else [])

    @property
    def failed(self) -> tuple[str, ...]:
        """The conditions that are not met, in words."""
        return tuple(check.words for check in self.checks if not check.passed)


class Change(BaseModel):
    """A promotion or rollback, as its writer asks for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["promotion", "rollback"]
    id: str
    """Of this attempt, whatever its number becomes."""
    who: str
    """user@host"""
    follows: int
    """Number of the entry that was in effect when this was written; 0 for none."""
    from_variant: str | None
    to_variant: str
    versions: Mapping[str, str]
    """Model name to registry version, of `to_variant`."""
    gate: GateReport | None
    """Of a promotion."""
    forced: str | None
    """Why a promotion was to happen although the gate did not pass."""


class Entry(Change):
    """A line of the ledger."""

    number: int
    """From 1, without gaps."""
    when: datetime
    """By MLflow's clock, UTC."""
    in_effect: bool
    """Whether it changed the champion: False if another entry came between."""


@dataclass(frozen=True)
class Ledger:
    """What a ledger holds at one moment."""

    dataset: str
    entries: Sequence[Entry]
    """All, oldest first."""

    @property
    def last(self) -> Entry | None:
        """The entry in effect, whose `to_variant` is the champion."""
        return next((entry for entry in reversed(self.entries) if entry.in_effect), None)

    @property
    def champion(self) -> str | None:
        """The variant that serves."""
        return self.last.to_variant if self.last else None

    def earlier(self) -> list[str]:
        """The champions before this one that a rollback leads to, the next first: one rolled back from is not here."""
        line: list[str] = []
        for entry in self.entries:
            if entry.in_effect:
                if entry.kind == "rollback" and entry.to_variant in line:
                    line = line[: line.index(entry.to_variant)]
                line = [variant for variant in line if variant != entry.to_variant] + [entry.to_variant]
        return line[-2::-1]

    def champions(self) -> list[str]:
        """All that ever were champion, the newest first."""
        in_order = (entry.to_variant for entry in reversed(self.entries) if entry.in_effect)
        return list(dict.fromkeys(in_order))


def ledger_name(dataset: str) -> str:
    """Name of the registered model that is the ledger."""
    return f"{dataset}-{CHAMPION}"


def read_ledger(tracking_uri: str, dataset: str) -> Ledger:
    """The ledger of a data set; empty if nothing was ever promoted."""
    return Ledger(dataset, _entries(versions_of(connect(tracking_uri), ledger_name(dataset))))


def versions_of(client: "MlflowClient", name: str) -> "list[ModelVersion]":
    """Every version of a registered model, in order; none if there is no such model."""
    versions: list[ModelVersion] = []
    token = None
    while True:
        page = client.search_model_versions(f"name = '{name}'", PAGE, ["version_number ASC"], token)
        versions += page
        token = page.token
        if not token:
            return versions


def newest_number(client: "MlflowClient", dataset: str) -> int:
    """Number of the newest entry, in effect or not; 0 if there is none. One small query, for who looks often."""
    newest = client.search_model_versions(f"name = '{ledger_name(dataset)}'", 1, ["version_number DESC"])
    return int(newest[0].version) if newest else 0


def append(tracking_uri: str, dataset: str, change: Change, shown_as: "ModelVersion") -> Ledger:
    """Write an entry; returns the ledger with it. `shown_as`: the model that MLflow shows behind it.

    Raises:
        TowerlineError: another entry came between; this one is in the ledger, without effect.
    """
    client = connect(tracking_uri)
    _make(client, ledger_name(dataset))
    _write(client, dataset, change, shown_as)
    ledger = read_ledger(tracking_uri, dataset)
    written = next(entry for entry in ledger.entries if entry.id == change.id)
    if not written.in_effect:
        assert ledger.last is not None
        raise TowerlineError(
            f"data set {dataset!r}: {ledger.last.who} made variant {ledger.last.to_variant} champion meanwhile (entry "
            f"{ledger.last.number} of the ledger), so the {change.kind} of {change.to_variant} (entry "
            f"{written.number}) has no effect; look at `python -m jobs.list_promotions --dataset {dataset}` and, if "
            "you still want it, run the same command again"
        )
    return ledger


def new_change_id() -> str:
    """An id that no other attempt has."""
    return uuid.uuid4().hex


def whoami() -> str:
    """user@host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # A container may run as a number that has no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _write(client: "MlflowClient", dataset: str, change: Change, shown_as: "ModelVersion") -> None:
    """Add the version. MLflow gives up after some collisions with other writers: not one entry is to be lost to them.

    An attempt that did arrive although its answer was lost makes the next one a second entry of the same id.
    """
    from mlflow.exceptions import MlflowException

    tags = {ENTRY_TAG: change.model_dump_json(), "variant": change.to_variant, "kind": change.kind, "who": change.who}
    for attempt in range(1, APPEND_ATTEMPTS + 1):
        try:
            client.create_model_version(ledger_name(dataset), str(shown_as.source), shown_as.run_id, tags=tags)
        except MlflowException as error:
            if attempt == APPEND_ATTEMPTS:
                raise TowerlineError(
                    f"data set {dataset!r}: the ledger took no entry in {attempt} attempts: {error}; nothing was "
                    "changed, try again"
                ) from error
        else:
            return


def _make(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="The ledger: one version per promotion or rollback.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _entries(versions: "Sequence[ModelVersion]") -> list[Entry]:
    """In effect is what follows the entry that was in effect before it."""
    entries: list[Entry] = []
    last, met = 0, set[str]()
    for version in versions:
        change = Change.model_validate_json(version.tags[ENTRY_TAG])
        number = int(version.version)
        if change.id in met:
            continue
        in_effect = change.follows == last
        last = number if in_effect else last
        met.add(change.id)
        when = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        entries.append(Entry(**dict(change), number=number, when=when, in_effect=in_effect))
    return entries
