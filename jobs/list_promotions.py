"""The ledger of a data set: every promotion and rollback, who made it, and what the gate found."""

import argparse
from typing import TYPE_CHECKING

from cluster.job import run_job
from cluster.settings import Settings

if TYPE_CHECKING:
    from train.ledger import Entry


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.list_promotions", description=__doc__)
    parser.add_argument("--dataset", required=True, help="name of a data set")
    parser.add_argument("--json", action="store_true", help="every entry in full, as a JSON array, oldest first")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Print the ledger, oldest first."""
    asked, settings = parse(arguments), Settings()

    from pydantic import TypeAdapter

    from train.ledger import Entry, read_ledger

    ledger = read_ledger(settings.tracking_uri, asked.dataset)
    if asked.json:
        print(TypeAdapter(list[Entry]).dump_json(list(ledger.entries), indent=2).decode())
        return
    for entry in ledger.entries:
        print("\n".join(_told(entry)))
    print(f"champion of data set {asked.dataset}: {ledger.champion or 'none'}")


def _told(entry: "Entry") -> list[str]:
    """One entry; conditions that were not met are named."""
    effect = "" if entry.in_effect else " (without effect: another entry came first)"
    moved = f"{entry.from_variant or 'nothing'} -> {entry.to_variant}{effect}"
    lines = [f"{entry.number:3d}  {entry.when:%Y-%m-%d %H:%M:%S} UTC  {entry.kind} by {entry.who}: {moved}"]
    if entry.gate is not None:
        met = sum(check.passed for check in entry.gate.checks)
        on = f", data version {entry.gate.data_version[:12]}" if entry.gate.data_version else ""
        lines.append(
            f"     gate: {met} of {len(entry.gate.checks)} conditions met, protocol {entry.gate.protocol_hash}{on}"
        )
        lines += [f"     FAILED: {words}" for words in entry.gate.failed]
    return lines + ([f"     forced: {entry.forced}"] if entry.forced else [])


if __name__ == "__main__":
    run_job(main)
