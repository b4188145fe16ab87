"""Re-ranks the first candidates of a cold user by how likely the language model finds their names.

What an item is liked more for than its name alone explains is log p(name | profile) - log p(name | nobody's profile),
the pointwise mutual information of name and profile: a likelihood by itself would put short and common names first
(Holtzman et al., "Surface Form Competition: Why the Highest Probability Answer Isn't Always Right", EMNLP 2021).
Only names and attributes that are given are scored; the model writes nothing.
"""

import hashlib
import json
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.schema import USER_EVENT_COUNT
from serve.batch import Batch, Codes, Profile
from serve.language_model import Likelihood
from serve.reranking_policy import RerankingPolicy

Preferences = NDArray[np.float64]

EXAMPLES = (
    Profile(attributes=("age 24", "occupation student"), liked=("Alien", "Titanic"), candidates=()),
    Profile(attributes=(), liked=("Red scarf",), candidates=()),
    Profile(attributes=("age 24",), liked=(), candidates=()),
)
"""What the prompt's version is made of."""


class NamePreferences:
    """What the language model makes of candidates' names."""

    def __init__(self, likelihood: Likelihood) -> None:
        self._likelihood = likelihood
        self._nobodys: dict[str, float] = {}
        """The likelihood of a name without a profile: one number for each item that was ever a candidate."""

    def of(self, profile: Profile) -> Preferences:
        """The pointwise mutual information (nats) of the profile and each candidate's name; 0 for an empty profile."""
        names = profile.candidates
        if not profile.liked and not profile.attributes:
            return np.zeros(len(names))
        if new := [name for name in dict.fromkeys(names) if name not in self._nobodys]:
            self._nobodys |= dict(zip(new, self._likelihood(prompt(Profile()), _entries(new)), strict=True))
        theirs = self._likelihood(prompt(profile), _entries(names))
        return np.array([own - self._nobodys[name] for own, name in zip(theirs, names, strict=True)])


class Rerank:
    """Puts the first candidates of cold users in another order, as an evaluation has found it to help."""

    def __init__(self, likelihood: Likelihood, policy: RerankingPolicy) -> None:
        self._preferences = NamePreferences(likelihood)
        self._policy = policy

    def run(self, batch: Batch) -> Batch:
        """Reorder the first candidates of each row whose user has fewer events than the policy says.

        An item keeps the ranker's score, which is then not in order any more. No row is begun after the caller has
        given up.
        """
        deadline = time.monotonic() + batch.budget_s
        order_BK = np.tile(np.arange(batch.codes_BK.shape[1]), (len(batch), 1))
        for row, (profile, events) in enumerate(zip(batch.profiles, batch.users[USER_EVENT_COUNT], strict=True)):
            if events < self._policy.below_events and time.monotonic() < deadline:
                count = len(profile.candidates)
                scores_M = batch.scores_BK[row, :count].astype(np.float64)
                order_BK[row, :count] = blended_order(scores_M, self._preferences.of(profile), self._policy.weight)
        return batch.reordered(order_BK)


def blended_order(scores_M: Preferences, preferences_M: Preferences, weight: float) -> Codes:
    """The places (M,) of candidates, best first, by `(1 - weight) * scores + weight * preferences`.

    Both are standardised over the M candidates before, so that the weight (0 to 1) means the same for every ranker.
    Ties keep the order of the candidates; without differing preferences it is the order of the scores.
    """
    if _all_equal(preferences_M):
        blended_M = scores_M
    else:
        blended_M = (1 - weight) * _standardised(scores_M) + weight * _standardised(preferences_M)
    order_M: Codes = np.argsort(-blended_M, kind="stable").astype(np.int64)
    return order_M


def prompt(profile: Profile) -> str:
    """A list that was begun: the person and the names of what the person liked; the next name is to follow."""
    who = f"One person ({', '.join(profile.attributes)})" if profile.attributes else "One person"
    return "\n".join([f"{who} chose these:", *(f"- {name}" for name in profile.liked), "-"])


def prompt_version() -> str:
    """Changes whenever the prompt does: what was found for one prompt says nothing of another."""
    rendered = [(prompt(profile), _entries(profile.liked)) for profile in (*EXAMPLES, Profile())]
    return hashlib.sha256(json.dumps(rendered).encode()).hexdigest()[:12]


def _entries(names: Sequence[str]) -> list[str]:
    """Names as what follows a prompt: with the end of the line, so that they are likely as a whole."""
    return [f" {name}\n" for name in names]


def _standardised(values_M: Preferences) -> Preferences:
    """Mean 0 and deviation 1; zeros if all are equal."""
    if _all_equal(values_M):
        return np.zeros(len(values_M))
    standardised: Preferences = (values_M - values_M.mean()) / values_M.std()
    return standardised


def _all_equal(values_M: Preferences) -> bool:
    return bool((values_M == values_M[:1]).all())
