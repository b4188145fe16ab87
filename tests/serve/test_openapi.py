"""The OpenAPI document against itself and against the service: every example fits its schema, and works."""

from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import pytest

from data.dataset import Dataset
from serve.problems import MEDIA_TYPE, Problem
from tests.serve.conftest import Answering, published

Operation = dict[str, Any]


@pytest.fixture(scope="module")
def client(answering: Answering, shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """An endpoint of its own: the examples' feedback is nobody else's."""
    folder = tmp_path_factory.mktemp("openapi")
    with answering(published(shop, folder), folder / "decisions") as client:
        yield client


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str, Operation]]:
    return [(path, method, each) for path, methods in document["paths"].items() for method, each in methods.items()]


def examples_of(media: dict[str, Any]) -> list[Any]:
    return [example["value"] for example in media.get("examples", {}).values()]


def validate(instance: object, schema: dict[str, Any], document: dict[str, Any]) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(instance)


def test_every_request_response_and_problem_has_examples_that_fit_its_schema(document: dict[str, Any]) -> None:
    for path, method, operation in operations(document):
        bodies = list(operation.get("requestBody", {}).get("content", {}).values())
        answers = [media for response in operation["responses"].values() for media in response["content"].values()]
        assert operation["description"]
        for media in (*bodies, *answers):
            assert examples_of(media), (path, method, media)
            for example in examples_of(media):
                validate(example, media["schema"], document)
        for parameter in operation.get("parameters", []):
            assert parameter["schema"]["examples"], (path, parameter)
            for example in parameter["schema"]["examples"]:
                validate(example, parameter["schema"], document)


def test_problems_are_those_of_their_status(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                (media,) = response["content"].values()
                problems = map(Problem.model_validate, examples_of(media))
                assert list(response["content"]) == [MEDIA_TYPE]
                assert {problem.status for problem in problems} == {int(status)}, path


def test_operations_have_names_of_their_own(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert {"recommend", "recommend_batch", "similar", "features", "models", "feedback", "healthz"} <= set(names)


def test_the_service_answers_every_example_as_documented(client: httpx.Client, document: dict[str, Any]) -> None:
    """The examples name items and users of MovieLens: here nobody knows them, which only `similar` minds."""
    for path, method, operation in operations(document):
        named = {each["name"]: each["schema"]["examples"][0] for each in operation.get("parameters", [])}
        in_query = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        url = path.format(**named)
        content = operation.get("requestBody", {}).get("content", {})
        for body in examples_of(content["application/json"]) if content else [None]:
            response = client.request(method, url, json=body, params={name: named[name] for name in in_query})
            assert response.status_code == (404 if path.endswith("/similar") else 200), response.text
            documented = operation["responses"][str(response.status_code)]["content"]
            media = documented[response.headers["content-type"]]
            validate(response.json(), media["schema"], document)
