"""The likelihood of a given text is that of its own tokens, and always the same."""

import math
from pathlib import Path

import pytest

from cluster.assets import SMOLLM2, fetch
from cluster.errors import TowerlineError
from serve.batch import Profile
from serve.language_model import LISTED, TextLikelihood
from serve.stages.rerank import NamePreferences

START = "One person chose these:\n- Alien\n-"
NAMES = [" Aliens\n", " Casablanca\n", " 千と千尋\n"]


@pytest.fixture(scope="module")
def likelihood() -> TextLikelihood:
    return TextLikelihood(fetch(SMOLLM2) / SMOLLM2.files[0].name)


@pytest.mark.cluster
def test_it_is_the_sum_of_what_the_model_says_of_each_token(likelihood: TextLikelihood) -> None:
    """Written freely, the most probable continuation has the likelihood that it is given as a text."""
    answer = likelihood._server.handle_completions(
        {"prompt": "The capital of France is", "n_predict": 1, "n_probs": 5, "temperature": 0}
    )
    written = answer["choices"][0]["logprobs"]["content"][0]
    for each in written["top_logprobs"]:
        assert likelihood("The capital of France is", [each["token"]]) == pytest.approx([each["logprob"]], abs=0.05)
    assert max(math.exp(each["logprob"]) for each in written["top_logprobs"]) < 1


@pytest.mark.cluster
def test_the_same_text_has_the_same_likelihood_whatever_was_asked_before(likelihood: TextLikelihood) -> None:
    first = likelihood(START, NAMES)
    likelihood("Something else", [" entirely"])
    assert likelihood(START, NAMES[::-1])[::-1] == first
    assert all(value < 0 for value in first)


@pytest.mark.cluster
def test_parts_of_letters_count_too(likelihood: TextLikelihood) -> None:
    """Of a letter that is several tokens llama.cpp says nothing before the letter is whole."""
    start, tokens = list(likelihood._tokens(START)), likelihood._tokens("尋")
    assert len(tokens) > 1
    assert likelihood._written(start, tokens[0], 1) is None
    parts = [likelihood._log_probability([*start, *tokens[:place]], token) for place, token in enumerate(tokens)]
    assert likelihood(START, ["尋"]) == [pytest.approx(sum(parts))]
    beside = likelihood._written(start, likelihood._tokens("\n")[0], LISTED)
    assert beside is not None
    listed = [each["logprob"] for each in beside["top_logprobs"]]
    assert len(listed) == LISTED
    assert min(listed) <= parts[0] < 0


@pytest.mark.cluster
def test_a_part_of_a_letter_has_the_probability_that_is_listed(likelihood: TextLikelihood) -> None:
    """After the first part of a letter its other part is probable."""
    tokens = likelihood._tokens("千")
    before = [*likelihood._tokens("千と千尋の神隠し、"), *tokens[:1]]
    beside = likelihood._written(before, likelihood._tokens("\n")[0], LISTED)
    assert beside is not None
    listed = {each["id"]: each["logprob"] for each in beside["top_logprobs"]}
    assert likelihood._log_probability(before, tokens[1]) == pytest.approx(listed[tokens[1]])
    assert listed[tokens[1]] > min(listed.values())


@pytest.mark.cluster
def test_a_sequel_is_preferred_to_what_has_nothing_to_do_with_it(likelihood: TextLikelihood) -> None:
    candidates = ("Casablanca", "The Empire Strikes Back", "Return of the Jedi")
    preferences = NamePreferences(likelihood).of(Profile(liked=("Star Wars",), candidates=candidates))
    assert preferences.argmin() == 0


@pytest.mark.cluster
def test_a_prompt_longer_than_the_context_is_refused(likelihood: TextLikelihood) -> None:
    with pytest.raises(TowerlineError, match=r"the language model gives no likelihood: .*context"):
        likelihood("word " * 5000, [" end"])


def test_a_missing_model_file_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TowerlineError, match=r"no\.gguf: the language model is not there; run `make install`"):
        TextLikelihood(tmp_path / "no.gguf")
