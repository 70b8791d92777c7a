"""A service follows its index: what was deleted is found no more, what was replaced not asked."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import wherefrom as wf
from served import COMPLETION, PROMPT, Running, running, served_documents
from wherefrom.errors import IntegrityError, StorageError
from wherefrom.maintenance.delete import compact, delete
from wherefrom.query.opened import OpenIndex
from wherefrom.serve.errors import ChangedError, UnknownDocumentError
from wherefrom.serve.published import Published
from wherefrom.serve.requests import QueryRequest
from wherefrom.serve.service import Service
from wherefrom.store import Manifest

ASKED: dict[str, Any] = {"prompt": PROMPT, "completion": COMPLETION, "k": 30, "sign": "proponents"}
GONE = "<b>harm</b>"


@pytest.fixture
def path(index_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(index_path, tmp_path / "my.index"))


@pytest.fixture
def following(path: Path) -> Iterator[Running]:
    with running(wf.open(path), mcp=False) as found:
        yield found


def found_by(client: httpx.Client) -> list[str]:
    told = client.post("/v1/query", json={**ASKED, "k": 30, "sign": "both"})
    assert told.status_code == 200, told.text
    answer = told.json()
    return [hit["doc_id"] for end in ("proponents", "opponents") for hit in answer[end]]


@pytest.mark.parametrize("purge", [False, True])
def test_deleted_documents_are_gone_without_a_restart(
    following: Running, path: Path, purge: bool
) -> None:
    with following.client() as client:
        assert GONE in found_by(client)
        assert client.get("/v1/index").json()["generation"] == 1
        delete(path, [GONE], purge=purge)
        assert client.get("/v1/document", params={"doc_id": GONE}).status_code == 404
        assert GONE not in found_by(client)
        told = client.get("/v1/index").json()
        assert (told["generation"], told["documents"]) == (2, 22)
        assert told["manifest_sha256"] == Manifest.read(path).digest
        metrics = client.get("/metrics").text
        assert "wherefrom_documents 22.0" in metrics
        assert "wherefrom_generation 2.0" in metrics
        streamed = client.post("/v1/query/stream", json=ASKED).text
        assert "event: done" in streamed
        assert "harm" not in streamed


def test_answers_are_those_of_an_index_that_was_opened_anew(following: Running, path: Path) -> None:
    with following.client() as client:
        found_by(client)
        delete(path, [GONE])
        compact(path)
        delete(path, ["long speech"])
        answered = client.post("/v1/query", json=ASKED).json()
    expected = wf.open(path).query(prompt=PROMPT, completion=COMPLETION, k=30, sign="proponents")
    assert answered["proponents"] == json.loads(expected.to_json())["proponents"]


def test_an_index_built_in_its_place_is_not_asked(
    following: Running, path: Path, model_path: Path
) -> None:
    with following.client() as client:
        found_by(client)
        wf.build(str(model_path), served_documents()[:9], path, seed=4, overwrite=True)
        for _ in range(2):
            for refused in (
                client.post("/v1/query", json=ASKED),
                client.post("/v1/query/stream", json=ASKED),
                client.get("/v1/document", params={"doc_id": GONE}),
                client.get("/readyz"),
            ):
                assert refused.status_code == 503, refused.text
                assert refused.json()["error"] == "ReplacedError"
                assert "restart" in refused.json()["detail"]
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/index").json()["documents"] == 23


def test_a_request_ends_with_the_state_that_it_began_with(path: Path) -> None:
    """Its first part names a document that is deleted before its second."""
    service = Service(wf.open(path))

    async def ask() -> None:
        request = QueryRequest(**{**ASKED, "sign": "both", "rerank": "stored", "explain": True})
        hits: list[dict[str, Any]] = []
        explained: list[str] = []
        async for event in service.stream(request):
            if event.kind == "stored":
                hits = [*event.data["proponents"], *event.data["opponents"]]
                delete(path, [GONE])
                with pytest.raises(UnknownDocumentError):
                    await service.document(GONE)
            elif event.kind == "shares":
                explained.append(event.data["hit"]["doc_id"])
        assert explained == [hit["doc_id"] for hit in hits]
        assert GONE in explained
        after = await service.query(QueryRequest(**ASKED))
        assert after.certificate.documents == 22
        await service.close()

    asyncio.run(ask())


def test_a_purge_between_two_steps_is_told(path: Path) -> None:
    published = Published(wf.open(path))
    began, answer = published.ask(lambda index: index.query(prompt=PROMPT, completion=COMPLETION))
    delete(path, [GONE], purge=True)
    with pytest.raises(ChangedError, match="ask again"):
        published.go_on(began, _unreadable)
    assert published.index.manifest.generation == 2
    with pytest.raises(IntegrityError, match="cannot be read"):
        published.go_on(published.index, _unreadable)
    assert answer.index["manifest_sha256"] == began.manifest.digest


def test_a_purge_in_the_midst_of_a_step_is_asked_again(path: Path) -> None:
    published, asked = Published(wf.open(path)), []

    def work(index: wf.Index) -> int:
        asked.append(index)
        if len(asked) == 1:
            delete(path, [GONE], purge=True)
            _unreadable(index)
        return len(index)

    index, documents = published.ask(work)
    assert documents == 22
    assert asked == [asked[0], index]
    with pytest.raises(IntegrityError, match="cannot be read"):
        published.ask(_unreadable)


def test_a_change_that_cannot_be_read_is_asked_for_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half open is not asked, and once it can be read it is."""
    published = Published(wf.open(path))
    published.ask(len)
    delete(path, [GONE])
    with monkeypatch.context() as patched:
        patched.setattr(OpenIndex, "_open_scanner", _refusing)
        for _ in range(2):
            with pytest.raises(StorageError):
                published.ask(len)
    assert published.index.manifest.generation == 1
    assert published.ask(len)[1] == 22


def test_an_index_that_did_not_change_is_not_read_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = Published(wf.open(path))
    first, _ = published.ask(len)
    monkeypatch.setattr(OpenIndex, "refresh", _refusing)
    assert published.ask(len) == (first, 23)
    os.utime(path / "manifest.json")
    with pytest.raises(StorageError):
        published.ask(len)


def test_object_storage_is_asked_once_a_second(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, looked = [100.0], []
    index = wf.open(path)
    monkeypatch.setattr(index.location, "remote", True)
    monkeypatch.setattr("wherefrom.serve.published.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(OpenIndex, "refresh", lambda self: bool(looked.append(clock[0])))
    published = Published(index)
    for moment in (100.0, 100.5, 100.9, 101.1, 101.2, 103.0):
        clock[0] = moment
        published.ask(len)
    assert looked == [100.0, 101.1, 103.0]


def _unreadable(_: wf.Index) -> None:
    raise IntegrityError("documents.lance cannot be read")


def _refusing(_: OpenIndex) -> Any:
    raise StorageError("the disk refuses")
