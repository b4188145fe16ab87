"""What one gateway replica does for each endpoint; knows neither HTTP nor Ray."""

import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from data.features import feature_fingerprints
from data.online.store import OnlineStore
from data.schema import (
    DECISION_ID,
    EVENT_ID,
    EVENT_TIME,
    EVENT_TYPE,
    ITEM_ID,
    USER_ID,
    VALUE,
)
from serve.batch import Batch, Call
from serve.batcher import QueueFullError
from serve.decisions import Answered, Decision, DecisionLog, StoreVersion
from serve.graph import Graph, Outcome, TooLateError
from serve.problems import FieldError, Kind, ProblemError
from serve.schemas import (
    DecisionLogHealth,
    FeedbackEvent,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    RecommendedItem,
    RecommendRequest,
    RecommendResponse,
    SimilarItem,
    SimilarResponse,
)
from serve.stages.explain import prompt_version
from serve.steps import StageUnavailableError
from serve.variant import Catalogue, Variant
from train.vocabulary import UNKNOWN

CLOCK_SKEW = timedelta(minutes=1)
"""How far ahead of ours a client's clock may be before its events count as future ones."""

PROBE = Call(decision_id="probe", user_id="", count=1, budget_s=25.0)
"""The health probe: a user that cannot exist, because an id is never empty. It has less than Serve's 30 seconds."""


@dataclass(frozen=True)
class Place:
    """Who answers."""

    data_set: str
    replica: str


class Service:
    """Answers requests with one variant."""

    def __init__(
        self,
        *,
        place: Place,
        variant: Variant,
        graph: Graph,
        store: OnlineStore,
        decisions: DecisionLog,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._place = place
        self._variant = variant
        self._graph = graph
        self._store = store
        self._decisions = decisions
        self._clock = clock
        self._prompt_version = prompt_version()
        self._feature_views = feature_fingerprints(variant.history_length)

    @property
    def variant(self) -> str:
        """Name of the variant that answers."""
        return self._variant.name

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Items for one user, and the decision log's entry for them. Raises `ProblemError` if it cannot be answered."""
        self._require_room(1)
        return await self._recommend(request)

    async def _recommend(self, request: RecommendRequest) -> RecommendResponse:
        call = Call(
            decision_id=uuid.uuid4().hex,
            user_id=request.user_id,
            count=request.count,
            recent_items=request.recent_items,
            explain=request.explain,
            allow=request.allow_items,
            deny=request.deny_items,
            budget_s=None if request.budget_ms is None else request.budget_ms / 1e3,
        )
        outcome = await self._answer(call)
        items = self._items(call, outcome.batch)
        self._decisions.write(self._decision(call, outcome, items))
        return RecommendResponse(
            decision_id=call.decision_id,
            user_id=call.user_id,
            known_user=outcome.batch.known[0],
            items=items,
            variant=self._variant.name,
            models=dict(self._variant.versions),
            degraded=outcome.degraded,
            timings_ms=dict(outcome.timings_ms),
        )

    def similar(self, item_id: str, count: int) -> SimilarResponse:
        """The nearest items. Raises `ProblemError` for an item that the model does not know."""
        start = time.perf_counter()
        at = self._clock()
        catalogue = self._variant.catalogue
        code = catalogue.code(item_id)
        if code == UNKNOWN:
            detail = f"no item {item_id!r} in data set {self._place.data_set!r} (variant {self._variant.name})"
            raise ProblemError(
                Kind.UNKNOWN_ITEM, detail, [FieldError(field="item_id", message="no such item", value=item_id)]
            )
        codes, scores = self._variant.similar(code, count)
        items = tuple(
            SimilarItem(item_id=catalogue.item_id(near), title=catalogue.title(near), score=score)
            for near, score in zip(codes, scores, strict=True)
        )
        timings = {"total": round((time.perf_counter() - start) * 1e3, 3)}
        decision = Decision(
            decision_id=uuid.uuid4().hex,
            kind="similar",
            at=at,
            replica=self._place.replica,
            variant=self._variant.name,
            models=self._variant.versions,
            request={"item_id": item_id, "count": count},
            answer=tuple(Answered(item_id=item.item_id, score=item.score) for item in items),
            timings_ms=timings,
        )
        self._decisions.write(decision)
        return SimilarResponse(
            decision_id=decision.decision_id,
            item_id=item_id,
            title=catalogue.title(code),
            items=items,
            variant=self._variant.name,
            models=dict(self._variant.versions),
            timings_ms=timings,
        )

    def feedback(self, request: FeedbackRequest) -> FeedbackResponse:
        """Store events; they are on the disk when this returns. Blocks for some milliseconds.

        Raises `ProblemError` for an event of the future: nothing is stored then.
        """
        now = self._clock()
        late = [
            FieldError(field=f"events[{row}].event_time", message="lies in the future", value=str(event.event_time))
            for row, event in enumerate(request.events)
            if event.event_time is not None and event.event_time > now + CLOCK_SKEW
        ]
        if late:
            detail = f"{late[0].field} lies in the future (now is {now:%Y-%m-%dT%H:%M:%SZ}); nothing was stored"
            raise ProblemError(Kind.INVALID_FIELD, detail, late)
        events = _table(request.events, now)
        stored = self._store.append_events(events)
        return FeedbackResponse(
            stored=stored, duplicates=len(request.events) - stored, event_ids=tuple(events[EVENT_ID])
        )

    async def health(self) -> Health:
        """Have the model answer a probe, which is not logged. Raises `ProblemError` if it cannot."""
        start = time.perf_counter()
        outcome = await self._answer(PROBE)
        scores = outcome.batch.scores_BK[outcome.batch.codes_BK != UNKNOWN]
        if not np.isfinite(scores).all():
            raise ProblemError(Kind.UNAVAILABLE, f"the model answers a probe with scores such as {scores.min()}")
        state = self._decisions.state()
        return Health(
            status="degraded" if outcome.degraded else "ok",
            degraded=outcome.degraded,
            circuits=dict(self._graph.circuits),
            variant=self._variant.name,
            champion=self._variant.name,
            models=dict(self._variant.versions),
            data_set=self._place.data_set,
            data_version=outcome.batch.data_version,
            feature_views=self._feature_views,
            replica=self._place.replica,
            at=self._clock(),
            probe_ms=round((time.perf_counter() - start) * 1e3, 3),
            decision_log=DecisionLogHealth(written=state.written, dropped=state.dropped, queued=state.queued),
        )

    def load(self) -> dict[str, float]:
        """How busy it was since the last call, as `LoadMeter.read`."""
        return self._graph.load()

    def close(self) -> None:
        """Give the threads and the store's connections back. The decision log is left to who opened it."""
        self._graph.close()
        self._store.close()

    def _require_room(self, requests: int) -> None:
        try:
            self._graph.require_room(requests)
        except QueueFullError as error:
            raise ProblemError(Kind.TOO_BUSY, str(error), retry_after_s=error.retry_after_s) from error

    async def _answer(self, call: Call) -> Outcome:
        try:
            return await self._graph.recommend(call)
        except TooLateError as error:
            raise ProblemError(Kind.TOO_LATE, f"{error}; give it more (budget_ms) or try again in a moment") from error
        except StageUnavailableError as error:
            raise ProblemError(Kind.UNAVAILABLE, f"{error}; try again in a moment", retry_after_s=1) from error

    def _items(self, call: Call, batch: Batch) -> tuple[RecommendedItem, ...]:
        catalogue = self._variant.catalogue
        sentences = batch.explanations[0] if batch.explanations else {}
        ranked = zip(batch.codes_BK[0, : call.count].tolist(), batch.scores_BK[0].tolist(), strict=False)
        return tuple(
            RecommendedItem(
                item_id=catalogue.item_id(code),
                title=catalogue.title(code),
                score=score,
                explanation=sentences.get(code),
            )
            for code, score in ranked
            if code != UNKNOWN
        )

    def _decision(self, call: Call, outcome: Outcome, items: Sequence[RecommendedItem]) -> Decision:
        batch = outcome.batch
        return Decision(
            decision_id=call.decision_id,
            kind="recommend",
            at=batch.at,
            replica=self._place.replica,
            variant=self._variant.name,
            models=self._variant.versions,
            request={
                "user_id": call.user_id,
                "count": call.count,
                "recent_items": call.recent_items,
                "explain": call.explain,
                "allow_items": call.allow,
                "deny_items": call.deny,
            },
            store=self._store_version(batch),
            user_features=batch.users.row(0, named=True),
            everything=batch.everything,
            candidates=_candidates(batch, self._variant.catalogue),
            answer=tuple(
                Answered(item_id=item.item_id, score=item.score, explanation=item.explanation) for item in items
            ),
            prompt_version=self._prompt_version if batch.explanations else None,
            degraded=outcome.degraded,
            timings_ms=outcome.timings_ms,
        )

    def _store_version(self, batch: Batch) -> StoreVersion | None:
        if batch.data_version is None:
            return None
        return StoreVersion(data_version=batch.data_version, fingerprints=self._feature_views)


def _candidates(batch: Batch, catalogue: Catalogue) -> dict[str, list[Any]]:
    """The candidates of a single request as columns, the empty slots left out."""
    filled = int((batch.codes_BK[0] != UNKNOWN).sum())
    features = batch.item_features[:filled].to_dict(as_series=False)
    if not features:
        features = {ITEM_ID: [catalogue.item_id(code) for code in batch.codes_BK[0, :filled].tolist()]}
    return {
        **features,
        "retrieval_score": batch.retrieval_BK[0, :filled].tolist(),
        "ranking_score": batch.scores_BK[0, :filled].tolist(),
    }


def _table(events: Sequence[FeedbackEvent], now: datetime) -> pl.DataFrame:
    """Feedback as events of the schema; the store says when it knew of them. What a client's fast clock dates after
    `now` happened now."""
    time_dtype = pl.Datetime("us", "UTC")
    return pl.DataFrame(
        {
            EVENT_ID: [event.event_id or uuid.uuid4().hex for event in events],
            USER_ID: [event.user_id for event in events],
            ITEM_ID: [event.item_id for event in events],
            EVENT_TYPE: [event.event_type for event in events],
            VALUE: [event.value for event in events],
            EVENT_TIME: [min(event.event_time or now, now).astimezone(UTC) for event in events],
            DECISION_ID: [event.decision_id for event in events],
        },
        schema={
            EVENT_ID: pl.String,
            USER_ID: pl.String,
            ITEM_ID: pl.String,
            EVENT_TYPE: pl.String,
            VALUE: pl.Float32,
            EVENT_TIME: time_dtype,
            DECISION_ID: pl.String,
        },
    )
