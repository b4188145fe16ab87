"""What one gateway replica does for each endpoint; knows neither HTTP nor Ray."""

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from cluster.errors import TowerlineError
from data.online.store import OnlineStore
from serve.answers import Answers, call_of
from serve.batch import Call
from serve.batcher import QueueFullError
from serve.decisions import Answered, Decision, DecisionLog
from serve.edition import Edition
from serve.feedback import store_feedback
from serve.generation import SMOLLM2_BY_LLAMA, Identity
from serve.graph import Graph, Outcome, TooLateError
from serve.inspection import language_model_entry, served, user_features
from serve.inspection_schemas import LanguageModelEntry, ServedVariant, UserFeaturesResponse
from serve.problems import FieldError, Kind, ProblemError
from serve.schemas import (
    DecisionLogHealth,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    RecommendRequest,
    RecommendResponse,
    SimilarItem,
    SimilarResponse,
)
from serve.steps import StageUnavailableError
from serve.variant import Variant
from train.vocabulary import UNKNOWN

logger = logging.getLogger(__name__)

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
        language_model: Identity = SMOLLM2_BY_LLAMA,
    ) -> None:
        """`language_model`: that writes sentences and, where there is a deployment for it, completions."""
        self._place = place
        self._variant = variant
        self._graph = graph
        self._store = store
        self._decisions = decisions
        self._clock = clock
        self._language_model = language_model
        self._answers = Answers(place.replica, variant, language_model)

    @property
    def variant(self) -> str:
        """Name of the variant that answers."""
        return self._variant.name

    @property
    def edition(self) -> Edition:
        """The variant with its new items."""
        return self._variant.edition

    @property
    def versions(self) -> Mapping[str, str]:
        """Model name to version of the variant."""
        return self._variant.versions

    async def recommend(self, request: RecommendRequest) -> RecommendResponse:
        """Items for one user, and the decision log's entry for them. Raises `ProblemError` if it cannot be answered."""
        self._require_room(1)
        return await self._recommend(request)

    async def recommend_batch(self, requests: Sequence[RecommendRequest]) -> list[RecommendResponse | ProblemError]:
        """What `recommend` gives for each, in order, or the problem with it. Asked at once, they are answered together.

        Raises `ProblemError` if the queue has no room for all of them: none is answered then.
        """
        self._require_room(len(requests))
        coming = [self._recommend(request) for request in requests]
        return await asyncio.gather(*map(_or_problem, coming))

    def _recommend(self, request: RecommendRequest) -> Awaitable[RecommendResponse]:
        """The answer to come. The request has its place in the queue when this returns."""
        call = call_of(request, uuid.uuid4().hex)
        return self._recommended(call, self._graph.recommend(call))

    async def _recommended(self, call: Call, coming: Awaitable[Outcome]) -> RecommendResponse:
        outcome = await _outcome(coming)
        response = self._answers.response(call, outcome)
        self._decisions.write(self._answers.decision(call, outcome, response.items))
        return response

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
            new_items=self._variant.new_items.digest,
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
        """Store events, as `store_feedback`."""
        return store_feedback(self._store, request, self._clock())

    def features(self, user_id: str) -> UserFeaturesResponse:
        """What is known of a user now, as `user_features`."""
        variant = self._variant
        return user_features(self._store, variant.history_length, self._answers.feature_views, user_id, self._clock())

    def models(self) -> ServedVariant:
        """The variant that answers, as `served`."""
        return served(self._variant)

    def language_models(self) -> tuple[LanguageModelEntry, ...]:
        """Those that write completions: that of a deployment of its own."""
        return (language_model_entry(self._language_model),) if "explain" in self._graph.circuits else ()

    def data_version(self) -> str | None:
        """Of the data set that was published to the online store. Blocks."""
        return self._store.published_version()

    async def health(self) -> Health:
        """Have the model answer a probe, which is not logged. Raises `ProblemError` if it cannot."""
        start = time.perf_counter()
        outcome = await _outcome(self._graph.recommend(PROBE))
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
            feature_views=self._answers.feature_views,
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


async def _outcome(coming: Awaitable[Outcome]) -> Outcome:
    try:
        return await coming
    except TooLateError as error:
        raise ProblemError(Kind.TOO_LATE, f"{error}; give it more (budget_ms) or try again in a moment") from error
    except StageUnavailableError as error:
        raise ProblemError(Kind.UNAVAILABLE, f"{error}; try again in a moment", retry_after_s=1) from error


async def _or_problem(coming: Awaitable[RecommendResponse]) -> RecommendResponse | ProblemError:
    """The answer, or what a client can be told of why there is none."""
    try:
        return await coming
    except ProblemError as error:
        return error
    except TowerlineError as error:
        logger.error("a request of a batch: %s", error)  # noqa: TRY400
        return ProblemError(Kind.UNAVAILABLE, str(error))
