"""A route whose body and answer pydantic reads and writes as JSON by itself: half of what FastAPI takes for both."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

JSON = "application/json"


class JsonRoute(APIRoute):
    """For an endpoint that takes a model and the request, and returns a model.

    A body that is invalid, or declared in any other way than as JSON, is left to FastAPI, which says what is wrong.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        by_fastapi = super().get_route_handler()
        assert self.body_field is not None
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle(request: Request) -> Response:
            if request.headers.get("content-type") != JSON:
                return await by_fastapi(request)
            try:
                asked = model.model_validate_json(await request.body())
            except ValidationError:
                return await by_fastapi(request)
            answer: BaseModel = await self.endpoint(asked, request)
            return Response(answer.model_dump_json(), media_type=JSON)

        return handle
