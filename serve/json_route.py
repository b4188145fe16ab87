"""A route whose body and answer pydantic reads and writes as JSON by itself, without what FastAPI does around that."""

from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.types import Receive, Scope, Send

from serve.openapi import JSON
from serve.problems import replay


class JsonRoute(APIRoute):
    """For an endpoint that takes a model and the request, and returns a model.

    A body that is invalid, or declared in any other way than as JSON, is left to FastAPI, which says what is wrong.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        assert self.body_field is not None
        self._model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]
        self._by_fastapi = self.app
        self.app = self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        asked = self._read(request, body)
        if asked is None:
            await self._by_fastapi(scope, replay([{"type": "http.request", "body": body}], receive), send)
            return
        answer: BaseModel = await self.endpoint(asked, request)
        await Response(answer.model_dump_json(), media_type=JSON)(scope, receive, send)

    def _read(self, request: Request, body: bytes) -> BaseModel | None:
        if request.headers.get("content-type") != JSON:
            return None
        try:
            return self._model.model_validate_json(body)
        except ValidationError:
            return None
