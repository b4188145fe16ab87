"""Here there is no vLLM, and that is said; what one sends is read."""

import asyncio
from pathlib import Path

import pytest
from pydantic import BaseModel

from cluster.errors import TowerlineError
from cluster.settings import Settings
from serve.config import AppConfig
from serve.session import require_servable
from serve.vllm.config import VllmConfig
from serve.vllm.server import VllmServer, chunk_of, require_vllm
from tests.serve.vllm.recorded import CHAT, TOO_LONG

MISSING = (
    r"explain\.engine is 'vllm', and this environment has no vLLM; .*cluster/vllm/Dockerfile.* or set it to 'llama"
)


class Error(BaseModel):
    """Ray hands out an error that comes before the stream as a pydantic model."""

    error: dict[str, object]


def test_an_environment_without_vllm_says_so() -> None:
    with pytest.raises(TowerlineError, match=MISSING):
        require_vllm()


def test_so_does_a_replica() -> None:
    with pytest.raises(TowerlineError, match=MISSING):
        asyncio.run(VllmServer.start(VllmConfig(name="qwen", model="qwen").llm_config(context=1024, parallel=8)))


def test_that_is_said_before_anything_starts_unless_another_node_may_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    vllm = {"name": "qwen", "model": "/models/qwen"}
    config = AppConfig.model_validate({"dataset": "shop", "explain": {"engine": "vllm", "vllm": vllm}})
    with pytest.raises(TowerlineError, match=MISSING):
        require_servable(Settings(home=tmp_path), config)
    for settings, here in ((Settings(home=tmp_path, ray_address="auto"), True), (Settings(home=tmp_path), False)):
        with pytest.raises(TowerlineError, match="data set 'shop' does not exist"):
            require_servable(settings, config, here=here)


def test_ray_has_no_server_without_vllm() -> None:
    """What makes `require_vllm` necessary: the day this import works, it has to ask for something else."""
    with pytest.raises(ImportError, match="vLLM"):
        from ray.serve.llm import LLMServer  # noqa: F401


def test_events_and_errors_become_chunks() -> None:
    chunk = chunk_of(CHAT[1])
    assert chunk is not None
    assert chunk["choices"][0]["delta"] == {"content": "Hel"}
    assert chunk_of(CHAT[-1]) is None
    assert chunk_of(Error.model_validate(TOO_LONG)) == TOO_LONG
