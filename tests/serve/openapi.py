"""What an OpenAPI document must hold, and what a service must make of it."""

from collections.abc import Callable
from typing import Any

import httpx
import jsonschema

from serve.problems import MEDIA_TYPE, Problem

Document = dict[str, Any]
Operation = dict[str, Any]


def operations(document: Document) -> list[tuple[str, str, Operation]]:
    return [(path, method, each) for path, methods in document["paths"].items() for method, each in methods.items()]


def examples_of(media: dict[str, Any]) -> list[Any]:
    return [example["value"] for example in media.get("examples", {}).values()]


def validate(instance: object, schema: dict[str, Any], document: Document) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(instance)


def require_examples(document: Document) -> None:
    """Every request, answer, problem and parameter has examples, which fit its schema."""
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


def require_problems(document: Document, model: type[Problem] = Problem) -> None:
    """Those of a status have this status; those that hold more than `Problem` do are of `model`."""
    for path, _, operation in operations(document):
        for status, response in operation["responses"].items():
            if status >= "400":
                assert list(response["content"]) == [MEDIA_TYPE]
                media = response["content"][MEDIA_TYPE]
                kind = model if media["schema"]["$ref"].endswith(f"/{model.__name__}") else Problem
                assert {kind.model_validate(each).status for each in examples_of(media)} == {int(status)}, path


def require_answers(client: httpx.Client, document: Document, expected: Callable[[str], int]) -> None:
    """The service answers each example as documented; `expected`: path to the status of it."""
    for path, method, operation in operations(document):
        named = {each["name"]: each["schema"]["examples"][0] for each in operation.get("parameters", [])}
        in_query = {each["name"] for each in operation.get("parameters", []) if each["in"] == "query"}
        url = path.format(**named)
        content = operation.get("requestBody", {}).get("content", {})
        for body in examples_of(content["application/json"]) if content else [None]:
            response = client.request(method, url, json=body, params={name: named[name] for name in in_query})
            assert response.status_code == expected(path), response.text
            documented = operation["responses"][str(response.status_code)]["content"]
            media = documented[response.headers["content-type"]]
            validate(response.json(), media["schema"], document)
