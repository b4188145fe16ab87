"""Questions by which variants of several versions of a data set can be compared: those that all of them can be asked.

A variant's values by user come from models that had not learnt the answers; the models it serves with are refitted on
all events. So where the data set has grown, the earlier variant is asked again, with the models it serves with, for
what came after all that it has seen; of the later one those values are kept that answer the same questions.

As leave-one-out does, this lets the later variant learn from other users' events that came after the ones asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from cluster.errors import TowerlineError
from data.dataset import Dataset, open_dataset
from data.features import with_sequence
from data.known_events import KnownEvents
from data.schema import USER_ID
from data.splits import TEST
from train.card import Kind, ModelCard
from train.cases import Cases, cases
from train.contestants import pair_recommender
from train.evaluation import Measurements, count_targets, measure
from train.gate import PAIR, Measured
from train.pair import Recoded
from train.pair_figures import CALIBRATION, LATENCY
from train.protocols import LEAVE_ONE_OUT, NewEvents
from train.registry import RegisteredPair, load_pair, read_evaluated
from train.user_values import MODEL, PROTOCOL_HASH, SEGMENTS


@dataclass(frozen=True)
class Candidate:
    """A registered variant and how it was measured when it was registered."""

    pair: RegisteredPair
    cards: Mapping[Kind, ModelCard]
    measured: Measured

    @classmethod
    def read(cls, tracking_uri: str, pair: RegisteredPair) -> "Candidate":
        """Read it. Raises TowerlineError if it cannot be served by this code or was never evaluated."""
        cards, values = read_evaluated(tracking_uri, pair)
        card = cards["ranker"]
        if card.evaluation is None:
            raise TowerlineError(
                f"variant {pair.variant} of data set {pair.dataset!r} was registered without evaluation"
            )
        return cls(pair, cards, Measured(pair.variant, card.data_version, card.evaluation, values))

    @property
    def seen(self) -> KnownEvents:
        """The events of its data version. Raises TowerlineError if its cards do not say which."""
        return self.cards["two-tower"].seen_events

    @property
    def not_asked(self) -> list[KnownEvents]:
        """What it was not asked for: nothing if it was asked for every user's last event.

        Raises TowerlineError if it was measured by a protocol that has no questions about new events alone.
        """
        protocol = self.cards["ranker"].trained_on.protocol
        measured_by = self.measured.evaluation.protocol_hash
        if protocol.hash == measured_by and isinstance(protocol, NewEvents):
            return [protocol.known]
        if measured_by == LEAVE_ONE_OUT.hash:
            return []
        raise TowerlineError(
            f"variant {self.pair.variant} was measured by protocol {measured_by}, which is neither leave-one-out "
            f"({LEAVE_ONE_OUT.hash}) nor that for new events"
        )


def on_common_questions(
    tracking_uri: str, home: Path, candidates: Sequence[Candidate], least_users: int
) -> list[Measured]:
    """The variants measured by one protocol on the latest version of the data that one of them knows, in their order.

    `home`: where the data set is; it may have grown further since.

    Raises:
        TowerlineError: they cannot be compared: fewer than `least_users` users have an event that none of the earlier
            variants has seen, the data set was replaced instead of added to, or a variant was measured by a protocol
            that is not leave-one-out.
    """
    latest = max(candidates, key=lambda each: each.seen.events)
    dataset = open_dataset(home, latest.pair.dataset)
    events = dataset.events()
    latest.seen.require_in(events, f"variant {latest.pair.variant}")
    events = events.filter(latest.seen.are_known)
    known: list[KnownEvents] = []
    for each in candidates:
        each.seen.require_in(events, f"variant {each.pair.variant}")
        known += [each.seen] if _is_earlier(each, latest) else each.not_asked
    largest = max(known, key=lambda one: one.events)
    protocol = NewEvents(known=largest)
    asked = protocol.questions(protocol.assign(with_sequence(events)), TEST)
    if asked.height < least_users:
        raise TowerlineError(
            f"{asked.height} users have a last event that came after the {largest.events:,} of data version "
            f"{largest.label}, which a variant has seen; at least {least_users} are needed to compare by: ingest more "
            "events"
        )
    common = _Common(tracking_uri, dataset, events, protocol, latest)
    return [common.ask(each) if _is_earlier(each, latest) else common.keep(each) for each in candidates]


class _Common:
    """The questions, in the codes of the latest variant, and the answers of each."""

    def __init__(
        self, tracking_uri: str, dataset: Dataset, events: pl.DataFrame, protocol: NewEvents, latest: Candidate
    ) -> None:
        self._tracking_uri, self._dataset, self._events, self._protocol = tracking_uri, dataset, events, protocol
        self._latest = latest
        self._vocabulary = load_pair(tracking_uri, latest.pair).retrieval.vocabulary
        self._targets = count_targets(self._cases(latest))
        self._segments = self._stored(latest).select(USER_ID, SEGMENTS)

    def keep(self, candidate: Candidate) -> Measured:
        """Of the values that it was registered with, those of these questions."""
        return self._measured(candidate, self._stored(candidate))

    def ask(self, candidate: Candidate) -> Measured:
        """The answers of the models it serves with, with the user segments of the latest variant's."""
        models = load_pair(self._tracking_uri, candidate.pair)
        known = self._protocol.visible(self._protocol.assign(self._events))
        pair = Recoded(pair_recommender(models, known), models.retrieval.vocabulary, self._vocabulary)
        values = measure({PAIR: pair}, self._cases(candidate), self._dataset.items()).values
        return self._measured(candidate, values.drop(SEGMENTS).join(self._segments, on=USER_ID, maintain_order="left"))

    def _cases(self, candidate: Candidate) -> Cases:
        length = candidate.cards["two-tower"].history_length
        users = self._dataset.users()
        return cases(self._protocol, self._events, users, self._vocabulary, history_length=length)

    def _stored(self, candidate: Candidate) -> pl.DataFrame:
        asked = self._protocol.questions(self._protocol.assign(with_sequence(self._events)), TEST)
        values = candidate.measured.values.filter(pl.col(MODEL) == PAIR)
        return values.join(asked, on=USER_ID, how="semi", maintain_order="left")

    def _measured(self, candidate: Candidate, values: pl.DataFrame) -> Measured:
        values = values.with_columns(pl.lit(self._protocol.hash).alias(PROTOCOL_HASH))
        figures = candidate.measured.evaluation.figures
        of_pair = {name: figures[name] for name in (f"{CALIBRATION}/{PAIR}", f"{LATENCY}/{PAIR}") if name in figures}
        evaluation = Measurements(self._protocol, values, of_pair, self._targets).evaluation
        return Measured(candidate.pair.variant, self._latest.seen.data_version, evaluation, values)


def _is_earlier(candidate: Candidate, latest: Candidate) -> bool:
    return candidate.seen.data_version != latest.seen.data_version
