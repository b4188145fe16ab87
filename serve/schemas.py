"""What goes over HTTP: one pydantic model per request and response, with its limits in the types.

Text is checked to be real Unicode (JSON can smuggle lone surrogates that no store can encode) and nothing else is
asked of an id: spaces, slashes, quotes and any script are fine.
"""

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from serve.graph import MAX_REQUESTS
from serve.problems import Problem

MAX_ID = 512
MAX_COUNT = 100
MAX_RECENT = 200
MAX_EVENTS = 1000
MAX_LISTED = 1000
MAX_BUDGET_MS = 30_000
EARLIEST = datetime(1900, 1, 1, tzinfo=UTC)

Id = Annotated[str, StringConstraints(min_length=1, max_length=MAX_ID)]
"""A user, item or event id: 1 to 512 characters of any Unicode."""

DecisionId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Milliseconds = dict[str, float]


class HttpModel(BaseModel):
    """Base of every HTTP model: immutable, and an unknown field is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RecommendRequest(HttpModel):
    """Ask for items for one user."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "196", "count": 5, "recent_items": ["50", "181"], "explain": True}]}
    )

    user_id: Id
    """Who asks. A user never seen before gets an answer too."""

    count: Annotated[int, Field(strict=True, ge=1, le=MAX_COUNT)] = 10
    """How many items are wanted, 1 to 100."""

    recent_items: tuple[Id, ...] = Field(default=(), max_length=MAX_RECENT)
    """Items of this session that no event tells of yet, oldest first; unknown ids are ignored."""

    explain: Annotated[bool, Field(strict=True)] = False
    """Whether the first items come with a sentence that says why, written by the language model."""

    allow_items: tuple[Id, ...] | None = Field(default=None, max_length=MAX_LISTED)
    """The only items to answer with, as far as the endpoint's own rules let them; unknown ids are ignored."""

    deny_items: tuple[Id, ...] = Field(default=(), max_length=MAX_LISTED)
    """Items not to answer with; unknown ids are ignored."""

    budget_ms: Annotated[int, Field(strict=True, ge=1, le=MAX_BUDGET_MS)] | None = None
    """Milliseconds that the answer may take, sentences included. Stages that would take longer are left out, and
    `degraded` names them; what cannot be answered by then at all fails with 504. Left out, the endpoint decides."""


class RecommendedItem(HttpModel):
    """One recommended item."""

    item_id: str
    title: str | None
    score: float
    """The ranker's score: larger is better, comparable within one answer only. What the language model re-ranked is
    not in the order of the scores."""

    explanation: str | None = None


class RecommendResponse(HttpModel):
    """Items for one user, best first, and everything needed to trace the answer."""

    decision_id: str
    """Names this answer in the decision log and in feedback."""

    user_id: str
    known_user: bool
    """Whether the store has an event or an attribute of this user."""

    items: tuple[RecommendedItem, ...]
    variant: str
    models: dict[str, str]
    """Model name to version."""

    degraded: tuple[str, ...] = ()
    """Stages that could not answer in time and were left out. Without `ranking` the items are in the order of retrieval
    and have its scores; without `retrieval` they are the most popular; without `explain` they have no sentences."""

    timings_ms: Milliseconds
    """Milliseconds spent per stage, waiting (`queue`) and in all (`total`)."""


class RecommendBatchRequest(HttpModel):
    """Ask for items for several users, or for one in several ways."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"user_id": "196"}, {"user_id": "22", "count": 3}]}]}
    )

    requests: tuple[RecommendRequest, ...] = Field(min_length=1, max_length=MAX_REQUESTS)
    """1 to 100 of them. Each takes a place in the queue; without room for all, none is answered (429)."""


class BatchAnswer(HttpModel):
    """What became of one request: an answer or a problem."""

    answer: RecommendResponse | None = None
    problem: Problem | None = None
    """Why there is no answer, as that request alone would have been told."""


class RecommendBatchResponse(HttpModel):
    """What became of the requests, in their order."""

    answers: tuple[BatchAnswer, ...]


class SimilarItem(HttpModel):
    """One item near another."""

    item_id: str
    title: str | None
    score: float
    """Cosine similarity of the two item vectors, -1 to 1."""


class SimilarResponse(HttpModel):
    """The items nearest to one item, best first."""

    decision_id: str
    item_id: str
    title: str | None
    items: tuple[SimilarItem, ...]
    variant: str
    models: dict[str, str]
    timings_ms: Milliseconds


class FeedbackEvent(HttpModel):
    """Something a user did with an item."""

    user_id: Id
    item_id: Id
    """Any item; one never seen in training is stored too."""

    event_type: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "feedback"
    value: Annotated[float, Field(strict=True, ge=-1e6, le=1e6, allow_inf_nan=False)] = 1.0
    """How strong or how good, in the data set's own unit (stars, seconds); a plain click is 1."""

    event_time: Annotated[AwareDatetime, Field(ge=EARLIEST)] | None = None
    """When it happened, with its time zone; now, when left out. After 1900 and not in the future."""

    event_id: Id | None = None
    """Makes the event idempotent: sent again, it changes nothing. Left out, a new one is given."""

    decision_id: DecisionId | None = None
    """The answer this event is a reaction to."""


class FeedbackRequest(HttpModel):
    """One or many events, stored together or not at all."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"events": [{"user_id": "196", "item_id": "50", "value": 5.0}]}]}
    )

    events: tuple[FeedbackEvent, ...] = Field(min_length=1, max_length=MAX_EVENTS)


class FeedbackResponse(HttpModel):
    """The events are on the disk."""

    stored: int
    """How many were new."""

    duplicates: int
    """How many had been stored before, by their event id."""

    event_ids: tuple[str, ...]
    """The id of every event sent, in order."""


class DecisionLogHealth(HttpModel):
    """What the decision log of the answering replica has done."""

    written: int
    dropped: int
    """Decisions given up because the queue was full or the disk refused them."""

    queued: int


class Health(HttpModel):
    """The model answered a probe a moment ago."""

    status: Literal["ok", "degraded"]
    degraded: tuple[str, ...] = ()
    """Stages without which the probe was answered."""

    circuits: dict[str, Literal["closed", "open", "half_open"]] = {}
    """Remote stage to the state of its circuit breaker: `open` while it is left alone."""

    variant: str
    """The variant that answers."""

    champion: str
    """The variant that the registry names. It takes over within seconds, unless it is refused."""

    refused: str | None = None
    """Why the champion, or its newest items, do not answer although they were tried; they are tried again."""

    models: dict[str, str]
    data_set: str
    data_version: str | None
    """Version of the data set that was published to the online store; feedback counts on top of it."""

    feature_views: dict[str, str]
    """Feature view to the fingerprint of its definition, in the online store."""

    replica: str
    at: datetime
    probe_ms: float
    decision_log: DecisionLogHealth
