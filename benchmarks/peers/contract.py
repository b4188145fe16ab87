"""The files that pass between a benchmark and the process of one system; needs polars and the standard library.

    <data>/{train,validation,fold-in,test}.parquet            user, item, time, order, value (`EVENT_COLUMNS`)
    <run>/task.json                                           what to do (`Task`)
    <run>/lists.parquet, checked.parquet, answer.json         what came of it (`Task.answer`)

A runner learns from `Task.fitted()`, may choose its epoch by the validation events, and names the items that it would
show to the users of `Task.asked()`, best first, none that the user met in `Task.history()`. It leaves out users that
it knows nothing of; the benchmark gives those the most popular items, whatever the system.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

EVENT_COLUMNS = ["user", "item", "time", "order", "value"]
"""Strings, strings, microseconds since 1970 UTC, rank among all events (ties in time are broken), a number."""

TASK_FILE, LISTS_FILE, CHECKED_FILE, ANSWER_FILE = "task.json", "lists.parquet", "checked.parquet", "answer.json"


@dataclass(frozen=True)
class Task:
    """One training of one system and the lists it is asked for."""

    run: str
    """Folder of the answer."""
    data: str
    """Folder of the events."""
    system: str
    settings: dict[str, Any]
    seed: int
    target: str
    """The held-out events to be foretold: `validation` while settings are searched, else `test`."""
    trains_on_validation: bool
    """Whether the validation events are learnt from before test lists are made, or feed the history only."""
    count: int = 100
    """Items in a list."""
    threads: int = 1
    extra: dict[str, str] = field(default_factory=dict)
    """For systems of the benchmark's own project."""
    started: float = field(default_factory=time.monotonic, compare=False)

    @classmethod
    def read(cls, run: Path) -> "Task":
        """The task in a folder; the clock starts."""
        return cls(**json.loads((run / TASK_FILE).read_text()))

    def write(self) -> None:
        """Make the folder and put the task there."""
        values = {name: value for name, value in asdict(self).items() if name != "started"}
        Path(self.run).mkdir(parents=True, exist_ok=True)
        (Path(self.run) / TASK_FILE).write_text(json.dumps(values, indent=1))

    def events(self, split: str) -> pl.DataFrame:
        """`EVENT_COLUMNS` of a split, in order."""
        return pl.read_parquet(Path(self.data) / f"{split}.parquet").sort("order")

    @cached_property
    def train(self) -> pl.DataFrame:
        """The training events, in order."""
        return self.events("train")

    @cached_property
    def validation(self) -> pl.DataFrame:
        """The validation events, in order."""
        return self.events("validation")

    @cached_property
    def told(self) -> pl.DataFrame:
        """What is known of users whom nobody may learn from, in order: none where everybody trains."""
        return self.events("fold-in")

    def fitted(self) -> pl.DataFrame:
        """What the lists are learnt from at last."""
        return self.history() if self.trains_on_validation and self.told.is_empty() else self.train

    def history(self) -> pl.DataFrame:
        """All that had happened when the lists are asked for: it feeds histories and masks items."""
        if not self.told.is_empty():
            return pl.concat([self.train, self.told]).sort("order")
        return self.train if self.target == "validation" else pl.concat([self.train, self.validation]).sort("order")

    def asked(self, known: pl.Series) -> list[str]:
        """Users to make lists for, as far as they are known."""
        users = self.events(self.target)["user"].unique()
        return sorted(users.filter(users.is_in(known.unique().implode())).to_list())

    def answer(
        self,
        lists: Mapping[str, Sequence[str]],
        own: Mapping[str, float] | None = None,
        checked: pl.DataFrame | None = None,
        **said: float,
    ) -> None:
        """Write what came of it; the last file to appear is the answer.

        `lists`: items by user. `own`: metrics as the system's own library measures them over the held-out events
        `checked` (see `checkable`). `said`: what else is to say, such as `epochs`.
        """
        frame = pl.DataFrame(
            {"user": list(lists), "items": [list(items) for items in lists.values()]},
            schema={"user": pl.String, "items": pl.List(pl.String)},
        )
        frame.write_parquet(Path(self.run) / LISTS_FILE)
        if checked is not None:
            checked.select("user", "item").write_parquet(Path(self.run) / CHECKED_FILE)
        answer = {"seconds": time.monotonic() - self.started, "own": dict(own or {}), **said}
        part = Path(self.run) / f"{ANSWER_FILE}.part"
        part.write_text(json.dumps(answer, indent=1))
        part.replace(part.with_suffix(""))


def checkable(held_out: pl.DataFrame, history: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """The held-out events that every library can score: of users and items among `known`, and not met before.

    Libraries differ in what they do about the others, so their own metrics are compared over these.
    """
    of_known = held_out.filter(
        pl.col("user").is_in(known["user"].unique().implode()) & pl.col("item").is_in(known["item"].unique().implode())
    )
    unmet = of_known.join(history, on=["user", "item"], how="anti", maintain_order="left")
    return unmet.unique(["user", "item"], maintain_order=True)
