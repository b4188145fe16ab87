"""The real language model writes sentences that say nothing but the facts."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from cluster.assets import SMOLLM2, fetch
from cluster.errors import TowerlineError
from serve.batch import Batch, Call, Facts
from serve.stages.explain import Explain, ExplainConfig, grammar, messages, prompt_version

ODD = 'A "quoted" \\ 千と千尋 (1997) |)'

CASES = {
    "history and shared traits": Facts(1, "Aliens", ("Alien", "Terminator, The"), ("Action", "Sci-Fi", "Horror"), 284),
    "history alone": Facts(2, "Fargo", ("Toy Story",), (), 508),
    "nobody's history": Facts(3, "Contact", (), ("Drama",), 509),
    "one person": Facts(4, "Blue mug", (), (), 1),
    "nobody at all": Facts(5, "New mug", (), ("Blue",), 0),
    "odd letters": Facts(6, ODD, (ODD + "2",), ("{x}", "|"), 3),
    "long names": Facts(7, "千" * 20, ("尋" * 20, "と" * 20), ("xq" * 15,), 3),
}


@pytest.fixture(scope="module")
def explain() -> Explain:
    return Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, ExplainConfig(threads=1, parallel=2))


@pytest.mark.parametrize("case", [name for name in CASES if name != "long names"])
def test_a_sentence_names_the_item_and_only_known_facts(explain: Explain, case: str) -> None:
    facts = CASES[case]
    sentence = explain.explain(facts)
    assert sentence is not None
    assert sentence.startswith(facts.item + " ")
    assert sentence.endswith(".")
    left = sentence.removeprefix(facts.item)
    for name in sorted((*facts.chosen, *facts.traits, f"{facts.people} p"), key=len, reverse=True):
        left = left.replace(name, "")
    assert not any(letter.isdigit() or letter.isupper() or not letter.isascii() for letter in left), sentence
    assert not facts.chosen or any(name in sentence for name in facts.chosen)


def test_a_sentence_too_long_for_its_limit_is_given_up() -> None:
    short = Explain(fetch(SMOLLM2) / SMOLLM2.files[0].name, ExplainConfig(threads=1, parallel=1, max_tokens=16))
    assert short.explain(CASES["history and shared traits"]) is None


def test_the_longest_facts_fit_into_the_context(explain: Explain) -> None:
    assert explain.explain(CASES["long names"]) is not None


def test_a_batch_gets_its_sentences_back_in_its_own_order(explain: Explain) -> None:
    calls = tuple(Call(str(number), "u", 3, explain=True) for number in range(3))
    facts = ((CASES["history alone"], CASES["one person"]), (), (CASES["nobody at all"],))
    batch = explain.run(Batch(calls, datetime(2024, 5, 1, tzinfo=UTC), facts=facts))
    assert [set(texts) for texts in batch.explanations] == [{2, 4}, set(), {5}]
    assert batch.explanations[0][4].startswith("Blue mug")
    assert batch.explanations[2][5].startswith("New mug")


def test_the_same_facts_give_the_same_sentence(explain: Explain) -> None:
    facts = CASES["history and shared traits"]
    assert explain.explain(facts) == explain.explain(facts)


def test_the_prompt_holds_the_facts_and_nothing_of_the_user() -> None:
    facts = CASES["history and shared traits"]
    last = messages(facts)[-1]["content"]
    assert (
        last == "Recommended: Aliens\nChosen before: Alien and Terminator, The\nIn common: Action and Sci-Fi and Horror"
    )
    assert "284" not in grammar(facts)


def test_the_prompt_has_a_version_that_follows_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt_version()
    assert before == prompt_version()
    monkeypatch.setattr("serve.stages.explain.SYSTEM", "Say something else.")
    assert prompt_version() != before


def test_a_missing_model_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"no\.gguf"):
        Explain(tmp_path / "no.gguf", ExplainConfig())
