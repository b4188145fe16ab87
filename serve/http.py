"""The HTTP endpoint: routes, documentation and errors of one `Service`, as an ASGI application without Ray."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field
from starlette.convertors import PathConvertor, register_url_convertor

from serve.disconnects import unless_gone
from serve.inspection_schemas import ModelsResponse, UserFeaturesResponse
from serve.json_route import JsonRoute
from serve.limits import REQUEST_TIMEOUT_S, Limits
from serve.measured import Measured
from serve.openapi import describe
from serve.problems import RETRY_AFTER, Problem, ProblemError, install, problem_of
from serve.schemas import (
    MAX_ID,
    BatchAnswer,
    Count,
    FeedbackRequest,
    FeedbackResponse,
    Health,
    HttpModel,
    RecommendBatchRequest,
    RecommendBatchResponse,
    RecommendRequest,
    RecommendResponse,
    SimilarResponse,
)
from serve.takeover import Live

MAX_BODY = 2 * 2**20
"""Bytes of a request's body."""

BATCH_PATH = "/v1/recommend:batch"

_PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body is not valid JSON"},
    408: {"model": Problem, "description": "The body did not come in time"},
    413: {"model": Problem, "description": f"The body is over {MAX_BODY} bytes"},
    415: {"model": Problem, "description": "The body is not declared as JSON"},
    422: {"model": Problem, "description": "A field is missing or invalid; `errors` names it"},
    500: {"model": Problem, "description": "Something broke on our side"},
    429: {"model": Problem, "description": "Too many requests wait", "headers": RETRY_AFTER},
    503: {"model": Problem, "description": "The service cannot answer now"},
    504: {"model": Problem, "description": "The time for the answer is over"},
}
_WITHOUT_BODY: dict[int | str, dict[str, Any]] = {status: _PROBLEMS[status] for status in (413, 422, 500, 503)}
_OF_STORE: dict[int | str, dict[str, Any]] = {status: _PROBLEMS[status] for status in (413, 422, 429, 500, 503, 504)}
_UNKNOWN_ITEM: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "No such item"}}


class SimilarQuery(HttpModel):
    """Query parameters of `similar`."""

    count: Annotated[Count, Field(examples=[5])] = 10
    """How many items are wanted, 1 to 100."""


class _IdConvertor(PathConvertor):
    """An id as part of a path: Starlette's own `path` stops at a line break."""

    regex = r"[\s\S]*"


def _id_in_path(example: str) -> Any:
    description = "Percent-encoded, slashes too."
    return Path(min_length=1, max_length=MAX_ID, description=description, examples=[example])


def build_http(
    live: Live,
    meanwhile: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
) -> FastAPI:
    """The ASGI application of a service: warms it up before the first request and closes it after the last.

    `meanwhile` is entered between the two. What takes longer than `request_timeout_s` is answered with a problem.
    Swagger UI is served from here.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001
        await live.health()
        async with meanwhile():
            yield
        await live.close()

    app = FastAPIOffline(
        title="Towerline",
        version="1",
        description="Recommendations from two-tower retrieval, ranking and a language model.",
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        lifespan=lifespan,
        # `Measured` does that.
        telemetry={"metrics": False, "logs": False},
    )
    register_url_convertor("id", _IdConvertor())
    _add_routes(app, live, Limits(request_timeout_s))
    app.router.routes.sort(key=lambda route: not isinstance(route, JsonRoute))  # They are tried in turn.
    install(app, MAX_BODY)
    app.add_middleware(Measured, metrics=live.metrics)
    describe(app)
    return app


async def answer(live: Live, limits: Limits, request: RecommendRequest) -> RecommendResponse:
    """Items for a user by the service that answers now. Raises `ProblemError`, also if it takes too long."""
    async with limits.timed():
        with live.serving() as service:
            return await service.recommend(request)


def _add_routes(app: FastAPI, live: Live, limits: Limits) -> None:
    async def recommend(request: RecommendRequest, http: Request) -> RecommendResponse:
        """Items for a user, best first. An unknown user gets an answer too."""
        return await unless_gone(http.receive, answer(live, limits, request))

    app.router.add_api_route(
        "/v1/recommend", recommend, methods=["POST"], responses=_PROBLEMS, route_class_override=JsonRoute
    )

    @app.post(BATCH_PATH, responses=_PROBLEMS)
    async def recommend_batch(request: RecommendBatchRequest, http: Request) -> RecommendBatchResponse:
        """Items for each of several requests, as each alone would get them."""
        async with limits.timed():
            with live.serving() as service:
                found = await unless_gone(http.receive, service.recommend_batch(request.requests))
        return RecommendBatchResponse(answers=tuple(map(_batch_answer, found)))

    @app.get("/v1/items/{item_id:id}/similar", responses=_WITHOUT_BODY | _UNKNOWN_ITEM)
    async def similar(
        item_id: Annotated[str, _id_in_path("50")],
        query: Annotated[SimilarQuery, Query()],
    ) -> SimilarResponse:
        """The items nearest to one."""
        with live.serving() as service:
            return service.similar(item_id, query.count)

    @app.post("/v1/feedback", responses=_PROBLEMS)
    async def feedback(request: FeedbackRequest) -> FeedbackResponse:
        """Tell what users did. The events are on the disk when the answer comes, and count from then on."""
        async with limits.timed(), limits.place():
            with live.serving() as service:
                return await asyncio.to_thread(service.feedback, request)

    @app.get("/v1/users/{user_id:id}/features", responses=_OF_STORE)
    async def features(
        user_id: Annotated[str, _id_in_path("196")],
    ) -> UserFeaturesResponse:
        """What is known of a user at this moment. Of an unknown user, the defaults."""
        async with limits.timed(), limits.place():
            with live.serving() as service:
                return await asyncio.to_thread(service.features, user_id)

    @app.get("/v1/models", responses={status: _PROBLEMS[status] for status in (413, 429, 500, 503, 504)})
    async def models() -> ModelsResponse:
        """Which models answer, and where they come from."""
        async with limits.timed(), limits.place():
            return await live.models()

    if live.metrics.exposition() is not None:

        @app.get("/metrics", include_in_schema=False)
        async def metrics() -> Response:
            """What is measured here, in Prometheus' text format."""
            return Response(live.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz", responses={status: _PROBLEMS[status] for status in (413, 500, 503, 504)})
    async def healthz() -> Health:
        """Whether the model answers: this asks it."""
        return await live.health()


def _batch_answer(found: RecommendResponse | ProblemError) -> BatchAnswer:
    if isinstance(found, RecommendResponse):
        return BatchAnswer(answer=found)
    return BatchAnswer(problem=problem_of(found.kind, found.detail, BATCH_PATH, found.errors))
