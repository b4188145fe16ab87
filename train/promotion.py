"""Who becomes champion: promotion through the gate, and rollback. Both write one entry of the ledger, and that is all.

The alias `champion` of both registered models is set afterwards, for people who look at MLflow or load
`models:/<name>@champion`; nothing here reads it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import TowerlineError
from train.card import Kind
from train.common_questions import Candidate, on_common_questions
from train.gate import GateConfig, judge, same_questions
from train.ledger import (
    CHAMPION,
    Change,
    Entry,
    GateReport,
    Ledger,
    append,
    new_change_id,
    read_ledger,
    whoami,
)
from train.registry import RegisteredPair, find_pair, read_cards, registered_name
from train.tracking import connect


@dataclass(frozen=True)
class Decision:
    """What became of a promotion."""

    dataset: str
    report: GateReport
    entry: Entry | None
    """Of the ledger; None if the gate did not let it through."""

    def lines(self) -> list[str]:
        """The decision in words, condition by condition."""
        variant, champion = self.report.variant, self.report.against
        lines = self.report.lines()
        if self.entry is None:
            stays = f"{champion} stays champion" if champion else "there is no champion"
            how = f"python -m jobs.promote_model --dataset {self.dataset} --variant {variant} --force REASON"
            return [*lines, f"variant {variant} is registered, not promoted: {stays}; `{how}` would promote it"]
        forced = f", forced: {self.entry.forced}" if self.entry.forced else ""
        return [*lines, f"variant {variant} is champion now (entry {self.entry.number} of the ledger{forced})"]


def promote(
    tracking_uri: str,
    dataset: str,
    variant: str,
    config: GateConfig | None = None,
    force: str | None = None,
    *,
    home: Path | None = None,
) -> Decision:
    """Make a registered variant champion if it passes the gate, or if `force` says why it is to be without.

    `home`: where the data set is, to ask a champion that was measured on an earlier version of it again; without it
    such a champion cannot be compared with.

    Raises:
        TowerlineError: there is no such variant, it cannot be served by this code or is champion already; somebody
            else changed the champion meanwhile; `force` is no reason.
    """
    if force is not None and not force.strip():
        raise TowerlineError("--force is empty; it needs a reason, which is kept in the ledger")
    pair = find_pair(tracking_uri, dataset, variant)
    challenger = Candidate.read(tracking_uri, pair)
    ledger = read_ledger(tracking_uri, dataset)
    if ledger.champion == pair.variant:
        raise TowerlineError(f"variant {pair.variant} is champion of data set {dataset!r} already")
    report = _judged(tracking_uri, ledger, challenger, config or GateConfig(), home)
    if not report.passed and force is None:
        return Decision(dataset, report, None)
    reason = None if report.passed else force
    entry = _write(tracking_uri, ledger, pair, kind="promotion", gate=report, forced=reason)
    return Decision(dataset, report, entry)


def roll_back(tracking_uri: str, dataset: str, to: str | None = None) -> Entry:
    """Make the champion before this one champion again, or the earlier one whose name begins with `to`.

    Raises:
        TowerlineError: there is none, or it cannot be served by this code; somebody else changed the champion
            meanwhile.
    """
    ledger = read_ledger(tracking_uri, dataset)
    pair = find_pair(tracking_uri, dataset, _target(ledger, to))
    read_cards(tracking_uri, pair)
    return _write(tracking_uri, ledger, pair, kind="rollback", gate=None, forced=None)


def _target(ledger: Ledger, to: str | None) -> str:
    how = f"`python -m jobs.list_promotions --dataset {ledger.dataset}` lists all"
    if ledger.champion is None:
        raise TowerlineError(f"data set {ledger.dataset!r} has no champion to roll back from")
    others = [variant for variant in ledger.champions() if variant != ledger.champion]
    if to is None:
        if not ledger.earlier():
            left = f"; name one of those that were rolled back with --to: {', '.join(others)}" if others else ""
            raise TowerlineError(f"there was no champion of data set {ledger.dataset!r} before {ledger.champion}{left}")
        return ledger.earlier()[0]
    found = [variant for variant in others if to and variant.startswith(to)]
    if len(found) != 1:
        raise TowerlineError(
            f"--to is {to!r}, expected the beginning of the name of one earlier champion of data set "
            f"{ledger.dataset!r} (there are: {', '.join(others) or 'none'}); {how}; what never was champion is "
            f"promoted, with `python -m jobs.promote_model --dataset {ledger.dataset}`"
        )
    return found[0]


def _judged(
    tracking_uri: str, ledger: Ledger, challenger: Candidate, config: GateConfig, home: Path | None
) -> GateReport:
    """What the gate finds: the champion asked again if it was measured otherwise, and no bar if it cannot be served."""
    if ledger.champion is None:
        return judge(challenger.measured, None, config)
    try:
        champion = Candidate.read(tracking_uri, find_pair(tracking_uri, ledger.dataset, ledger.champion))
    except TowerlineError as error:
        return judge(challenger.measured, None, config, str(error))
    if same_questions(challenger.measured, "", champion.measured).passed or home is None:
        return judge(challenger.measured, champion.measured, config)
    try:
        new, old = on_common_questions(tracking_uri, home, [challenger, champion], config.min_new_users)
    except TowerlineError as error:
        return judge(challenger.measured, champion.measured, config, incomparable=str(error))
    return judge(challenger.measured, old, config, asked_alike=new)


def _write(
    tracking_uri: str,
    ledger: Ledger,
    pair: RegisteredPair,
    *,
    kind: Literal["promotion", "rollback"],
    gate: GateReport | None,
    forced: str | None,
) -> Entry:
    change = Change(
        kind=kind,
        id=new_change_id(),
        who=whoami(),
        follows=ledger.last.number if ledger.last else 0,
        from_variant=ledger.champion,
        to_variant=pair.variant,
        versions={str(name): version for name, version in pair.versions.items()},
        gate=gate,
        forced=forced,
    )
    written = append(tracking_uri, ledger.dataset, change, pair.models["two-tower"])
    _show_in_mlflow(tracking_uri, ledger.dataset, pair.versions)
    return next(entry for entry in written.entries if entry.id == change.id)


def _show_in_mlflow(tracking_uri: str, dataset: str, versions: Mapping[Kind, str]) -> None:
    client = connect(tracking_uri)
    for kind, version in versions.items():
        client.set_registered_model_alias(registered_name(dataset, kind), CHAMPION, version)
