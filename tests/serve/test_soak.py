"""Load for a while, of several questions: no error but 429, the right answers, and flat memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

import wherefrom as wf
from benchmarks.service import hits_of
from benchmarks.service_soak import soak
from served import COMPLETION, PROMPT, running

CLIENTS = 32
ASKED: dict[str, dict[str, Any]] = {
    f"{rerank} {prompt}": {"prompt": prompt, "completion": COMPLETION, "rerank": rerank}
    for prompt in (PROMPT, "gold and silver", "")
    for rerank in ("stored", "recompute")
}


@pytest.mark.parametrize(
    "seconds", [3.0, pytest.param(20.0, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_load_meets_nothing_but_answers_and_429(index: wf.Index, seconds: float) -> None:
    with running(index, queue=CLIENTS // 2) as server:
        found = soak(server.url, ASKED, clients=CLIENTS, seconds=seconds)
        assert server.service.model.admitted == 0
        with server.client() as client:
            assert client.post("/v1/query", json=ASKED[next(iter(ASKED))]).status_code == 200
    assert set(found.statuses) == {200, 429}, found.other
    for name, body in ASKED.items():
        expected = json.dumps(hits_of(index.query(**body).to_dict()))
        assert found.answers[name] == {expected}
    if seconds > 10:
        assert found.growth < 60 * 2**20  # MiB a minute: pytest's own process is no quiet place.
