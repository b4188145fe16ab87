"""The only place that needs vLLM: `ray.serve.llm`'s server inside a replica, asked by OpenAI's protocol.

The names used here are those of Ray 2.60 and of the vLLM that it asks for (`cluster/vllm/constraints.txt`).
"""

import json
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any

from cluster.errors import TowerlineError

DONE = "[DONE]"


def require_vllm() -> None:
    """Raise TowerlineError if this environment has no vLLM, without which `ray.serve.llm` cannot be imported."""
    if find_spec("vllm") is None:
        raise TowerlineError(
            "explain.engine is 'vllm', and this environment has no vLLM; run nodes with GPUs in the image of "
            "cluster/vllm/Dockerfile and attach to their cluster (TOWERLINE_RAY_ADDRESS), or set it to 'llama.cpp'"
        )


class VllmServer:
    """One engine. Belongs to one event loop."""

    def __init__(self, server: Any) -> None:
        """`server`: a `ray.serve.llm.LLMServer` that was started."""
        self._server = server

    @classmethod
    async def start(cls, llm_config: dict[str, Any]) -> "VllmServer":
        """Load the model, which takes minutes. `llm_config`: the arguments of `ray.serve.llm.LLMConfig`.

        Raises:
            TowerlineError: there is no vLLM here.
        """
        require_vllm()
        from ray.serve.llm import LLMConfig, LLMServer

        server = LLMServer.sync_init(LLMConfig(**llm_config))
        await server.start()  # type: ignore[no-untyped-call]
        return cls(server)

    async def chunks(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The chunks of a completion, or of the next turn of a conversation; closing it early gives it up."""
        from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest

        # An id of its own: Ray would give all that is asked within one of its requests the same.
        asked = request | {"request_id": uuid.uuid4().hex}
        if "messages" in request:
            stream = await self._server.chat(ChatCompletionRequest(**asked))
        else:
            stream = await self._server.completions(CompletionRequest(**asked))
        async with aclosing(stream) as batches:
            async for batch in batches:
                for event in batch:
                    if (chunk := chunk_of(event)) is not None:
                        yield chunk

    async def check_health(self) -> None:
        """Raise what is wrong with the engine."""
        await self._server.check_health()


def chunk_of(event: Any) -> dict[str, Any] | None:
    """A server-sent event, or an error that came before any, as a chunk of OpenAI's protocol; None after the last."""
    if not isinstance(event, str):
        error: dict[str, Any] = event.model_dump()
        return error
    data = event.removeprefix("data: ").strip()
    if data == DONE:
        return None
    chunk: dict[str, Any] = json.loads(data)
    return chunk
