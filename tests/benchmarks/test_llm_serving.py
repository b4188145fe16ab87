"""Both sides of the benchmark write the same tokens, and what they write is counted alike."""

from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI

from benchmarks.llm_serving import CLIENTS, TOKENS, completed_directly, completed_over_http, measured
from cluster.assets import SMOLLM2, fetch
from cluster.errors import TowerlineError
from serve.completions import add_completions
from serve.generation import CompletionsConfig, Writer
from serve.language_model import load_llama
from serve.problems import install
from tests.serve.conftest import listening

PROMPT = "Once upon a time, there was a"


def test_a_completion_is_the_same_over_http_and_directly() -> None:
    weights = fetch(SMOLLM2) / SMOLLM2.files[0].name
    llama, _ = load_llama(weights, threads=1, parallel=2, context=512, max_tokens=TOKENS)
    app, config = FastAPI(), CompletionsConfig(parallel=2, max_tokens=TOKENS)
    install(app, max_body=2**20)
    add_completions(app, Writer(llama, config), config)
    with listening(app) as url:
        address = urlsplit(url).netloc
        ours, direct = completed_over_http(address, PROMPT), completed_directly(llama, PROMPT)
        assert ours.tokens == direct.tokens > TOKENS / 2
        assert 0 < direct.first_s < 5
        assert 0 < ours.first_s < 5
        with pytest.raises(TowerlineError, match=r"answers 422: .*prompt"):
            completed_over_http(address, "")


def test_a_side_is_measured_at_all_numbers_of_clients() -> None:
    weights = fetch(SMOLLM2) / SMOLLM2.files[0].name
    llama, _ = load_llama(weights, threads=1, parallel=4, context=512, max_tokens=4)
    found = measured(lambda prompt: completed_directly(llama, prompt, tokens=4), rounds=1)
    places = {f"c{clients}" for clients in CLIENTS}
    assert set(found) == {(metric, place) for metric in ("tokens_per_s", "ttft_ms") for place in places}
    assert all(value > 0 for value in found.values())
