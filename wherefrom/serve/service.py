"""What both faces of the service, HTTP and MCP, call: one open index, asked by many at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar
from uuid import uuid4

from wherefrom.errors import QueryError, WherefromError
from wherefrom.maintenance.index import Index
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import Explanation, Grouping, Similarity
from wherefrom.query.reading import DocumentPage, StoredDocument
from wherefrom.records import Rerank
from wherefrom.serve.errors import (
    BusyError,
    FailedError,
    ServiceError,
    UnknownDocumentError,
    UnreadyError,
    status_of,
)
from wherefrom.serve.logs import FAILURES
from wherefrom.serve.narration import answer_in_words
from wherefrom.serve.published import Published
from wherefrom.serve.requests import ExplainRequest, GroupsRequest, QueryRequest
from wherefrom.serve.worker import Turn, Worker
from wherefrom.store import Where

__all__ = ["Event", "EventKind", "Limits", "Service"]

EventKind = Literal["stored", "answer", "words", "shares", "similarity", "groups", "done"]

T = TypeVar("T")
_READERS_WAITING = 64
_CHECK_SECONDS = 2.0
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
            ``shares``: an
            :class:`~wherefrom.query.interpretation.explanation.Explanation` of one hit, named
            ``hit``. ``similarity``: as in :class:`~wherefrom.query.answer.Answer`. ``groups``: one
            of an answer's. ``done``: all was told.
        data: Plain values.
    """

    kind: EventKind
    data: dict[str, Any]


class Service:
    """An open index that many ask at a time; its model works for one of them at once.

    A request is answered by the index as it is published when it is begun.

    Every method raises :class:`~wherefrom.errors.WherefromError` only, among them
    :class:`~wherefrom.serve.errors.BusyError` if the queue is full,
    :class:`~wherefrom.serve.errors.TimeLimitError`,
    :class:`~wherefrom.serve.errors.ClosingError`, and, of an index that changed,
    :class:`~wherefrom.serve.errors.ChangedError` and
    :class:`~wherefrom.serve.errors.ReplacedError`. A request that is cancelled leaves the queue.

    Args:
        index: What to ask.
        queue: Requests that may wait for the model.
        limits: Of every request.
    """

    def __init__(self, index: Index, *, queue: int = 8, limits: Limits | None = None) -> None:
        self._published = Published(index)
        self.limits = Limits() if limits is None else limits
        self.model = Worker("model", queue=queue, seconds=self.limits.seconds)
        self.reader = Worker("reader", queue=_READERS_WAITING, seconds=self.limits.seconds)
        self._check: tuple[float, asyncio.Future[None]] | None = None

    @property
    def index(self) -> Index:
        """The index as it was when it was asked last."""
        return self._published.index

    async def query(self, request: QueryRequest) -> Answer:
        """Answer a question, with all that the request wants beside it.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.query`, and as said of the class.
        """
        with self.model.admit() as turn:
            index, answer = await self._asked(turn, partial(_answer, request, request.rerank))
            if request.explain or request.similarity or request.group_by:
                answer = await self._gone_on(
                    turn,
                    index,
                    lambda index: index.annotate(
                        answer,
                        explain=request.explain,
                        similarity=request.similarity,
                        group_by=request.group_by,
                    ),
                )
            return _public(answer)

    async def stream(self, request: QueryRequest) -> AsyncIterator[Event]:
        """Answer a question part by part.

        The parts are computed however slowly they are taken: nobody keeps the model waiting.

        Raises:
            WherefromError: As :meth:`query`.
        """
        told: asyncio.Queue[Event | None] = asyncio.Queue()

        async def tell() -> None:
            try:
                async for event in self._events(request):
                    told.put_nowait(event)
            finally:
                told.put_nowait(None)

        telling = asyncio.ensure_future(tell())
        # Of a stream that nobody listens to any more, nobody asks how it ended.
        telling.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            while (event := await told.get()) is not None:
                yield event
            await telling
        finally:
            telling.cancel()

    async def explain(self, request: ExplainRequest) -> Explanation:
        """Shares of the scores of some documents.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.explain`, and as said of the class.
        """
        with self.model.admit() as turn:
            _, explained = await self._asked(
                turn,
                lambda index: index.explain(
                    request.question, doc_ids=request.doc_ids, damping=request.damping
                ),
            )
            return explained

    async def groups(self, request: GroupsRequest) -> Grouping:
        """The influence of all documents, summed by a metadata column.

        Raises:
            WherefromError: As :meth:`wherefrom.Index.groups`, and as said of the class.
        """
        with self.model.admit() as turn:
            _, summed = await self._asked(
                turn,
                lambda index: index.groups(
                    request.question,
                    by=request.by,
                    bins=request.bins,
                    where=request.filter,
                    damping=request.damping,
                ),
            )
            return summed

    async def document(self, doc_id: str) -> StoredDocument:
        """One document with its text and metadata.

        Raises:
            UnknownDocumentError: There is none of that id.
            WherefromError: As said of the class.
        """
        with self.reader.admit() as turn:
            try:
                _, found = await self._asked(turn, lambda index: index.document(doc_id))
            except QueryError as error:
                raise UnknownDocumentError(str(error)) from error
            return found

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
            _, page = await self._asked(
                turn, lambda index: index.documents(where, offset=offset, limit=limit)
            )
            return page

    async def check(self) -> None:
        """Make sure that requests are taken and that the index can be read.

        Whoever asks within seconds of another gets the same verdict: this needs no token, and must
        not keep readers from their turns.

        Raises:
            ClosingError: The service is shutting down.
            UnreadyError: The index cannot be read.
        """
        now = time.monotonic()
        if self._check is None or now - self._check[0] > _CHECK_SECONDS:
            self._check = now, asyncio.ensure_future(self._look())
        await asyncio.shield(self._check[1])

    async def _look(self) -> None:
        try:
            await self.documents(limit=1)
        except FailedError as error:
            raise UnreadyError(str(error)) from error
        except BusyError:
            return  # Others are being answered.

    def info(self) -> dict[str, Any]:
        """What the index holds and was built with, as it was when it was asked last.

        See :meth:`wherefrom.Index.info`.
        """
        return self.index.info()

    def begin_closing(self) -> None:
        """Turn away who comes and who waits; the request that is being worked for is answered."""
        self._check = None
        self.model.close()
        self.reader.close()

    async def close(self) -> None:
        """Turn everybody away and wait for the model to finish what it is at."""
        self.begin_closing()
        for worker in (self.model, self.reader):
            await asyncio.get_running_loop().run_in_executor(None, worker.join)

    async def _events(self, request: QueryRequest) -> AsyncIterator[Event]:
        started = time.perf_counter()
        with self.model.admit() as turn:
            index, answer = await self._asked(turn, partial(_answer, request, "stored"))
            for event in _answered("stored", answer, request):
                yield event
            if request.rerank != "stored":
                work = partial(_answer, request, request.rerank)
                final = await self._gone_on(turn, index, work)
                if final.certificate.tier == "exact":
                    answer = final
                    for event in _answered("answer", answer, request):
                        yield event
            if request.explain:
                doc_ids = [hit.doc_id for hit in answer.hits]
                for start in range(0, len(doc_ids), _EXPLAINED_AT_ONCE):
                    chosen = doc_ids[start : start + _EXPLAINED_AT_ONCE]
                    shares = partial(_explained, answer, chosen)
                    found = await self._gone_on(turn, index, shares)
                    for event in _shares(found):
                        yield event
            if request.similarity:
                likeness = partial(_similarity, answer)
                alike = await self._gone_on(turn, index, likeness)
                yield Event("similarity", asdict(alike))
            if request.group_by:
                sums = partial(_summed, answer, request.group_by)
                summed = await self._gone_on(turn, index, sums)
                for grouping in summed.groups:
                    yield Event("groups", asdict(grouping))
            yield Event("done", {"seconds": time.perf_counter() - started})

    async def _asked(self, turn: Turn, work: Callable[[Index], T]) -> tuple[Index, T]:
        """Have the present state of the index asked; which that is comes with the answer."""
        return await _done(turn, partial(self._published.ask, work))

    async def _gone_on(self, turn: Turn, index: Index, work: Callable[[Index], T]) -> T:
        """Have the state asked that an answer was begun with."""
        return await _done(turn, partial(self._published.go_on, index, work))


def _answer(request: QueryRequest, rerank: Rerank, index: Index) -> Answer:
    return index.query(
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


def _explained(answer: Answer, doc_ids: Sequence[str], index: Index) -> Explanation:
    return index.explain(answer, doc_ids=doc_ids)


def _similarity(answer: Answer, index: Index) -> Similarity:
    return index.similarity(answer)


def _summed(answer: Answer, columns: Sequence[str], index: Index) -> Answer:
    return index.annotate(answer, explain=False, similarity=False, group_by=columns)


async def _done(turn: Turn, work: Callable[[], T]) -> T:
    """Have a step done; what is wrong with the index or the model is told to the log only.

    Raises:
        FailedError: Something is.
        WherefromError: The request is at fault, or was turned away.
    """
    try:
        return await turn.run(work)
    except WherefromError as error:
        if isinstance(error, ServiceError) or status_of(error) < FailedError.status:
            raise
        reference = uuid4().hex[:12]
        FAILURES.error("%s %s: %s", reference, type(error).__name__, error)
        raise FailedError(
            f"the index or the model failed ({type(error).__name__}); the server's log tells why "
            f"under {reference}"
        ) from error


def _public(answer: Answer) -> Answer:
    """The answer without the place of the index on the server, but for its name."""
    return replace(answer, index={**answer.index, "path": Path(answer.index["path"]).name})


def _answered(kind: EventKind, answer: Answer, request: QueryRequest) -> list[Event]:
    """An answer, and what reports say of it."""
    told = _public(answer)
    return [Event(kind, told.to_dict()), Event("words", answer_in_words(told, request))]


def _shares(explanation: Explanation) -> list[Event]:
    """One event a hit."""
    common = {
        "layers": [asdict(layer) for layer in explanation.layers],
        "tokens_are": explanation.tokens_are,
    }
    return [Event("shares", {**common, "hit": asdict(hit)}) for hit in explanation.hits]
