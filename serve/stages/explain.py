"""Says in a sentence why an item is recommended: SmolLM2-135M-Instruct, run by llama.cpp inside this process.

A model this small invents years, titles and genres when it writes freely. So the prompt holds only facts, and a
grammar (GBNF) lets the model choose its words, which facts it names and in which order, but no fact of its own.
`serve.vllm` gives another model the same prompt and grammar.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve.batch import Batch, Facts
from serve.generation import SMOLLM2_BY_LLAMA, Identity
from serve.language_model import load_llama
from serve.vllm.config import VllmConfig

logger = logging.getLogger(__name__)

SYSTEM = "You tell a person in one sentence why an item is recommended, from the given facts only."
EXAMPLES = (
    (
        Facts(0, "Titanic", ("Ghost", "Casablanca"), ("Drama", "Romance"), 350),
        "Titanic should suit you because you chose Ghost and Casablanca, and what they share is Drama and Romance.",
    ),
    (
        Facts(0, "Red scarf", (), ("Wool",), 41),
        "Red scarf is a good first pick because 41 people chose it, and it stands for Wool.",
    ),
)
"""Few-shot examples, for a user with a history and for one without."""


class Turn(TypedDict):
    """One turn of the prompt, as OpenAI's protocol has it."""

    role: Literal["system", "user", "assistant"]
    content: str


class ExplainConfig(BaseModel):
    """How the language model runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["llama.cpp", "vllm"] = "llama.cpp"
    """What runs the language model of explanations and completions: llama.cpp on a node's cores, or vLLM on GPUs (not
    run here). Re-ranking is llama.cpp's in either case: it was evaluated with that model's likelihoods."""

    vllm: VllmConfig | None = None
    """What vLLM runs; needed where it is the engine."""

    threads: int = Field(default=0, ge=0)
    """Threads of llama.cpp; 0 means one fewer than the cores this process may use, and at most 8. They spin while
    they wait for each other, so with a busy neighbour on the last core everything would crawl."""

    parallel: int = Field(default=4, ge=1, le=64)
    """Sentences that are written at once (continuous batching), beside the completions."""

    max_tokens: int = Field(default=320, ge=16, le=512)
    """Longest sentence in tokens; a longer one is given up."""

    context: int = Field(default=1024, ge=512)
    """Tokens of prompt and sentence, or completion, together."""

    @model_validator(mode="after")
    def _vllm_has_a_model(self) -> Self:
        if self.engine == "vllm" and self.vllm is None:
            raise ValueError("engine is 'vllm', and vllm is not set; give it a model: [explain.vllm] name and model")
        return self

    @property
    def on_gpus(self) -> VllmConfig | None:
        """What vLLM runs, if it is the engine."""
        return self.vllm if self.engine == "vllm" else None

    @property
    def identity(self) -> Identity:
        """Which language model answers."""
        return SMOLLM2_BY_LLAMA if self.on_gpus is None else self.on_gpus.identity


class Explain:
    """Writes the sentences for the facts of a batch."""

    def __init__(self, weights: Path, config: ExplainConfig, beside: int = 0) -> None:
        """Load the model (`weights`: a GGUF file) and write a first sentence, in about two seconds.

        `beside`: what else is written at once with the same model (`llama`).

        Raises:
            TowerlineError: the file is not there.
        """
        self._config = config
        # Nobody gets the key to the model's own port.
        self.llama, _ = load_llama(
            weights,
            threads=config.threads,
            parallel=config.parallel + beside,
            context=config.context,
            max_tokens=config.max_tokens,
        )
        self._writers = ThreadPoolExecutor(config.parallel, thread_name_prefix="explain")
        self.explain(EXAMPLES[0][0])

    def run(self, batch: Batch) -> Batch:
        """Fill in `explanations`; an item whose sentence did not come out right has none.

        No sentence is begun after the caller has given up.
        """
        deadline = time.monotonic() + batch.budget_s
        texts = self._writers.map(
            lambda facts: self.explain(facts) if time.monotonic() < deadline else None,
            itertools.chain.from_iterable(batch.facts),
        )
        return with_sentences(batch, texts)

    def explain(self, facts: Facts) -> str | None:
        """One sentence, or None if the model found no end. Blocks for some tenths of a second."""
        answer: dict[str, Any] = self.llama.handle_chat_completions(
            {
                "messages": messages(facts),
                "grammar": grammar(facts),
                "max_tokens": self._config.max_tokens,
                "temperature": 0,
                "cache_prompt": True,
            }
        )
        if "choices" not in answer:
            logger.error("no explanation: %s", answer.get("error", answer))
            return None
        choice = answer["choices"][0]
        text: str = choice["message"]["content"]
        return text if choice["finish_reason"] == "stop" else None


def with_sentences(batch: Batch, texts: Iterable[str | None]) -> Batch:
    """The batch with a text for each of its facts, in their order; None: that item has no sentence."""
    left = iter(texts)
    explanations = tuple(
        {fact.code: text for fact, text in zip(facts, itertools.islice(left, len(facts)), strict=True) if text}
        for facts in batch.facts
    )
    return dataclasses.replace(batch, explanations=explanations)


def messages(facts: Facts) -> list[Turn]:
    """The prompt: what to do, two examples, the facts."""
    prompt: list[Turn] = [{"role": "system", "content": SYSTEM}]
    for example, answer in EXAMPLES:
        prompt += [{"role": "user", "content": _listed(example)}, {"role": "assistant", "content": answer}]
    return [*prompt, {"role": "user", "content": _listed(facts)}]


def _listed(facts: Facts) -> str:
    lines = [f"Recommended: {facts.item}"]
    if facts.chosen:
        lines.append(f"Chosen before: {' and '.join(facts.chosen)}")
    if facts.traits:
        lines.append(f"{'In common' if facts.chosen else 'Traits'}: {' and '.join(facts.traits)}")
    if not facts.chosen:
        lines.append(f"Chosen by: {_people(facts.people)}")
    return "\n".join(lines)


def grammar(facts: Facts) -> str:
    """The sentences that may be written about these facts, in GBNF."""
    if facts.chosen:
        opener = _one_of("may please you", "should suit you", "looks right for you", "fits your taste")
        reason = f'" because you " {_one_of("chose", "picked", "went for")} " " {_some_of(facts.chosen)}'
        link = _one_of(", and what they share is ", ", and it is just as much about ", ", and like it stands for ")
    else:
        opener = _one_of("is a good first pick", "is a good place to start", "may please you")
        chose = _one_of(f" because {_people(facts.people)} chose it", f" because {_people(facts.people)} picked it")
        reason = chose if facts.people else '" because it is new"'
        link = _one_of(", and it stands for ", ", and it is about ", ", and it offers ")
    traits = f" {link} {_some_of(facts.traits)}" if facts.traits else ""
    return f'root ::= {_literal(facts.item)} " " {opener} {reason}{traits} "."'


def prompt_version() -> str:
    """Changes whenever the prompt or the grammar does; kept with every decision."""
    rendered = [(messages(facts), grammar(facts)) for facts, _ in EXAMPLES]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()[:12]


def _people(count: int) -> str:
    return "1 person" if count == 1 else f"{count} people"


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _one_of(*texts: str) -> str:
    return f"({' | '.join(map(_literal, texts))})"


def _some_of(names: Sequence[str]) -> str:
    """One or more of the names, in any order, each once."""
    orders = (order for size in range(1, len(names) + 1) for order in itertools.permutations(names, size))
    return _one_of(*(" and ".join(order) for order in orders))
