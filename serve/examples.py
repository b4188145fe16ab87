"""An example of every answer, for the OpenAPI document. The films are MovieLens-100K's."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel

from serve.completion_schemas import ChatAnswer, ChatChoice, ChatCompletion, Completion, TextChoice, Usage
from serve.generation import SMOLLM2_BY_LLAMA
from serve.inspection import LANGUAGE_MODEL
from serve.inspection_schemas import (
    FeatureViewReading,
    ModelsResponse,
    ServedModel,
    ServedVariant,
    UserFeaturesResponse,
)
from serve.problems import Kind, problem_of
from serve.schemas import (
    BatchAnswer,
    DecisionLogHealth,
    FeedbackResponse,
    Health,
    RecommendBatchResponse,
    RecommendedItem,
    RecommendResponse,
    SimilarItem,
    SimilarResponse,
)

VARIANT = "0b1c6f0e5a7d4e1f9c2b8a3d6e7f5a4b"
MODELS = {"two-tower": "3", "ranker": "5"}
DATA_VERSION = "9f2c31d07b6e"
COMMIT = "3f1d2c4b5a69788796a5b4c3d2e1f00112233445"
AT = datetime(2024, 5, 1, 12, 0, tzinfo=UTC)
FEATURE_VIEWS = {"user_activity": "5d41402abc4b", "item_popularity": "7d793037a076", "all_activity": "e4da3b7fbbce"}

RECOMMENDED = RecommendResponse(
    decision_id="7b1a9c0d4e5f46a8b2c3d4e5f6a7b8c9",
    user_id="196",
    known_user=True,
    items=(
        RecommendedItem(
            item_id="313",
            title="Titanic",
            score=3.49,
            explanation="Titanic should suit you because you chose Bound, and what they share is Romance and 1990s.",
        ),
        RecommendedItem(item_id="302", title="L.A. Confidential", score=3.33),
    ),
    variant=VARIANT,
    models=MODELS,
    timings_ms={
        "queue": 0.2,
        "features": 1.1,
        "retrieval": 2.3,
        "filter": 0.2,
        "ranking": 3.4,
        "diversity": 0.1,
        "limit": 0.1,
        "explain": 812.5,
        "total": 820.3,
    },
)

_PROBE = Health(
    status="ok",
    circuits={"explain": "closed"},
    variant=VARIANT,
    champion=VARIANT,
    models=MODELS,
    data_set="movielens-100k",
    data_version=DATA_VERSION,
    feature_views=FEATURE_VIEWS,
    replica="h2k9x4tq",
    at=AT,
    probe_ms=6.2,
    decision_log=DecisionLogHealth(written=1204, dropped=0, queued=0),
)

_SIMILAR = SimilarResponse(
    decision_id="1c2d3e4f5a6b47c8d9e0f1a2b3c4d5e6",
    item_id="50",
    title="Star Wars",
    items=(SimilarItem(item_id="181", title="Return of the Jedi", score=0.92),),
    variant=VARIANT,
    models=MODELS,
    timings_ms={"total": 0.4},
)

_TOO_LATE = problem_of(
    Kind.TOO_LATE,
    "there is no answer within the request's 0.001 s; give it more (budget_ms) or try again in a moment",
    "/v1/recommend:batch",
)

_FEATURES = UserFeaturesResponse(
    user_id="196",
    known_user=True,
    at=AT,
    known_until=datetime(2024, 5, 1, 11, 58, 3, tzinfo=UTC),
    data_version=DATA_VERSION,
    attributes=("age=49", "occupation=writer"),
    views=(
        FeatureViewReading(
            name="user_activity",
            description="What a user did last, how much, how widely, and how well it was liked",
            fingerprint=FEATURE_VIEWS["user_activity"],
            features={
                "history_items": ("242", "393", "50"),
                "history_values": (3.0, 4.0, 5.0),
                "user_event_count": 39,
                "user_mean_value": 3.62,
            },
        ),
    ),
)

_MODELS = ModelsResponse(
    data=(LANGUAGE_MODEL,),
    champion=VARIANT,
    data_version=DATA_VERSION,
    variants=(
        ServedVariant(
            variant=VARIANT,
            items=1_682,
            new_items=0,
            models=tuple(
                ServedModel(
                    model=model,
                    version=version,
                    data_version=DATA_VERSION,
                    git_commit=COMMIT,
                    history_length=50,
                    feature_views=FEATURE_VIEWS,
                )
                for model, version in MODELS.items()
            ),
        ),
    ),
)

_USAGE = Usage(prompt_tokens=38, completion_tokens=9, total_tokens=47)

_CHAT = ChatCompletion(
    id="chatcmpl-8f3a2b1c0d9e4f5a",
    created=int(AT.timestamp()),
    model=SMOLLM2_BY_LLAMA.name,
    system_fingerprint=SMOLLM2_BY_LLAMA.fingerprint,
    choices=(ChatChoice(message=ChatAnswer(content="The capital city of France is Paris."), finish_reason="stop"),),
    usage=_USAGE,
)

_COMPLETION = Completion(
    id="cmpl-8f3a2b1c0d9e4f5a",
    created=int(AT.timestamp()),
    model=SMOLLM2_BY_LLAMA.name,
    system_fingerprint=SMOLLM2_BY_LLAMA.fingerprint,
    choices=(TextChoice(text=", in a land far away, there lived a", finish_reason="length"),),
    usage=_USAGE,
)


def _events(answer: ChatCompletion | Completion, name: str, choice: Mapping[str, Any]) -> str:
    """A stream of a single piece."""
    chunk = {**answer.model_dump(include={"id", "created", "model"}), "object": name, "choices": [choice]}
    return f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"


EVENTS: Mapping[str, str] = {
    "ChatCompletion": _events(_CHAT, "chat.completion.chunk", {"index": 0, "delta": {"content": "The"}}),
    "Completion": _events(_COMPLETION, "text_completion", {"index": 0, "text": ", in"}),
}
"""Name of the model to the same as server-sent events."""

ANSWERS: Mapping[str, BaseModel] = {
    type(answer).__name__: answer
    for answer in (
        RECOMMENDED,
        RecommendBatchResponse(answers=(BatchAnswer(answer=RECOMMENDED), BatchAnswer(problem=_TOO_LATE))),
        _SIMILAR,
        FeedbackResponse(stored=1, duplicates=0, event_ids=("b6d7e8f9a0b14c2d8e3f4a5b6c7d8e9f",)),
        _FEATURES,
        _MODELS,
        _PROBE,
        _CHAT,
        _COMPLETION,
    )
}
"""Name of the model to an answer."""
