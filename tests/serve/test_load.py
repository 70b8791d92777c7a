"""Many clients at once: everybody is answered, alike, and no place in the queue is lost."""

from __future__ import annotations

import json

import pytest

import wherefrom as wf
from benchmarks.service import load
from served import COMPLETION, PROMPT, running

ASKED = {"prompt": PROMPT, "completion": COMPLETION, "k": 3, "rerank": "stored"}
CLIENTS = 32


def expected(index: wf.Index) -> set[str]:
    answer = index.query(**ASKED)
    return {json.dumps([(hit.doc_id, hit.score) for hit in answer.hits])}


def test_all_of_many_clients_are_answered_alike(index: wf.Index) -> None:
    with running(index, queue=CLIENTS) as server:
        found = load(server.url, ASKED, clients=CLIENTS, seconds=2.0)
        assert server.service.model.admitted == 0
    assert set(found.statuses) == {200}
    assert found.statuses[200] >= CLIENTS
    assert found.answers == expected(index)


def test_what_the_queue_cannot_hold_is_turned_away_at_once(index: wf.Index) -> None:
    with running(index, queue=2) as server:
        found = load(server.url, ASKED, clients=CLIENTS, seconds=1.0)
        assert server.service.model.admitted == 0
        with server.client() as client:
            assert client.post("/v1/query", json=ASKED).status_code == 200
    assert set(found.statuses) == {200, 429}
    assert found.statuses[429] > found.statuses[200]
    assert found.answers == expected(index)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_minute_of_load_leaves_memory_as_it_was(index: wf.Index) -> None:
    psutil = pytest.importorskip("psutil")
    with running(index, queue=CLIENTS) as server:
        load(server.url, ASKED, clients=CLIENTS, seconds=15.0)
        before = psutil.Process().memory_info().rss
        found = load(server.url, ASKED, clients=CLIENTS, seconds=60.0)
        grown = psutil.Process().memory_info().rss - before
    assert found.answers == expected(index)
    assert grown < 64 * 2**20
