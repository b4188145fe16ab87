"""The language model inside this process: llama.cpp, from a GGUF file, and how likely it finds a given text."""

import http.client
import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cluster.errors import TowerlineError

Likelihood = Callable[[str, Sequence[str]], list[float]]
"""The log-likelihood (nats) of each of some texts as what follows a prompt."""

FORCED = 1000.0
"""A logit bias that no logit outweighs."""
LISTED = 1000
"""A part of a letter that is not among so many of the most probable tokens counts as the last of them: to list more
would take seconds."""
TEXTS_KEPT = 4096
"""Texts whose tokens are kept: titles come again and again."""


def load_llama(weights: Path, *, threads: int, parallel: int, context: int, max_tokens: int) -> tuple[Any, str]:
    """A server of llama.cpp in this process, and the key to the loopback port that it opens as well.

    `threads`: 0 takes one fewer than the cores this process may use, and at most 8. `parallel` answers at once, each
    of `context` tokens, prompt included, of which `max_tokens` may be written.

    Raises:
        TowerlineError: the file is not there.
    """
    import xllamacpp

    if not weights.is_file():
        raise TowerlineError(f"{weights}: the language model is not there; run `make install` to fetch it")
    threads = threads or max(1, min(8, len(os.sched_getaffinity(0)) - 1))
    key = secrets.token_hex()
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.n_parallel = parallel
    parameters.n_ctx = parallel * context
    parameters.n_predict = max_tokens
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.verbosity = -1
    parameters.api_keys = [key]
    parameters.ui = False
    return xllamacpp.Server(parameters), key


class TextLikelihood:
    """How likely a language model finds given texts: a `Likelihood`. One text at a time; the same text, the same value.

    llama.cpp tells the probability of tokens that it writes, not of those it reads. So each token of the text is forced
    by a logit bias, and the probability that it had without is read; the prompt's part of the cache is kept. A grammar
    that allows the text alone would not do: it lets the model cut the text into other tokens, of another likelihood.
    """

    def __init__(self, weights: Path, *, threads: int = 1, context: int = 1024) -> None:
        """Load the model (`weights`: a GGUF file). `context`: most tokens of prompt and text together.

        Raises:
            TowerlineError: the file is not there.
        """
        self._server, self._key = load_llama(weights, threads=threads, parallel=1, context=context, max_tokens=1)
        self._address = str(self._server.listening_address).removeprefix("http://")
        self._one_at_a_time = threading.Lock()
        """Prompts that took turns would throw each other out of the cache."""
        self._tokens = lru_cache(TEXTS_KEPT)(self._tokenized)

    def __call__(self, prompt: str, texts: Sequence[str]) -> list[float]:
        """Raises TowerlineError if the model gives no answer, as for a prompt that is longer than its context."""
        start = self._tokens(prompt)
        with self._one_at_a_time:
            return [self._log_likelihood(start, self._tokens(text)) for text in texts]

    def _log_likelihood(self, prompt: tuple[int, ...], text: tuple[int, ...]) -> float:
        return sum(self._log_probability([*prompt, *text[:place]], token) for place, token in enumerate(text))

    def _log_probability(self, before: list[int], token: int) -> float:
        written = self._written(before, token, 1)
        if written is not None:
            return float(written["logprob"])
        # A part of a letter: llama.cpp is silent until the letter is whole, but lists it beside another token.
        beside = self._written(before, self._tokens("\n")[0], LISTED)
        if beside is None:
            raise TowerlineError(f"the language model gives no likelihood after {before[-1]}: a line's end is no token")
        listed = {each["id"]: float(each["logprob"]) for each in beside["top_logprobs"]}
        return listed.get(token, min(listed.values()))

    def _written(self, before: list[int], token: int, probabilities: int) -> dict[str, Any] | None:
        """What the model says of a token that it was made to write, and of so many of the most probable ones."""
        answer: dict[str, Any] = self._server.handle_completions(
            {
                "prompt": before,
                "logit_bias": [[token, FORCED]],
                "n_predict": 1,
                "n_probs": probabilities,
                "temperature": 0,
                "cache_prompt": True,
            }
        )
        if "choices" not in answer:
            raise TowerlineError(f"the language model gives no likelihood: {answer.get('error', answer)}")
        logprobs = answer["choices"][0]["logprobs"]
        if logprobs is None:
            return None
        written: dict[str, Any] = logprobs["content"][0]
        if written["id"] != token:
            raise TowerlineError(f"the language model wrote token {written['id']} instead of {token}, which was forced")
        return written

    def _tokenized(self, text: str) -> tuple[int, ...]:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        try:
            headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
            connection.request("POST", "/tokenize", json.dumps({"content": text}), headers)
            answer = json.load(connection.getresponse())
        finally:
            connection.close()
        if "tokens" not in answer:
            raise TowerlineError(f"the language model cannot read {text!r}: {answer.get('error', answer)}")
        return tuple(answer["tokens"])
