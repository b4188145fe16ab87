"""How models are measured, as objects: which events train, which are asked for, and what is known at that moment.

A protocol is frozen, and its hash stands beside every number: it changes with the protocol's class, its parameters and
`RULES`, the version of all rules that this package measures by. Numbers of two hashes are never compared.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Annotated, ClassVar, Literal, Protocol, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

from cluster.errors import TowerlineError
from data.features import NEVER
from data.known_events import KnownEvents
from data.schema import EVENT_TIME, INGEST_TIME, ITEM_ID, SEQUENCE, SOURCE_ROW, SPLIT, USER_ID, VALUE
from data.splits import FOLD_IN, TEST, TOTAL_ORDER, TRAIN, UNUSED, VALIDATION, assign_splits

RULES = 1
"""Raised with every change of a rule that changes figures: of the splits here, the metrics, the masking, the ties."""

LIST_LENGTH = 100
"""Items that a recommender is asked for."""

QUESTION = (USER_ID, EVENT_TIME, SOURCE_ROW, SEQUENCE, ITEM_ID)
"""Columns of a question: a user, the moment it is asked at, and the list of the items that are the right answers."""

_RANKING = (
    "the full catalogue is ranked, ties by item code, with the items of the user's earlier events masked, so that an "
    f"item met before counts as a miss; lists have {LIST_LENGTH} places, and what is not among them has no reciprocal "
    "rank and no precision"
)

Share = Annotated[float, Field(gt=0, lt=1)]


class EvaluationProtocol(BaseModel, ABC):
    """What all protocols have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    truncated_recall: ClassVar[bool] = False
    """Whether Recall@k is divided by min(k, positives) instead of by the positives."""
    main_metrics: ClassVar[tuple[str, ...]] = ("ndcg@10", "recall@10")
    """What segments and pairs of models are compared by; the first decides."""
    new_users: ClassVar[bool] = False
    """Whether nobody who is asked may be learnt from."""

    @property
    @abstractmethod
    def words(self) -> str:
        """The protocol for people."""

    @property
    def hash(self) -> str:
        """Twelve hex digits of all that decides the figures."""
        decisive = {"protocol": type(self).__name__, "rules": RULES, **self.model_dump(mode="json")}
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:12]

    @abstractmethod
    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events in the total order with `split`: train, validation, test, fold-in or unused.

        `events`: user_id, item_id, event_time, source_row and value at least, of all users. A `split` there was is
        replaced.
        """

    @abstractmethod
    def questions(self, assigned: pl.DataFrame, split: str) -> pl.DataFrame:
        """What is asked on a split of the events that `assign` gave: columns `QUESTION`, by user."""

    def visible(self, assigned: pl.DataFrame) -> pl.DataFrame:
        """Of the events that `assign` gave, those that may be known to somebody who is asked, if they came before."""
        return assigned.filter(pl.col(SPLIT) != UNUSED)


class LeaveOneOut(EvaluationProtocol):
    """Time-ordered leave-one-out, RecBole's `LS` with `TO`."""

    kind: Literal["leave-one-out"] = "leave-one-out"
    cut_off: Annotated[int, Field(ge=0, le=2)] = 0
    """How many of every user's last events are left out, as if they had not happened yet."""

    @property
    def words(self) -> str:
        """The protocol for people."""
        before = f"without the last {self.cut_off} of every user's events, " if self.cut_off else ""
        return (
            f"time-ordered leave-one-out: {before}per user the last event is the test, the one before it selects "
            "models, all earlier ones train; a question's history and the features of its moment hold all that "
            "happened before it, the validation event included; order is (event_time, source_row); users with fewer "
            f"than 3 events only train; {_RANKING}"
        )

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """See `EvaluationProtocol`."""
        return assign_splits(events, self.cut_off)

    def questions(self, assigned: pl.DataFrame, split: str) -> pl.DataFrame:
        """One per held-out event, at its moment."""
        return _asked(assigned, split).select(*QUESTION[:-1], pl.concat_list(ITEM_ID)).sort(USER_ID)


LEAVE_ONE_OUT = LeaveOneOut()
"""What models are chosen and registered by, unless another is asked for."""


class NewEvents(EvaluationProtocol):
    """Leave-one-out, asked only for events that came to a data set after somebody saw all of it.

    What may be asked of a model that has seen the data set as it was then, or that went on from one. The order in
    which events came decides, not their times: what somebody has learnt they must not be asked for.
    """

    kind: Literal["new-events"] = "new-events"
    known: KnownEvents
    """What was seen."""

    @property
    def words(self) -> str:
        """The protocol for people."""
        return (
            f"{LEAVE_ONE_OUT.words}; of the held-out events only those are asked for that came after the "
            f"{self.known.events:,} events of data version {self.known.label}, the others are told and train nobody"
        )

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """See `EvaluationProtocol`: as leave-one-out, with known events that would be held out as fold-in."""
        is_told = pl.col(SPLIT).is_in([VALIDATION, TEST]) & self.known.are_known
        split = pl.when(is_told).then(pl.lit(FOLD_IN)).otherwise(SPLIT)
        return LEAVE_ONE_OUT.assign(events).with_columns(split.alias(SPLIT))

    def questions(self, assigned: pl.DataFrame, split: str) -> pl.DataFrame:
        """The questions of leave-one-out, but for the known events."""
        return LEAVE_ONE_OUT.questions(assigned, split)


class GlobalTime(EvaluationProtocol):
    """One moment for everybody: what happened before trains, what happened after is asked for."""

    kind: Literal["global-time"] = "global-time"
    test_share: Share = 0.1
    """Of all events, the last ones."""
    validation_share: Share = 0.1
    """Of all events, the last ones before the test."""

    @model_validator(mode="after")
    def _something_must_train(self) -> Self:
        if self.test_share + self.validation_share >= 1:
            raise ValueError(
                f"test_share {self.test_share} and validation_share {self.validation_share} leave nothing to train on; "
                "their sum must be below 1"
            )
        return self

    @property
    def words(self) -> str:
        """The protocol for people."""
        return (
            f"global time split: the last {_percent(self.test_share)} of all events are the test, the "
            f"{_percent(self.validation_share)} before them select models, all earlier ones train; order is "
            "(event_time, source_row); a user is asked once, as of the first moment of the split, for all distinct "
            "items of that user's events in it; users without an earlier event are kept; recall is divided by the "
            f"number of those items; {_RANKING}"
        )

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """See `EvaluationProtocol`. Raises TowerlineError if a split would be empty."""
        test, validation = (round(events.height * share) for share in (self.test_share, self.validation_share))
        train = events.height - test - validation
        if min(train, validation, test) < 1:
            raise TowerlineError(
                f"a global time split of {events.height} events with test_share={self.test_share} and "
                f"validation_share={self.validation_share} has {train} to train, {validation} to validate and {test} "
                "to test; ingest more events or take larger shares"
            )
        place = pl.int_range(pl.len())
        split = pl.when(place < train).then(pl.lit(TRAIN)).when(place < train + validation).then(pl.lit(VALIDATION))
        return events.sort(TOTAL_ORDER).with_columns(split.otherwise(pl.lit(TEST)).alias(SPLIT))

    def questions(self, assigned: pl.DataFrame, split: str) -> pl.DataFrame:
        """One per user with events in the split, as of its first moment."""
        asked = _asked(assigned, split).sort(SEQUENCE)
        moment = [pl.lit(asked[name].first(), dtype=asked.schema[name]).alias(name) for name in QUESTION[1:4]]
        targets = asked.group_by(USER_ID).agg(pl.col(ITEM_ID).unique(maintain_order=True))
        return targets.with_columns(moment).select(QUESTION).sort(USER_ID)


class StrongGeneralisation(EvaluationProtocol):
    """Users nobody trained on: most of what they chose is told, the rest asked for (Liang et al., WWW 2018)."""

    truncated_recall: ClassVar[bool] = True
    main_metrics: ClassVar[tuple[str, ...]] = ("ndcg@100", "recall@20", "recall@50")
    new_users: ClassVar[bool] = True

    kind: Literal["strong-generalisation"] = "strong-generalisation"
    held_out_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Of the users, those who validate; as many others test."""
    target_share: Share = 0.2
    """Of a held-out user's items, those that are asked for; the others are told."""
    min_events: PositiveInt = 5
    """Users with fewer distinct items are left out."""
    min_value: float | None = None
    """Events of a smaller value are left out (4 for the ratings of the paper); none if not set."""
    seed: NonNegativeInt = 0
    """Of the choice of users and of their items."""

    @property
    def words(self) -> str:
        """The protocol for people."""
        liked = "" if self.min_value is None else f"events of a value below {self.min_value:g} are left out; "
        return (
            f"strong generalisation as for Mult-VAE (Liang et al., 2018): {liked}users with fewer than "
            f"{self.min_events} distinct items are left out, {_percent(self.held_out_share)} of the others "
            "validate, as many test, the rest train; items that no training user has are left out; of a held-out "
            f"user's items a random {_percent(self.target_share)}, rounded down, are asked for at once, the others are "
            "told, in their order in time; NDCG@100 with binary gains and the ideal of min(100, positives), Recall@k "
            f"divided by min(k, positives); seed {self.seed}; {_RANKING}"
        )

    def assign(self, events: pl.DataFrame) -> pl.DataFrame:
        """See `EvaluationProtocol`. Raises TowerlineError if a split would have no users, or values do not tell."""
        kept = self._kept(events)
        pairs = kept.select(USER_ID, ITEM_ID).unique().sort(USER_ID, ITEM_ID)
        pairs = pairs.filter(pl.len().over(USER_ID) >= self.min_events)
        random = np.random.default_rng(self.seed)
        pairs = self._with_user_splits(pairs, random)
        trained = pairs.filter(pl.col(SPLIT) == TRAIN).select(pl.col(ITEM_ID).unique())
        pairs = pl.concat(
            [
                pairs.filter(pl.col(SPLIT) == TRAIN),
                self._folded(pairs.filter(pl.col(SPLIT) != TRAIN).join(trained, on=ITEM_ID, how="semi"), random),
            ]
        )
        others = events.sort(TOTAL_ORDER).drop(SPLIT, strict=False)
        labelled = others.join(pairs, on=[USER_ID, ITEM_ID], how="left", maintain_order="left")
        split = pl.col(SPLIT) if self.min_value is None else pl.when(pl.col(VALUE) >= self.min_value).then(SPLIT)
        return labelled.with_columns(split.fill_null(UNUSED).alias(SPLIT))

    def questions(self, assigned: pl.DataFrame, split: str) -> pl.DataFrame:
        """One per held-out user with something to ask for, just after the last event that is told."""
        asked = _asked(assigned, split).group_by(USER_ID).agg(pl.col(ITEM_ID).unique(maintain_order=True))
        told = assigned.filter(pl.col(SPLIT) == FOLD_IN).sort(SEQUENCE)
        last = told.group_by(USER_ID).agg(pl.col(EVENT_TIME, SEQUENCE).last())
        moments = last.with_columns(pl.lit(NEVER, dtype=pl.Int64).alias(SOURCE_ROW), pl.col(SEQUENCE) + 1)
        return asked.join(moments, on=USER_ID).select(QUESTION).sort(USER_ID)

    def visible(self, assigned: pl.DataFrame) -> pl.DataFrame:
        """What trains and what is told, each known as soon as it happened."""
        known = assigned.filter(pl.col(SPLIT).is_in([TRAIN, FOLD_IN]))
        return known.with_columns(pl.col(EVENT_TIME).alias(INGEST_TIME))

    def _kept(self, events: pl.DataFrame) -> pl.DataFrame:
        if self.min_value is None:
            return events
        kept = events.filter(pl.col(VALUE) >= self.min_value)
        if kept.is_empty() or (kept.height == events.height and events[VALUE].n_unique() == 1):
            raise TowerlineError(
                f"min_value={self.min_value:g} cannot tell liked from not: the values of the {events.height} events "
                f"run from {events[VALUE].min()!r} to {events[VALUE].max()!r}; leave it out or take one in between"
            )
        return kept

    def _with_user_splits(self, pairs: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
        users = pairs[USER_ID].unique(maintain_order=True)
        held = round(len(users) * self.held_out_share)
        if held < 1 or len(users) - 2 * held < 1:
            raise TowerlineError(
                f"strong generalisation holds out {_percent(self.held_out_share)} of the users twice, and {len(users)} "
                f"have {self.min_events} distinct items or more; ingest more events or take a larger held_out_share"
            )
        place = random.random(len(users)).argsort().argsort()
        split = np.where(place < held, TEST, np.where(place < 2 * held, VALIDATION, TRAIN))
        return pairs.join(pl.DataFrame({USER_ID: users, SPLIT: split}), on=USER_ID, maintain_order="left")

    def _folded(self, pairs: pl.DataFrame, random: np.random.Generator) -> pl.DataFrame:
        """Held-out users' items with what is told of them marked so."""
        place = pl.Series(random.random(pairs.height))
        asked = pairs.with_columns(place.alias("place")).with_columns(
            (pl.col("place").rank("ordinal") <= (pl.len() * self.target_share).floor()).over(USER_ID).alias("asked")
        )
        split = pl.when("asked").then(SPLIT).otherwise(pl.lit(FOLD_IN)).alias(SPLIT)
        return asked.with_columns(split).drop("place", "asked")


AnyProtocol = Annotated[LeaveOneOut | NewEvents | GlobalTime | StrongGeneralisation, Field(discriminator="kind")]
"""Any of them, in a configuration or a model's card."""


class Measured(Protocol):
    """Anything that has figures."""

    @property
    def protocol_hash(self) -> str:
        """Hash of the protocol that they were measured by."""


def require_same_protocol(one: Measured, other: Measured) -> None:
    """Raise TowerlineError, naming both hashes, unless two results may be compared."""
    if one.protocol_hash != other.protocol_hash:
        raise TowerlineError(
            f"figures measured by protocol {one.protocol_hash} cannot be compared with those by protocol "
            f"{other.protocol_hash}; measure both with the same one, by `python -m jobs.evaluate_models`"
        )


def _asked(assigned: pl.DataFrame, split: str) -> pl.DataFrame:
    if split not in (VALIDATION, TEST):
        raise ValueError(f"split is {split!r}, expected {VALIDATION!r} or {TEST!r}")
    return assigned.filter(pl.col(SPLIT) == split)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
