"""What both faces of the service, HTTP and MCP, call: one open index, asked by many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from wherefrom.errors import QueryError
from wherefrom.query.answer import Answer
from wherefrom.query.explanation import Explanation, Grouping
from wherefrom.query.index import Index
from wherefrom.query.reading import DocumentPage, StoredDocument
from wherefrom.records import Rerank
from wherefrom.serve.errors import UnknownDocumentError
from wherefrom.serve.narration import answer_in_words
from wherefrom.serve.requests import ExplainRequest, GroupsRequest, QueryRequest
from wherefrom.serve.worker import Worker
from wherefrom.store import Where

__all__ = ["Event", "EventKind", "Limits", "Service"]

EventKind = Literal["stored", "answer", "words", "shares", "similarity", "groups", "done"]

_READERS_WAITING = 64
_EXPLAINED_AT_ONCE = 4
"""Hits whose shares are computed in one step: the first show soon, and other requests get turns."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may cost.

    Attributes:
        body_bytes: Largest body.
        seconds: Longest time from its arrival to its answer.
    """

    body_bytes: int = 1 << 18
    seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Event:
    """A part of an answer, told as soon as it is known.

    Attributes:
        kind: ``stored``: an answer by stored scores. ``answer``: the same question by exact scores,
            where those are to be. ``words``: what reports say of the answer that came before it.
            ``shares``: an :class:`~wherefrom.query.explanation.Explanation` of one hit, named
            ``hit``. ``similarity``: as in :class:`~wherefrom.query.answer.Answer`. ``groups``: one
            of an answer's. ``done``: all was told.
        data: Plain values.
    """

    kind: EventKind
    data: dict[str, Any]


class Service:
    """An open index that many ask at a time; its model works for one of them at once.

    Every method raises :class:`~wherefrom.errors.WherefromError` only, among them
    :class:`~wherefrom.serve.errors.BusyError` if the queue is full,
    :class:`~wherefrom.serve.errors.TimeLimitError` and
    :class:`~wherefrom.serve.errors.ClosingError`. A request that is cancelled leaves the queue.

    Args:
        index: What to ask.
        queue: Requests that may wait for the model.
        limits: Of every request.
    """

    def __init__(self, index: Index, *, queue: int = 8, limits: Limits | None = None) -> None:
        self.index = index
        self.limits = Limits() if limits is None else limits
        self.model = Worker("model", queue=queue, seconds=self.limits.seconds)
        self.reader = Worker("reader", queue=_READERS_WAITING, seconds=self.limits.seconds)

    async def query(self, request: QueryRequest) -> Answer:
        """Answer a question, with all that the request wants beside it.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.query`, and as said of the class.
        """
        with self.model.admit() as turn:
            answer = await turn.run(partial(self._answer, request, request.rerank))
            if not (request.explain or request.similarity or request.group_by):
                return answer
            return await turn.run(
                lambda: self.index.annotate(
                    answer,
                    explain=request.explain,
                    similarity=request.similarity,
                    group_by=tuple(request.group_by),
                )
            )

    async def stream(self, request: QueryRequest) -> AsyncIterator[Event]:
        """Answer a question part by part.

        Raises:
            WherefromError: As :meth:`query`.
        """
        started = time.perf_counter()
        with self.model.admit() as turn:
            answer = await turn.run(partial(self._answer, request, "stored"))
            yield Event("stored", answer.to_dict())
            yield Event("words", answer_in_words(answer))
            if request.rerank != "stored":
                final = await turn.run(partial(self._answer, request, request.rerank))
                if final.certificate.tier == "exact":
                    answer = final
                    yield Event("answer", answer.to_dict())
                    yield Event("words", answer_in_words(answer))
            if request.explain:
                doc_ids = [hit.doc_id for hit in answer.hits]
                for start in range(0, len(doc_ids), _EXPLAINED_AT_ONCE):
                    chosen = doc_ids[start : start + _EXPLAINED_AT_ONCE]
                    found = await turn.run(partial(self.index.explain, answer, doc_ids=chosen))
                    for event in _shares(found):
                        yield event
            if request.similarity:
                alike = await turn.run(partial(self.index.similarity, answer))
                yield Event("similarity", asdict(alike))
            for column in request.group_by:
                grouping = await turn.run(partial(self.index.groups, answer, by=column))
                yield Event("groups", asdict(grouping))
            yield Event("done", {"seconds": time.perf_counter() - started})

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Shares of the scores of some documents.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.explain`, and as said of the class.
        """
        with self.model.admit() as turn:
            return await turn.run(
                partial(self.index.explain, request.question, doc_ids=request.doc_ids)
            )

    async def groups(self, request: GroupsRequest) -> Grouping:
        """The influence of all documents, summed by a metadata column.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.groups`, and as said of the class.
        """
        with self.model.admit() as turn:
            return await turn.run(
                partial(self.index.groups, request.question, by=request.by, where=request.filter)
            )

    async def document(self, doc_id: str) -> StoredDocument:
        """One document with its text and metadata.

        Raises:
            UnknownDocumentError: There is none of that id.
            WherefromError: As said of the class.
        """
        with self.reader.admit() as turn:
            try:
                return await turn.run(partial(self.index.document, doc_id))
            except QueryError as error:
                raise UnknownDocumentError(str(error)) from error

    async def documents(
        self, where: Where | None = None, offset: int = 0, limit: int = 50
    ) -> DocumentPage:
        """Documents whose metadata pass a filter, in the order of the index.

        Args:
            where: The filter.
            offset: How many to leave out.
            limit: At most how many to give.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.documents`, and as said of the class.
        """
        with self.reader.admit() as turn:
            return await turn.run(
                partial(self.index.documents, where=where, offset=offset, limit=limit)
            )

    def info(self) -> dict[str, Any]:
        """What the index holds and was built with: :meth:`wherefrom.Index.info`."""
        return self.index.info()

    @property
    def closing(self) -> bool:
        """Whether requests are turned away."""
        return self.model.closing

    def begin_closing(self) -> None:
        """Turn away who comes and who waits; the request that is being worked for is answered."""
        self.model.close()
        self.reader.close()

    async def close(self) -> None:
        """Turn everybody away and wait for the model to finish what it is at."""
        self.begin_closing()
        for worker in (self.model, self.reader):
            await asyncio.get_running_loop().run_in_executor(None, worker.join)

    def _answer(self, request: QueryRequest, rerank: Rerank) -> Answer:
        return self.index.query(
            prompt=request.prompt,
            completion=request.completion,
            contrast=request.contrast,
            k=request.k,
            sign=request.sign,
            where=request.filter,
            damping=request.damping,
            normalise=request.normalise,
            rerank=rerank,
        )


def _shares(explanation: Explanation) -> list[Event]:
    """One event a hit."""
    common = {
        "layers": [asdict(layer) for layer in explanation.layers],
        "tokens_are": explanation.tokens_are,
    }
    return [Event("shares", {**common, "hit": asdict(hit)}) for hit in explanation.hits]
