"""The service over HTTP: it answers what the library answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from http.client import HTTPConnection
from typing import Any

import httpx
import jsonschema
import pytest

import wherefrom as wf
from served import COMPLETION, PROMPT
from wherefrom.query.export.schema import answer_schema

ASKED = {"prompt": PROMPT, "completion": COMPLETION}
QUERY = wf.Query(PROMPT, COMPLETION)


def timeless(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without the time it took, as JSON reads it back, and without the index's folder."""
    read = json.loads(json.dumps(answer))
    return {**read, "seconds": 0, "index": {**read["index"], "path": "served.index"}}


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        assert name.startswith("event: ")
        assert data.startswith("data: ")
        yield name[7:], json.loads(data[6:])


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {}),
        ({"k": 3.0, "where": {"year": ["<", 1900]}}, {"k": 3, "where": {"year": ("<", 1900)}}),
        (
            {"where": {"party": [["!=", None], ["in", ["Whig", "d'Or"]]], "year": 1800}},
            {"where": {"party": [("!=", None), ("in", ["Whig", "d'Or"])], "year": 1800}},
        ),
        (
            {"rerank": "stored", "sign": "opponents", "damping": 0.5, "contrast": " gold"},
            {"rerank": "stored", "sign": "opponents", "damping": 0.5, "contrast": " gold"},
        ),
        (
            {"rerank": "recompute", "normalise": "relatif", "k": 100},
            {"rerank": "recompute", "normalise": "relatif", "k": 100},
        ),
    ],
)
def test_a_query_is_the_library_s_answer_to_the_last_bit(
    client: httpx.Client, index: wf.Index, asked: dict[str, Any], options: dict[str, Any]
) -> None:
    told = client.post("/v1/query", json={**ASKED, **asked})
    assert told.status_code == 200, told.text
    assert told.headers["content-type"] == "application/json"
    jsonschema.validate(told.json(), json.loads(answer_schema()))
    expected = index.query(prompt=PROMPT, completion=COMPLETION, **options).to_dict()
    assert timeless(told.json()) == timeless(expected)
    assert told.json()["index"]["path"] == index.path.name == "served.index"


def test_a_query_holds_what_it_asks_for_beside_the_answer(
    client: httpx.Client, index: wf.Index
) -> None:
    beside = {"explain": True, "similarity": True, "group_by": ["party", "year"]}
    told = client.post("/v1/query", json={**ASKED, "k": 2, **beside}).json()
    answer = index.query(prompt=PROMPT, completion=COMPLETION, k=2)
    expected = index.annotate(answer, group_by=("party", "year")).to_dict()
    assert timeless(told) == timeless(expected)
    assert told["explanation"]["hits"]
    assert [one["column"] for one in told["groups"]] == ["party", "year"]


def test_a_stream_tells_the_same_part_by_part(client: httpx.Client, index: wf.Index) -> None:
    beside = {"explain": True, "similarity": True, "group_by": ["party"]}
    asked = {**ASKED, "k": 3, "rerank": "recompute", **beside}
    response = client.post("/v1/query/stream", json=asked)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    told = list(events(response))
    kinds = [kind for kind, _ in told]
    hits = 6
    assert kinds == [
        *("stored", "words", "answer", "words"),
        *(["shares"] * hits),
        *("similarity", "groups", "done"),
    ]
    stored = index.query(prompt=PROMPT, completion=COMPLETION, k=3, rerank="stored")
    exact = index.query(prompt=PROMPT, completion=COMPLETION, k=3, rerank="recompute")
    assert timeless(told[0][1]) == timeless(stored.to_dict())
    assert timeless(told[2][1]) == timeless(exact.to_dict())
    assert told[3][1]["certificate"].startswith("Certified")
    assert told[3][1]["replay"].startswith("wherefrom query served.index --prompt ")
    assert told[1][1]["measured"] == told[3][1]["measured"]
    whole = index.annotate(exact, group_by=("party",))
    assert whole.explanation is not None
    assert whole.similarity is not None
    shares = [data for kind, data in told if kind == "shares"]
    assert [one["hit"] for one in shares] == json.loads(
        json.dumps([asdict(hit) for hit in whole.explanation.hits])
    )
    layers = [asdict(layer) for layer in whole.explanation.layers]
    assert all(one["layers"] == layers for one in shares)
    assert all(one["tokens_are"] == "predictions" for one in shares)
    assert told[-3][1] == json.loads(json.dumps(asdict(whole.similarity)))
    assert told[-2][1] == json.loads(json.dumps(asdict(whole.groups[0])))


def test_a_stream_of_stored_scores_has_no_second_answer(client: httpx.Client) -> None:
    response = client.post("/v1/query/stream", json={**ASKED, "rerank": "stored"})
    assert [kind for kind, _ in events(response)] == ["stored", "words", "done"]


def test_a_stream_fails_with_a_status_or_ends_with_an_error(client: httpx.Client) -> None:
    refused = client.post("/v1/query/stream", json={**ASKED, "where": {"nothing": 1}})
    assert (refused.status_code, refused.json()["error"]) == (400, "FilterError")
    asked = {**ASKED, "rerank": "stored", "group_by": ["nothing"]}
    *_, (kind, data) = events(client.post("/v1/query/stream", json=asked))
    assert (kind, data["error"]) == ("error", "FilterError")
    assert "party" in data["detail"]


def test_documents_can_be_explained(client: httpx.Client, index: wf.Index) -> None:
    doc_ids = ["speech 07", "<b>harm</b>"]
    for damping in (None, 0.7):
        asked = {**ASKED, "doc_ids": doc_ids, "damping": damping}
        told = client.post("/v1/explain", json=asked).json()
        expected = asdict(index.explain(QUERY, doc_ids=doc_ids, damping=damping))
        assert told == json.loads(json.dumps(expected))


def test_influence_can_be_summed(client: httpx.Client, index: wf.Index) -> None:
    where = {"year": [">=", 1850]}
    for by, bins, damping in (("party", None, None), ("year", 3, None), ("party", None, 0.7)):
        asked = {**ASKED, "by": by, "bins": bins, "damping": damping, "where": where}
        told = client.post("/v1/groups", json=asked).json()
        passing = {"year": (">=", 1850)}
        expected = asdict(index.groups(QUERY, by, bins=bins, damping=damping, where=passing))
        assert told == json.loads(json.dumps(expected))


def test_documents_are_read_by_id_and_by_page(client: httpx.Client, index: wf.Index) -> None:
    told = client.get("/v1/document", params={"doc_id": "<b>harm</b>"}).json()
    assert told == json.loads(json.dumps(index.document("<b>harm</b>").to_dict()))
    assert "<img src=x" in told["text"]
    page = client.post("/v1/documents", json={"offset": 21, "limit": 5}).json()
    assert (page["total"], page["offset"], len(page["documents"])) == (23, 21, 2)
    found = client.post("/v1/documents", json={"where": {"party": "<i>party</i>"}}).json()
    assert [one["doc_id"] for one in found["documents"]] == ["<b>harm</b>"]


def test_the_index_is_described(client: httpx.Client, index: wf.Index) -> None:
    told = client.get("/v1/index").json()
    assert told == json.loads(json.dumps(index.info()))
    assert told["schema"] == "wherefrom-index/1"
    assert told["documents"] == 23


def test_health(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}


def test_metrics_count_what_happened_and_hold_no_text(client: httpx.Client) -> None:
    client.post("/v1/query", json={**ASKED, "where": {"secret column": 1}})
    client.get("/v1/document", params={"doc_id": "secret id"})
    client.get("/secret/path")
    client.request("SECRET", "/healthz")
    told = client.get("/metrics")
    assert told.headers["content-type"].startswith("text/plain; version=")
    text = told.text
    assert 'wherefrom_requests_total{method="POST",route="/v1/query",status="400"}' in text
    assert 'wherefrom_requests_total{method="GET",route="/v1/document",status="404"}' in text
    assert 'wherefrom_requests_total{method="GET",route="other",status="404"}' in text
    assert 'wherefrom_requests_total{method="other",route="/healthz",status="405"}' in text
    assert 'wherefrom_request_seconds_bucket{le="0.1",route="/v1/query"}' in text
    assert "wherefrom_queue_requests 0.0" in text
    assert "wherefrom_documents 23.0" in text
    assert "wherefrom_generation 1.0" in text
    (seconds,) = (line for line in text.splitlines() if line.startswith("wherefrom_model_seconds"))
    assert float(seconds.split()[1]) > 0.0
    assert "secret" not in text.lower()


def test_every_response_is_closed_to_other_sites_and_has_an_id(client: httpx.Client) -> None:
    for response in (
        client.get("/"),
        client.get("/healthz"),
        client.get("/nothing"),
        client.post("/v1/query", json={}),
        client.post("/v1/query/stream", json={**ASKED, "rerank": "stored"}),
    ):
        headers = response.headers
        assert "default-src 'none'; script-src 'self'" in headers["content-security-policy"]
        assert "'unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in headers
        assert "server" not in headers
        assert len(headers["x-request-id"]) == 32
    own = client.get("/healthz", headers={"X-Request-ID": "trace-1.b_2"})
    assert own.headers["x-request-id"] == "trace-1.b_2"
    forged = client.get("/healthz", headers={"X-Request-ID": "a b"})
    assert len(forged.headers["x-request-id"]) == 32


def test_the_page_is_served_with_its_files_only(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "<title>" in page.text
    script = client.get("/page/page.js")
    assert script.headers["content-type"].startswith("text/javascript")
    for path in (
        "/page/../app.py",
        "/page/%2e%2e/app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e%2f%2e%2e%2f%2e%2e%2fetc/passwd",
        "/page//etc/passwd",
        "/page/page.js%00.html",
        "/page/",
        "/page",
    ):
        # httpx would put the path in order first.
        with closing(HTTPConnection(client.base_url.host, client.base_url.port)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 404, path
            assert json.loads(response.read())["error"] == "UnknownRouteError"


def test_no_page_of_fastapi_s_loads_scripts_from_elsewhere(client: httpx.Client) -> None:
    assert client.get("/docs").status_code == 404
    assert client.get("/redoc").status_code == 404
