"""`Recommend` over gRPC: a message in, a message or a status out; the limits and errors are those of HTTP."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict
from pydantic import ValidationError
from ray.serve.grpc_util import RayServegRPCContext

from cluster.errors import TowerlineError
from serve.problems import Kind, ProblemError, field_path
from serve.rpc import recommender_pb2 as messages
from serve.schemas import RecommendRequest, RecommendResponse

CODES = {
    Kind.TOO_BUSY: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Kind.TOO_LATE: grpc.StatusCode.DEADLINE_EXCEEDED,
    Kind.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Kind.INVALID_FIELD: grpc.StatusCode.INVALID_ARGUMENT,
}

logger = logging.getLogger(__name__)


async def recommend(
    answer: Callable[[RecommendRequest], Awaitable[RecommendResponse]],
    message: messages.RecommendRequest,
    context: RayServegRPCContext,
) -> messages.RecommendResponse:
    """What `answer` says to a message. What goes wrong is the status that `context` leaves with, never an exception."""
    try:
        return _message(await answer(_request(message)))
    except ValidationError as error:
        details = "; ".join(f"{field_path(each['loc'])}: {each['msg']}" for each in error.errors()[:5])
        _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, details)
    except ProblemError as error:
        _refuse(context, CODES.get(error.kind, grpc.StatusCode.INTERNAL), error.detail)
        context.set_trailing_metadata([(name.lower(), value) for name, value in error.headers.items()])
    except TowerlineError as error:
        logger.exception("Recommend cannot answer")
        _refuse(context, grpc.StatusCode.UNAVAILABLE, str(error))
    except Exception:
        logger.exception("Recommend failed")
        detail = "something broke on our side; the failure has been logged, try again or report it with the time"
        _refuse(context, grpc.StatusCode.INTERNAL, detail)
    return messages.RecommendResponse()


def _request(message: messages.RecommendRequest) -> RecommendRequest:
    """Raises ValidationError as the endpoint's own model does."""
    fields: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    if message.HasField("allow_items"):
        fields["allow_items"] = list(message.allow_items.item_ids)
    return RecommendRequest.model_validate(fields)


def _message(response: RecommendResponse) -> messages.RecommendResponse:
    return messages.RecommendResponse(**response.model_dump())


def _refuse(context: RayServegRPCContext, code: grpc.StatusCode, details: str) -> None:
    context.set_code(code)
    context.set_details(details)
