"""The OpenAPI document against itself and against the service: every example fits its schema, and works."""

from collections.abc import Iterator

import httpx
import pytest

from data.dataset import Dataset
from tests.serve.conftest import Answering, published
from tests.serve.openapi import Document, operations, require_answers, require_examples, require_problems


@pytest.fixture(scope="module")
def client(answering: Answering, shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An endpoint of its own: the examples' feedback is nobody else's."""
    folder = tmp_path_factory.mktemp("openapi")
    with answering(published(shop, folder), folder / "decisions") as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Document:
    found: Document = client.get("/openapi.json").json()
    return found


def test_every_request_answer_and_problem_has_examples_that_fit_its_schema(document: Document) -> None:
    require_examples(document)


def test_problems_are_those_of_their_status(document: Document) -> None:
    require_problems(document)


def test_operations_have_names_of_their_own(document: Document) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"recommend", "recommend_batch", "similar", "features", "models", "feedback", "healthz"} <= set(names)


def test_the_service_answers_every_example_as_documented(client: httpx.Client, document: Document) -> None:
    """The examples name items and users of MovieLens: here nobody knows them, which only `similar` minds."""
    require_answers(client, document, lambda path: 404 if path.endswith("/similar") else 200)
