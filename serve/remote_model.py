"""The language model of the `ExplainReplica` deployment, asked from a gateway: a streaming call for each completion."""

import logging
from collections.abc import AsyncGenerator
from typing import Any

import ray.serve.exceptions
from ray.serve.handle import DeploymentHandle

from serve.cold_start import ColdStart
from serve.generation import Piece, Question, Refused, Text
from serve.ray_failures import REPLICA_FAILURES
from serve.steps import StageColdError

logger = logging.getLogger(__name__)


class RemoteModel:
    """A `serve.generation.LanguageModel`. Belongs to one event loop."""

    def __init__(self, handle: DeploymentHandle[Any], most: int, cold_start: ColdStart | None = None) -> None:
        """`most`: completions that this gateway asks for at once. `cold_start`: where there may be no replica."""
        self._handle = handle.options(stream=True)
        self._most = most
        self._cold_start = cold_start
        self._under_way = 0

    async def write(self, question: Question) -> AsyncGenerator[Piece, None]:
        """The pieces of a completion; the deployment gives it up when this generator is closed before its end."""
        if self._under_way == self._most:
            yield Refused("busy", f"{self._most} completions are asked for already")
            return
        self._under_way += 1
        try:
            if self._cold_start is not None:
                await self._cold_start.require_warm()
            response: Any = self._handle.write.remote(question)
            under_way = True
            try:
                async for piece in response:
                    under_way = isinstance(piece, Text)
                    yield piece
            except Exception:
                under_way = False
                raise
            finally:
                if under_way:
                    response.cancel()
        except StageColdError as error:
            yield Refused("cold", str(error))
        except ray.serve.exceptions.BackPressureError as error:
            yield Refused("busy", str(error))
        except REPLICA_FAILURES as error:
            logger.warning("a completion failed: %s", error)
            yield Refused("failed", "the language model's replica does not answer")
        finally:
            self._under_way -= 1
