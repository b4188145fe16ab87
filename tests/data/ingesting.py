"""What the tests of ingestion read."""

from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from data.dataset import Dataset
from data.quality.validation import EventRules

NOW = datetime(2024, 6, 1, tzinfo=UTC)
RULES = EventRules(now=NOW, columns={"user_id": "who", "item_id": "what", "event_time": "when"}, time_unit="s")
HEADER = "who,what,when,session\n"
GOOD = "".join(
    f"{user},{item},{1_700_000_000 + second},s\n" for user in ("a b", "Ж/'") for second, item in enumerate("xyz")
)


def events_file(folder: Path, text: str = HEADER + GOOD, name: str = "events.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def raw_events(users: int, events: int, first: int = 0) -> pl.DataFrame:
    """Raw rows in the columns of RULES, no two alike."""
    numbers = range(first, first + events)
    return pl.DataFrame(
        {
            "who": [f"u{number * 7919 % users}" for number in numbers],
            "what": [f"i{number * 104_729 % 37}" for number in numbers],
            "when": [1_600_000_000 + number // 3 for number in numbers],
            "number": list(numbers),
        }
    )


def files_of(dataset: Dataset) -> dict[str, bytes]:
    """Content of everything that does not say when it was made."""
    names = (path for path in dataset.path.rglob("*") if path.is_file() and "validation" not in path.name)
    return {str(path.relative_to(dataset.path)): path.read_bytes() for path in names}
