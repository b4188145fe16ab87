"""Completions through the endpoint beside llama.cpp called directly, same weights, threads and prompts, in one run.

python -m benchmarks.llm_serving --rounds 3
"""

import argparse
import http.client
import itertools
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import TowerlineError
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings
from data.dataset import open_dataset
from serve.config import AppConfig
from serve.generation import MODEL

DATASET = "movielens-100k"
CLIENTS = (1, 4)
ROUNDS = 3
TOKENS = 128
"""Of each completion."""
REQUESTS = 4
"""That each client sends, one after the other."""
TIMEOUT_S = 60.0
PROTOCOL = f"""\
Each client streams {REQUESTS} completions of up to {TOKENS} tokens one after the other, most probable tokens only, \
each of a prompt of its own; 1 and 4 clients at once. tokens_per_s: tokens written by all clients together, per second \
from the first request to the last answer. ttft_ms: from a request to its first text, the median. llm: POST \
/v1/completions of an endpoint as `make serve` starts it, over HTTP from this machine. llama_cpp: the same prompts to \
llama.cpp in a process without Ray, called from a thread for each client, with the endpoint's threads, sequences and \
context. Both take turns: direct, endpoint, direct again; figures are medians over rounds and runs."""


@dataclass(frozen=True)
class Completed:
    """One completion."""

    tokens: int
    first_s: float
    """Seconds from the request to the first text."""


Complete = Callable[[str], Completed]
"""Has a prompt completed."""
Figures = dict[str, float]
Measured = dict[tuple[str, str], float]
"""A side's figures by metric and place."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm_serving", description=__doc__)
    parser.add_argument("--dataset", default=DATASET, help="one that has a champion, for the endpoint to start with")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure and report."""
    asked, settings = parse(arguments), Settings()
    clock = ReportClock("bench_llm_serving")
    version = open_dataset(settings.home, asked.dataset).manifest.data_version
    figures = measure(settings, asked.dataset, asked.rounds)
    report = clock.finish(config=vars(asked), protocol=PROTOCOL, data_version=version, figures=figures)
    for name, value in figures.items():
        print(f"{name}: {value:.4g}")
    print(f"report {report.write(settings.home)}")


def measure(settings: Settings, dataset: str = DATASET, rounds: int = ROUNDS) -> Figures:
    """Tokens per second and milliseconds to the first token of both sides, and the ratios of the former.

    Raises:
        TowerlineError: the data set has no champion, or the endpoint's port is taken.
    """
    config = AppConfig(dataset=dataset)
    before, ours, after = _direct(config, rounds), _served(settings, config, rounds), _direct(config, rounds)
    figures: Figures = {}
    for metric, place in ours:
        figures[f"{metric}/llm/{place}"] = ours[metric, place]
        figures[f"{metric}/llama_cpp/{place}"] = (before[metric, place] + after[metric, place]) / 2
    for clients in CLIENTS:
        llm, llama_cpp = (figures[f"tokens_per_s/{side}/c{clients}"] for side in ("llm", "llama_cpp"))
        figures[f"tokens_per_s_ratio/llm/llama_cpp/c{clients}"] = llm / llama_cpp
    return figures


def _served(settings: Settings, config: AppConfig, rounds: int) -> Measured:
    from cluster.session import connect
    from serve.session import running

    with connect(settings, log_to_driver=False), running(settings, config) as url:
        address = urlsplit(url).netloc
        return measured(lambda prompt: completed_over_http(address, prompt), rounds)


def completed_over_http(address: str, prompt: str) -> Completed:
    """By the endpoint at `address` (host:port). Raises TowerlineError if it refuses."""
    asked = {
        "model": MODEL,
        "prompt": prompt,
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    with closing(http.client.HTTPConnection(address, timeout=TIMEOUT_S)) as connection:
        began = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(asked), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != HTTPStatus.OK:
            raise TowerlineError(f"{address} answers {response.status}: {response.read().decode()}")
        first_s, tokens = 0.0, 0
        for line in response:
            if line.startswith(b"data: {"):
                first_s = first_s or time.perf_counter() - began
                chunk = json.loads(line.removeprefix(b"data: "))
                tokens = (chunk["usage"] or {"completion_tokens": 0})["completion_tokens"]
    return Completed(tokens, first_s)


def _direct(config: AppConfig, rounds: int) -> Measured:
    """In a process of its own, which is gone afterwards."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(_direct_here, config, rounds).result()


def _direct_here(config: AppConfig, rounds: int) -> Measured:
    from cluster.assets import SMOLLM2, fetch
    from serve.language_model import load_llama

    llama, _ = load_llama(
        fetch(SMOLLM2) / SMOLLM2.files[0].name,
        threads=config.explain.threads,
        parallel=config.explain.parallel + config.completions.parallel,
        context=config.explain.context,
        max_tokens=TOKENS,
    )
    return measured(lambda prompt: completed_directly(llama, prompt), rounds)


def completed_directly(llama: Any, prompt: str, tokens: int = TOKENS) -> Completed:
    """By llama.cpp in this process; `tokens` at most."""
    first_s, written = 0.0, 0

    def take(chunk: dict[str, Any]) -> bool:
        nonlocal first_s, written
        first_s = first_s or time.perf_counter() - began
        written = chunk.get("usage", {}).get("completion_tokens", 0)
        return False

    asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, "cache_prompt": True}
    began = time.perf_counter()
    llama.handle_completions({**asked, "stream_options": {"include_usage": True}}, take)
    return Completed(written, first_s)


def measured(complete: Complete, rounds: int) -> Measured:
    """The figures of one side: medians over the rounds. Both sides are asked the same prompts in the same order."""
    complete("Once upon a time")
    seen = defaultdict(list)
    numbers = itertools.count()
    for _ in range(rounds):
        for clients in CLIENTS:
            prompts = [f"Tale {next(numbers)}. Once upon a time, there was a" for _ in range(clients * REQUESTS)]
            began = time.perf_counter()
            with ThreadPoolExecutor(clients) as pool:
                done = list(pool.map(complete, prompts))
            seconds = time.perf_counter() - began
            seen["tokens_per_s", f"c{clients}"].append(sum(each.tokens for each in done) / seconds)
            seen["ttft_ms", f"c{clients}"].append(1e3 * median(each.first_s for each in done))
    return {name: median(values) for name, values in seen.items()}


if __name__ == "__main__":
    run_job(main)
