"""Small worlds for candidate sources: items are letters, a user is the word of what was met, oldest first."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl

from train.index import Codes
from train.vocabulary import Vocabulary

START = datetime(2024, 1, 1, tzinfo=UTC)
NOTHING: Codes = np.array([], dtype=np.int64)


def letters(word: str) -> Vocabulary:
    """A vocabulary whose codes are the places, from 1, in a word."""
    return Vocabulary(tuple(word), (), (), ())


def codes_of(word: str, vocabulary: Vocabulary) -> Codes:
    """The codes of a word."""
    return vocabulary.encode_items(pl.Series(list(word), dtype=pl.String))


def events_of(*words: str) -> pl.DataFrame:
    """One event a day, user after user."""
    rows = [(f"user {user}", letter) for user, word in enumerate(words) for letter in word]
    events = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    days = pl.int_range(pl.len(), dtype=pl.Int64)
    return events.with_columns(days.alias("sequence"), event_time=pl.lit(START) + days * timedelta(days=1))


def asking(*words: str, day: float = 1000.0) -> pl.DataFrame:
    """A feature row for each history, all at the same moment."""
    rows = {"history_items": [list(word) for word in words]}
    moment = pl.lit(START + timedelta(days=day)).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame(rows, schema={"history_items": pl.List(pl.String)}).with_columns(event_time=moment)


def random_words(users: int, alphabet: str, seed: int = 0) -> list[str]:
    """Words without repeated letters; some letters are frequent, and near ones come together."""
    random = np.random.default_rng(seed)
    places = np.arange(len(alphabet))
    words = []
    for _ in range(users):
        centre = random.exponential(len(alphabet) / 4) % len(alphabet)
        likely = np.exp(-np.abs(places - centre) / 3)
        size = int(random.integers(2, len(alphabet) // 2))
        words.append("".join(random.choice(list(alphabet), size, replace=False, p=likely / likely.sum())))
    return words
