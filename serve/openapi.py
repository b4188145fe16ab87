"""The OpenAPI document, completed: errors are `application/problem+json`, and everything comes with an example.

A request's example is that of its model's schema, an answer's is in `serve.examples`, a problem's is made here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from serve.examples import ANSWERS
from serve.problems import MEDIA_TYPE, FieldError, Kind, Problem, problem_of

JSON = "application/json"
DETAILS = {
    Kind.BROKEN_JSON: "Expecting value at character 12",
    Kind.UNKNOWN_ITEM: "no item '50' in data set 'movielens-100k' (variant 0b1c)",
    Kind.BODY_TOO_LARGE: "the body is over 2097152 bytes; send less at a time",
    Kind.NOT_JSON: "send the body as JSON with the header Content-Type: application/json",
    Kind.TOO_BUSY: "256 requests wait already; ask again in 1 s",
    Kind.DEFECT: "the failure has been logged; try again or report it with the time of the request",
    Kind.UNAVAILABLE: "stage 'retrieval' does not answer; try again in a moment",
    Kind.TOO_LATE: "there is no answer within the request's 5 s; give it more (budget_ms) or try again in a moment",
}
"""What is said of each kind of problem that a documented operation may answer with, but for invalid fields."""

FIELDS = {
    Kind.BROKEN_JSON: "body",
    Kind.UNKNOWN_ITEM: "item_id",
    Kind.BODY_TOO_LARGE: "body",
    Kind.NOT_JSON: "Content-Type",
}
"""Which field is to blame."""


def describe(app: FastAPI) -> None:
    """Complete the document that `app` generates."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            for path, operation in _operations(document):
                _describe_request(operation, document)
                _describe_responses(path, operation, document)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operations(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((path, each) for path, operations in document["paths"].items() for each in operations.values())


def _describe_request(operation: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    content = operation.get("requestBody", {}).get("content", {})
    for media in content.values():
        examples = _schema(media, document).get("examples", [])
        media.setdefault("examples", {f"example {number}": {"value": each} for number, each in enumerate(examples, 1)})


def _describe_responses(path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    for status, response in operation["responses"].items():
        if status >= "400":
            media = response["content"].pop(JSON)
            response["content"] = {MEDIA_TYPE: media}
            if "examples" not in media:
                problem = _problem(int(status), path, operation, document).model_dump(exclude_defaults=True)
                media["examples"] = {problem["title"]: {"value": problem}}
        elif JSON in response.get("content", {}):
            media = response["content"][JSON]
            answer = ANSWERS.get(media["schema"].get("$ref", "").rpartition("/")[2])
            if answer is not None:
                media.setdefault("examples", {"example": {"value": answer.model_dump(mode="json")}})


def _problem(status: int, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> Problem:
    """The most usual problem of a status with an operation."""
    (kind, *_) = (kind for kind in (*DETAILS, Kind.INVALID_FIELD) if kind.value[0] == status)
    asked = path.format(**{each["name"]: _example(each) for each in operation.get("parameters", [])})
    if kind is Kind.INVALID_FIELD:
        field = _a_field(operation, document)
        error = FieldError(field=field, message="Field required")
        return problem_of(kind, f"{field}: Field required", asked, [error])
    errors = [FieldError(field=FIELDS[kind], message=DETAILS[kind])] if kind in FIELDS else []
    return problem_of(kind, DETAILS[kind], asked, errors)


def _example(parameter: Mapping[str, Any]) -> Any:
    (example, *_) = parameter["schema"]["examples"]
    return example


def _a_field(operation: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """A field that a request may get wrong."""
    content = operation.get("requestBody", {}).get("content", {})
    if JSON in content:
        return str(_schema(content[JSON], document)["required"][0])
    return str(operation["parameters"][-1]["name"])


def _schema(media: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema of a body, which is a model of its own."""
    name = media["schema"]["$ref"].rpartition("/")[2]
    schema: Mapping[str, Any] = document["components"]["schemas"][name]
    return schema
