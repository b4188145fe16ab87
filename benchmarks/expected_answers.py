"""Which answers to a request for recommendations are right, as the stages say that are run in this process."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, combinations
from typing import Any

from cluster.settings import Settings
from serve.batch import Batch, Call, Stage
from serve.config import AppConfig
from serve.graph import RANKED, StageName
from serve.loading import Parts
from serve.schemas import MAX_COUNT
from serve.steps import run_stages
from train.vocabulary import UNKNOWN

TOLERANCE = 1e-3
"""Difference of two scores, as a share of the list's largest, that other batches and a later moment may make."""

Scored = Mapping[str, float]
"""Item to score, best first: more items than a request asks for."""


class Expected:
    """The right answers to some users, also those that go without a stage and say so."""

    def __init__(self, lists: Mapping[frozenset[str], Mapping[str, Scored]], variant: str, count: int) -> None:
        """`lists`: by the stages that are left out, then by user. `count`: items that are asked for."""
        self.users = tuple(lists[frozenset()])
        self.count = count
        self._lists = lists
        self._variant = variant

    def fault(self, user: str, answer: Mapping[str, Any]) -> str | None:
        """What is wrong with an answer, None if nothing is."""
        if (answer["user_id"], answer["variant"]) != (user, self._variant):
            return f"it is for {answer['user_id']!r} by {answer['variant']}, not for {user!r} by {self._variant}"
        lists = self._lists.get(frozenset(answer["degraded"]))
        if lists is None:
            return f"it goes without {answer['degraded']}, which have no fallback"
        expected = lists[user]
        items = [(str(item["item_id"]), float(item["score"])) for item in answer["items"]]
        if len({item for item, _ in items}) != min(self.count, len(expected)):
            return f"{len(items)} items, of which some may be the same, expected {min(self.count, len(expected))}"
        tolerance = TOLERANCE * max(map(abs, expected.values()))
        for (item, score), least in zip(items, expected.values(), strict=False):
            if item not in expected:
                return f"item {item!r} is no candidate of user {user!r}"
            if abs(score - expected[item]) > tolerance or score < least - tolerance:
                return f"item {item!r} has {score:.6g}, expected {expected[item]:.6g} in a place from {least:.6g} on"
        return None


def expected_answers(settings: Settings, config: AppConfig, variant: str, users: Sequence[str], count: int) -> Expected:
    """What `config` answers by a variant: whole, and without each choice of the stages that have a fallback."""
    parts = Parts(settings, config, variant)
    stages = {name: parts.stage(name) for name in RANKED}
    fallbacks = {name: stage for name, stage in parts.fallbacks().items() if name in RANKED}
    lists = {}
    for left_out in _choices(fallbacks):
        chosen = [(name, fallbacks[name] if name in left_out else stages[name]) for name in RANKED]
        lists[frozenset[str](left_out)] = _lists(parts, chosen, users)
    parts.store.close()
    return Expected(lists, variant, count)


def _choices(names: Iterable[StageName]) -> Iterable[tuple[StageName, ...]]:
    """None of them, each of them, each two, and so on."""
    names = tuple(names)
    return chain.from_iterable(combinations(names, size) for size in range(len(names) + 1))


def _lists(parts: Parts, stages: Sequence[tuple[str, Stage]], users: Sequence[str]) -> dict[str, Scored]:
    calls = tuple(Call("expected", user, MAX_COUNT) for user in users)
    batch = run_stages(stages, Batch(calls, datetime.now(UTC)))
    item_id = parts.variant.catalogue.item_id
    return {
        user: {item_id(code): score for code, score in zip(codes, scores, strict=True) if code != UNKNOWN}
        for user, codes, scores in zip(users, batch.codes_BK.tolist(), batch.scores_BK.tolist(), strict=True)
    }
