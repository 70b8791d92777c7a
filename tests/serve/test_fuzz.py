"""The service keeps to its own OpenAPI document, whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

import wherefrom as wf
from served import TOKEN, running
from wherefrom.serve.service import Limits

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")

BEARER = {"Authorization": f"Bearer {TOKEN}"}
ROUTES = [
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/readyz"),
    ("GET", "/v1/document"),
    ("GET", "/v1/index"),
    ("POST", "/v1/documents"),
    ("POST", "/v1/explain"),
    ("POST", "/v1/groups"),
    ("POST", "/v1/query"),
    ("POST", "/v1/query/stream"),
]


QUESTIONABLE = {"FilterError", "QueryError", "UnknownDocumentError"}
SILENT = {"/healthz", "/metrics", "/readyz", "/v1/index"}


@pytest.fixture(scope="module")
def declared(index: wf.Index) -> Iterator[Any]:
    # Long values are to be refused as such, and not for the length of the body.
    with running(index, token=TOKEN, limits=Limits(body_bytes=1 << 22)) as server:
        yield schemathesis.openapi.from_url(f"{server.url}openapi.json", headers=BEARER)


def test_every_route_is_fuzzed(declared: Any) -> None:
    found = sorted(
        (method.upper(), path)
        for path, methods in declared.raw_schema["paths"].items()
        for method in methods
    )
    assert found == ROUTES


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_keeps_to_its_declaration(
    declared: Any, method: str, path: str, mode: Any
) -> None:
    """Statuses, media types and bodies are declared; what the schemas refuse, the service does."""
    operation = declared[path][method]
    if mode is schemathesis.GenerationMode.NEGATIVE and path in SILENT:
        pytest.skip("takes nothing that could be wrong")

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(max_examples=8, suppress_health_check=list(hypothesis.HealthCheck))
    def keeps_to_it(case: Any) -> None:
        response = case.call_and_validate(
            headers=BEARER, excluded_checks=[checks.positive_data_acceptance]
        )
        if mode is schemathesis.GenerationMode.POSITIVE and response.status_code >= 400:
            # A well-formed question may still name what the index has not.
            assert response.status_code in (400, 404)
            assert response.json()["error"] in QUESTIONABLE

    keeps_to_it()
