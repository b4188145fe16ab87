"""A tour of a running endpoint: real requests over HTTP, told in titles and sentences."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from cluster.errors import TowerlineError

TIMEOUT_S = 60.0


def tour(url: str, known_user: str, new_user: str, item: str, say: Callable[[str], None]) -> list[str]:
    """Ask for a known user, a user never seen, similar items and an explanation; tell what was liked and ask again.

    Returns what was said.

    Raises:
        TowerlineError: an answer is not 200 or holds nothing.
    """
    with httpx.Client(base_url=url, timeout=TIMEOUT_S) as client:
        answers = [
            _recommendations(client, f"user {known_user}, known", {"user_id": known_user, "count": 5}),
            _recommendations(client, f"user {new_user!r}, never seen", {"user_id": new_user, "count": 5}),
            _recommendations(
                client,
                f"user {new_user!r}, who just met item {item}",
                {"user_id": new_user, "count": 5, "recent_items": [item]},
            ),
            _feedback(client, new_user),
            _similar(client, item),
            _explained(client, known_user),
        ]
    for answer in answers:
        say(answer)
    return answers


def _recommendations(client: httpx.Client, title: str, body: dict[str, Any]) -> str:
    answer, milliseconds = _ask(client, "POST", "/v1/recommend", body)
    return _told(f"recommended to {title} ({milliseconds:.0f} ms)", _titles(answer["items"]))


def _feedback(client: httpx.Client, user: str) -> str:
    """The user likes the first item; the next answer knows it."""
    body = {"user_id": user, "count": 5}
    liked, _ = _ask(client, "POST", "/v1/recommend", body)
    item = liked["items"][0]
    event = {"user_id": user, "item_id": item["item_id"], "value": 5.0, "decision_id": liked["decision_id"]}
    stored = client.post("/v1/feedback", json={"events": [event]})
    answer, milliseconds = _ask(client, "POST", "/v1/recommend", body)
    if not answer["known_user"] or item["item_id"] in [each["item_id"] for each in answer["items"]]:
        raise TowerlineError(f"feedback has not reached the user's online features: {stored.text}")
    liked_title = item["title"] or item["item_id"]
    return _told(
        f"recommended to user {user!r}, who told us of liking {liked_title} ({milliseconds:.0f} ms)",
        _titles(answer["items"]),
    )


def _similar(client: httpx.Client, item: str) -> str:
    answer, milliseconds = _ask(client, "GET", f"/v1/items/{item}/similar?count=5")
    return _told(f"similar to {answer['title'] or item} ({milliseconds:.0f} ms)", _titles(answer["items"]))


def _explained(client: httpx.Client, user: str) -> str:
    body = {"user_id": user, "count": 3, "explain": True}
    answer, milliseconds = _ask(client, "POST", "/v1/recommend", body)
    sentences = [f"{item['title']}: {item['explanation']}" for item in answer["items"] if item["explanation"]]
    if not sentences:
        raise TowerlineError(f"no explanation came from the language model; degraded: {answer['degraded']}")
    return _told(f"explained to user {user} ({milliseconds:.0f} ms)", sentences)


def _ask(
    client: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None
) -> tuple[dict[str, Any], float]:
    start = time.perf_counter()
    response = client.request(method, path, json=body)
    milliseconds = (time.perf_counter() - start) * 1000
    if response.status_code != httpx.codes.OK:
        raise TowerlineError(f"{method} {path} answered {response.status_code}: {response.text}")
    answer: dict[str, Any] = response.json()
    if not answer["items"]:
        raise TowerlineError(f"{method} {path} answered without items: {response.text}")
    return answer, milliseconds


def _titles(items: Sequence[dict[str, Any]]) -> list[str]:
    return [f"{item['title'] or item['item_id']}  ({item['score']:.2f})" for item in items]


def _told(title: str, lines: Sequence[str]) -> str:
    return "\n".join([title, *(f"   {line}" for line in lines)])
