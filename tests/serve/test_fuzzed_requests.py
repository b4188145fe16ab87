"""Requests made from the OpenAPI document itself, valid and broken: no 5xx, and every answer as it is documented."""

from collections.abc import Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import CheckContext, GenerationMode, Response
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from data.dataset import Dataset
from tests.serve.conftest import Answering, published


def no_server_error(_: CheckContext, response: Response, case: schemathesis.Case) -> None:
    """But for the 504 of a request that brings a budget, which may be a millisecond."""
    assert response.status_code < 500 or (response.status_code == 504 and "budget_ms" in str(case.body)), response.text


CHECKS = [no_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
ASKED_WITH = ("recommend", "recommend_batch", "similar", "features", "feedback")
ASKED_WITH_NOTHING = ("models", "healthz")
VALID, BROKEN = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
KINDS = [(name, mode) for name in ASKED_WITH for mode in (VALID, BROKEN)]
KINDS += [(name, VALID) for name in ASKED_WITH_NOTHING]


@pytest.fixture(scope="module")
def url(answering: Answering, shop: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An endpoint of its own: it gets odd feedback."""
    folder = tmp_path_factory.mktemp("fuzzed")
    with answering(published(shop, folder), folder / "decisions") as client:
        yield str(client.base_url)


@pytest.mark.parametrize(("name", "mode"), KINDS)
def test_every_answer_is_a_documented_one(url: str, name: str, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operation = schema.find_operation_by_id(name)

    @settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    ask()
    assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
