"""The OpenAPI document, completed: errors are `application/problem+json`, and everything comes with an example.

A request's example is that of its model's schema, an answer's is in `serve.examples`, a problem's is made here.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI

from serve.completion_schemas import CompletionProblem
from serve.examples import ANSWERS, EVENTS
from serve.openai_errors import completion_problem
from serve.problems import MEDIA_TYPE, FieldError, Kind, Problem, problem_of

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
DETAILS = {
    Kind.BROKEN_JSON: "Expecting value at character 12",
    Kind.UNKNOWN_ITEM: "no item '50' in data set 'movielens-100k' (variant 0b1c)",
    Kind.UNKNOWN_MODEL: "there is no language model 'gpt-4o' here; ask 'smollm2-135m-instruct'",
    Kind.BODY_TOO_SLOW: "the body did not come within 15 s; send it faster, or less at a time",
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
    Kind.UNKNOWN_MODEL: "model",
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
            problem = _problem(int(status), path, operation, document).model_dump(mode="json", exclude_defaults=True)
            media["examples"] = {problem["title"]: {"value": problem}}
        elif JSON in response.get("content", {}):
            _describe_answer(response["content"])


def _describe_answer(content: Mapping[str, Any]) -> None:
    model = _model(content[JSON])
    if model in ANSWERS:
        content[JSON]["examples"] = {"example": {"value": ANSWERS[model].model_dump(mode="json")}}
    if EVENT_STREAM in content:
        content[EVENT_STREAM]["examples"] = {"example": {"value": EVENTS[model]}}


def _problem(status: int, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]) -> Problem:
    """The most usual problem of a status with an operation."""
    completes = _model(operation["responses"][str(status)]["content"][MEDIA_TYPE]) == CompletionProblem.__name__
    of_others = Kind.UNKNOWN_ITEM if completes else Kind.UNKNOWN_MODEL
    usual = (kind for kind in (*DETAILS, Kind.INVALID_FIELD) if kind.value[0] == status and kind is not of_others)
    kind = next(usual)
    asked = path.format(**{each["name"]: _example(each) for each in operation.get("parameters", [])})
    field = _a_field(operation, document) if kind is Kind.INVALID_FIELD else FIELDS.get(kind)
    message = "Field required" if kind is Kind.INVALID_FIELD else DETAILS[kind]
    detail = f"{field}: {message}" if kind is Kind.INVALID_FIELD else message
    problem = problem_of(kind, detail, asked, [] if field is None else [FieldError(field=field, message=message)])
    return completion_problem(problem) if completes else problem


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
    schema: Mapping[str, Any] = document["components"]["schemas"][_model(media)]
    return schema


def _model(media: Mapping[str, Any]) -> str:
    """The name of a body's model; empty if it has none."""
    return str(media["schema"].get("$ref", "")).rpartition("/")[2]
