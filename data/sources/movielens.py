"""MovieLens-100K: the only module that knows about films.

Reads the three files as the pinned asset has them (RecBole's atomic files, tab-separated, `name:type` headers).
"""

from datetime import datetime
from itertools import pairwise
from pathlib import Path

import polars as pl

from cluster.errors import TowerlineError
from data.quality.validation import EventRules
from data.schema import ATTRIBUTES, EVENT_TIME, ITEM_ID, TITLE, USER_ID, VALUE
from data.sources.location import find_files
from data.sources.tabular import FileSource

NAME = "movielens-100k"
SOURCE = "MovieLens-100K (GroupLens)"
RATING = "rating"
AGE_BANDS = [18, 25, 35, 45, 50, 56]
"""Lower bounds of the age bands after the first, as in GroupLens' own coding of later MovieLens sets."""
UNKNOWN = ("unknown", "unkonwn")
"""How the source spells a missing title, year or genre (item 267)."""


def ratings(folder: Path) -> FileSource:
    """The ratings, unread."""
    return FileSource(SOURCE, tuple(find_files(folder / "ml-100k.inter")), "CSV", delimiter="\t", quoted=False)


def event_rules(now: datetime) -> EventRules:
    """How ratings are events: the value is the rating (1 to 5), the time in epoch seconds."""
    columns = {
        USER_ID: "user_id:token",
        ITEM_ID: "item_id:token",
        VALUE: "rating:float",
        EVENT_TIME: "timestamp:float",
    }
    return EventRules(now=now, columns=columns, time_unit="s", event_type=RATING)


def read_items(folder: Path) -> pl.DataFrame:
    """Films with their title and the tokens `genre=...` and `decade=...`."""
    table = _read(folder / "ml-100k.item", ["item_id", "movie_title", "release_year", "class"])
    genres = pl.col("class").str.split(" ").list.eval(_token("genre", pl.element()))
    decade = (pl.col("release_year").cast(pl.Int64, strict=False) // 10 * 10).cast(pl.String) + "s"
    attributes = pl.concat_list(genres, pl.concat_list(_token("decade", decade))).list.drop_nulls()
    title = pl.when(~pl.col("movie_title").is_in(UNKNOWN)).then(pl.col("movie_title"))
    return table.select(ITEM_ID, title.alias(TITLE), attributes.alias(ATTRIBUTES))


def read_users(folder: Path) -> pl.DataFrame:
    """Users with the tokens `age=...` (a band), `gender=...` and `occupation=...`."""
    table = _read(folder / "ml-100k.user", ["user_id", "age", "gender", "occupation"])
    age = pl.col("age").cast(pl.Int64, strict=False)
    bands = [pl.when(age < high).then(pl.lit(f"{low}-{high - 1}")) for low, high in pairwise([0, *AGE_BANDS])]
    oldest = pl.when(age >= AGE_BANDS[-1]).then(pl.lit(f"{AGE_BANDS[-1]}+"))
    tokens = [
        _token("age", pl.coalesce(*bands, oldest)),
        _token("gender", pl.col("gender")),
        _token("occupation", pl.col("occupation")),
    ]
    return table.select(USER_ID, pl.concat_list(tokens).list.drop_nulls().alias(ATTRIBUTES))


def _token(name: str, value: pl.Expr) -> pl.Expr:
    return pl.when(value.is_not_null() & ~value.is_in(UNKNOWN) & (value != "")).then(pl.lit(f"{name}=") + value)


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    try:
        table = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except FileNotFoundError as error:
        raise TowerlineError(f"{path} does not exist; delete its folder and fetch the asset again") from error
    table = table.rename({name: name.split(":")[0] for name in table.columns})
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise TowerlineError(f"{path} has no column {missing[0]!r} (it has: {', '.join(table.columns)})")
    return table
