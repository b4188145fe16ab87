"""The items that most events name: over all, or, if old ones count less, as of a moment."""

from datetime import timedelta
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
import polars as pl
import torch
from pydantic import BaseModel, ConfigDict, PositiveFloat, model_validator
from torch import Tensor

from data.schema import EVENT_TIME, ITEM_ID
from train.index import Codes, Floats
from train.models.catalogue_scorer import CatalogueScorer
from train.vocabulary import UNKNOWN, Vocabulary

Counts = npt.NDArray[np.float64]
MICROSECONDS_PER_DAY = timedelta(days=1) // timedelta(microseconds=1)


class PopularityConfig(BaseModel):
    """Which events count. With neither a half-life nor a window all training events do, whenever they were."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["popularity"] = "popularity"
    half_life_days: PositiveFloat | None = None
    """Of the events before the moment of asking, one so much older than another counts half as much."""
    window_days: PositiveFloat | None = None
    """Of the events before the moment of asking, only those of so many last days count."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.half_life_days is not None and self.window_days is not None:
            raise ValueError("half_life_days and window_days are both set; leave one out")
        return self


class Popularity(CatalogueScorer[PopularityConfig]):
    """Everybody who asks at the same moment gets the same items."""

    def __init__(self, config: PopularityConfig | None = None) -> None:
        super().__init__(config or PopularityConfig())
        self._codes = np.empty(0, dtype=np.int64)
        self._times = np.empty(0, dtype=np.int64)

    @classmethod
    def config_kind(cls) -> type[PopularityConfig]:
        """The class of `config`."""
        return PopularityConfig

    def learn(self, events: pl.DataFrame, vocabulary: Vocabulary) -> None:
        """Keep what happened and when."""
        codes, times = vocabulary.encode_items(events[ITEM_ID]), _microseconds(events)
        known = np.flatnonzero(codes != UNKNOWN)
        in_order = known[np.argsort(times[known], kind="stable")]
        self._codes, self._times = codes[in_order], times[in_order]

    def scores(self, rows: pl.DataFrame) -> Floats:
        """How many events named each item (B, I + 1): training events all, recent ones before each row's moment."""
        if self.config.half_life_days is None and self.config.window_days is None:
            return np.tile(self._counts(0, len(self._codes)).astype(np.float32), (rows.height, 1))
        return self._recent(_microseconds(rows))

    def similarities(self, items: Codes) -> Floats:
        """None (N, I + 1): being popular is nothing that two items share."""
        return np.full((len(items), self.vocabulary.num_items + 1), -np.inf, dtype=np.float32)

    def weights(self) -> dict[str, Tensor]:
        """The events."""
        return {"codes": torch.from_numpy(self._codes), "times": torch.from_numpy(self._times)}

    def take(self, weights: dict[str, Tensor]) -> None:
        """Become what `weights` was called on."""
        self._codes, self._times = weights["codes"].numpy(), weights["times"].numpy()

    def _recent(self, moments_B: Codes) -> Floats:
        """Goes through the events once, along the rows in the order of their moments."""
        scores_BI = np.empty((len(moments_B), self.vocabulary.num_items + 1), dtype=np.float32)
        seen_I, start, end, previous = self._counts(0, 0), 0, 0, int(moments_B.min()) if len(moments_B) else 0
        for row in np.argsort(moments_B, kind="stable"):
            moment = int(moments_B[row])
            until = int(np.searchsorted(self._times, moment))
            if self.config.window_days is not None:
                opening = moment - round(self.config.window_days * MICROSECONDS_PER_DAY)
                since = int(np.searchsorted(self._times, opening))
                seen_I += self._counts(end, until) - self._counts(start, since)
                start = since
            else:
                seen_I = seen_I * self._left(moment - previous) + self._counts(end, until, moment)
            scores_BI[row], end, previous = seen_I, until, moment
        return scores_BI

    def _counts(self, start: int, end: int, moment: int | None = None) -> Counts:
        """Events of each item code among these; as of `moment`, each has decayed since it happened."""
        size = self.vocabulary.num_items + 1
        left = None if moment is None else self._left(moment - self._times[start:end])
        return np.bincount(self._codes[start:end], left, minlength=size).astype(np.float64)

    def _left(self, microseconds: int | Codes) -> Counts:
        """The share of its weight that an event still has after this time."""
        assert self.config.half_life_days is not None
        return np.exp2(-np.asarray(microseconds) / (self.config.half_life_days * MICROSECONDS_PER_DAY))


def _microseconds(rows: pl.DataFrame) -> Codes:
    moments: Codes = rows[EVENT_TIME].dt.epoch("us").to_numpy()
    return moments
