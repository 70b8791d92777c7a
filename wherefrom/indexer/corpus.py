"""The corpus: documents checked one by one, and held on disk so that they can be read again.

Building an index takes several passes over documents that may come from a generator and may not
fit in memory. :meth:`Corpus.spool` reads them once, checks what only shows over the whole corpus
(repeated ids, columns whose values disagree in type) and writes them to a file of canonical JSON
lines, whose SHA-256 is the corpus's content hash. The file stays until the index is finished: it
is what an interrupted build goes on with, and what all workers read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import CorpusError, IntegrityError, StorageError
from wherefrom.indexer.readers import read_documents
from wherefrom.indexer.rows import metadata_value
from wherefrom.records import Document, Message, MetadataValue
from wherefrom.store import storage_errors, write_atomically

__all__ = ["ColumnType", "Corpus", "canonical_line", "read_corpus"]

ColumnType = Literal["string", "int64", "float64", "bool"]

_INT64 = range(-(2**63), 2**63)
_BETWEEN_MARKS = 256


def read_corpus(
    source: str | os.PathLike[str] | Iterable[Document],
    *,
    metadata_columns: Collection[str] | None = None,
    text_columns: Collection[str] = (),
) -> Iterator[Document]:
    """Stream the documents of a path or an iterable, each one checked.

    Args:
        source: A path that :func:`~wherefrom.indexer.readers.read_documents` reads, or documents.
        metadata_columns: For a path, the columns to keep as metadata; all by default.
        text_columns: For a CSV file, those that are text whatever their values look like.

    Raises:
        CorpusError: ``source`` is neither, holds no documents, or holds one that cannot be
            indexed: no id, text that is not valid Unicode, spans outside the text, nested metadata.
    """
    if isinstance(source, (str, os.PathLike)):
        documents: Iterable[Document] = read_documents(
            source, metadata_columns=metadata_columns, text_columns=text_columns
        )
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        documents = source
    else:
        raise CorpusError(
            f"documents are a value of type {type(source).__name__}; give a path or an iterable "
            "of wherefrom.Document"
        )
    return _checked_documents(documents)


def _checked_documents(documents: Iterable[Document]) -> Iterator[Document]:
    position = 0
    for position, document in enumerate(documents, start=1):
        yield _checked(document, position)
    if position == 0:
        raise CorpusError("the corpus holds no documents; give at least one")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents on disk: sized, readable any number of times from any one on, typed, hashed.

    Made by :meth:`spool`, opened again by :meth:`open`.

    Attributes:
        path: The file of canonical JSON lines.
        documents: Number of documents.
        metadata: Type of every metadata column, in order of first appearance.
        content_sha256: SHA-256 (hex) of the file, which holds ids, texts, scored spans and
            metadata in order, and nothing that depends on the machine.
        marks: Where every 256th document starts, in bytes.
    """

    path: Path
    documents: int
    metadata: Mapping[str, ColumnType]
    content_sha256: str
    marks: NDArray[np.int64]

    @classmethod
    def spool(cls, documents: Iterable[Document], path: str | os.PathLike[str]) -> Corpus:
        """Write ``documents`` to ``path``, in one pass, durably; it is there when all are.

        Memory holds one document at a time and 16 bytes of digest per id.

        Raises:
            CorpusError: There are no documents, an id repeats, a document cannot be indexed, or a
                column mixes types. Whatever is raised, no file is left.
            StorageError: The disk refused a write.
        """
        made: list[Corpus] = []

        def write(temporary: Path) -> None:
            made.append(cls._written(documents, temporary))

        try:
            with _storing(Path(path)):
                write_atomically(path, write)
        except _SourceError as error:
            raise error.cause from None
        return replace(made[0], path=Path(path))

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], metadata: Mapping[str, ColumnType], content_sha256: str
    ) -> Corpus:
        """The corpus that was written to ``path``.

        Args:
            path: The file.
            metadata: Its columns.
            content_sha256: Its digest, which it is compared with.

        Raises:
            IntegrityError: It is missing or differs from its digest.
            StorageError: The disk refuses.
        """
        content, count, position = hashlib.sha256(), 0, 0
        marks = []
        with storage_errors(path), _present(Path(path)) as stream:
            for line in stream:
                if count % _BETWEEN_MARKS == 0:
                    marks.append(position)
                content.update(line)
                position += len(line)
                count += 1
        if content.hexdigest() != content_sha256:
            raise IntegrityError(
                f"{path} differs from its SHA-256; begin anew with --no-resume (resume=False)"
            )
        return cls(Path(path), count, dict(metadata), content_sha256, np.array(marks, np.int64))

    @classmethod
    def _written(cls, documents: Iterable[Document], path: Path) -> Corpus:
        content, seen = hashlib.sha256(), set[bytes]()
        columns: dict[str, _Column] = {}
        marks, position = [], 0
        with _writer(path) as stream:
            for document in _told_apart(_checked_documents(documents)):
                key = hashlib.blake2b(document.doc_id.encode(), digest_size=16).digest()
                if key in seen:
                    with _storing(path):
                        stream.flush()
                    raise CorpusError(_duplicate(path, document.doc_id, len(seen) + 1))
                if len(seen) % _BETWEEN_MARKS == 0:
                    marks.append(position)
                seen.add(key)
                for name, value in document.metadata.items():
                    columns.setdefault(name, _Column(name, {})).admit(value, document.doc_id)
                line = canonical_line(document)
                content.update(line)
                position += len(line)
                with _storing(path):
                    stream.write(line)
        types = {name: column.type for name, column in columns.items()}
        return cls(path, len(seen), types, content.hexdigest(), np.array(marks, np.int64))

    def __len__(self) -> int:
        """Number of documents."""
        return self.documents

    def __iter__(self) -> Iterator[Document]:
        """Stream the documents in order, each with every metadata column.

        Raises:
            StorageError: The file cannot be read any more.
        """
        return self.at(range(len(self)))

    def at(self, positions: Sequence[int] | NDArray[np.int64]) -> Iterator[Document]:
        """Stream the documents at ascending ``positions``, without reading all before them.

        Raises:
            StorageError: The file cannot be read any more.
        """
        with _storing(self.path):
            stream = self.path.open("rb")
        with stream:
            here = 0
            for position in positions:
                mark = int(position) // _BETWEEN_MARKS
                if mark > here // _BETWEEN_MARKS:
                    stream.seek(int(self.marks[mark]))
                    here = mark * _BETWEEN_MARKS
                for _ in range(here, int(position)):
                    stream.readline()
                yield _restored(stream.readline(), self.metadata)
                here = int(position) + 1


class _SourceError(Exception):
    """What went wrong where documents come from, which is not the disk's fault."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


def _told_apart(documents: Iterable[Document]) -> Iterator[Document]:
    try:
        yield from documents
    except GeneratorExit:
        raise
    except BaseException as error:
        raise _SourceError(error) from error


@dataclass(frozen=True, slots=True)
class _Column:
    """A metadata column: the types met so far, each with the first document that has it."""

    name: str
    first: dict[ColumnType, str]

    def admit(self, value: MetadataValue, doc_id: str) -> None:
        if value is None:
            return
        kind = self._kind(value, doc_id)
        self.first.setdefault(kind, doc_id)
        if len(self.first) > 1 and not self.first.keys() <= {"int64", "float64"}:
            one, other = list(self.first.items())[-2:]
            raise CorpusError(
                f"metadata column {self.name!r} is {one[0]} in document {one[1]!r} and {other[0]} "
                f"in document {other[1]!r}; give it one type"
            )

    def _kind(self, value: MetadataValue, doc_id: str) -> ColumnType:
        if isinstance(value, bool):
            return "bool"
        if isinstance(value, int):
            if value not in _INT64:
                raise CorpusError(
                    f"metadata column {self.name!r} of document {doc_id!r} holds an integer beyond "
                    "64 bits; store it as text"
                )
            return "int64"
        return "float64" if isinstance(value, float) else "string"

    @property
    def type(self) -> ColumnType:
        """The type of all values; a column without any is ``string``."""
        return "float64" if "float64" in self.first else next(iter(self.first), "string")


def _checked(document: object, position: int) -> Document:
    """The document with plain metadata values, or the error that names what is wrong with it."""
    if not isinstance(document, Document):
        raise CorpusError(
            f"document {position} is a value of type {type(document).__name__}; "
            "give wherefrom.Document objects"
        )
    if not isinstance(document.doc_id, str) or not document.doc_id:
        raise CorpusError(f"document {position} has the id {document.doc_id!r}; ids are text")
    where = f"document {document.doc_id!r}"
    if not isinstance(document.text, str):
        raise CorpusError(f"{where}: the text is of type {type(document.text).__name__}; give str")
    turns = [text for turn in document.messages or () for text in (turn.role, turn.content)]
    for text in (document.doc_id, document.text, *turns):
        _require_unicode(text, where)
    scored = document.scored and tuple((int(start), int(end)) for start, end in document.scored)
    for start, end in scored or ():
        if not 0 <= start <= end <= len(document.text):
            raise CorpusError(
                f"{where}: the scored span ({start}, {end}) is not within its text of "
                f"{len(document.text)} characters"
            )
    if not isinstance(document.metadata, Mapping):
        raise CorpusError(
            f"{where}: metadata is {document.metadata!r:.80}; give a mapping of names to values"
        )
    metadata = {name: _plain(name, value, where) for name, value in document.metadata.items()}
    return replace(document, metadata=metadata, scored=scored)


def _plain(name: object, value: object, where: str) -> MetadataValue:
    if not isinstance(name, str) or not name:
        raise CorpusError(f"{where}: metadata column {name!r}: names are text")
    try:
        plain = metadata_value(value)
    except TypeError as error:
        raise CorpusError(f"{where}: metadata column {name!r}: {error}") from None
    _require_unicode(name, where)
    if isinstance(plain, str):
        _require_unicode(plain, f"{where}: metadata column {name!r}")
    return plain


def _require_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"{where}: not valid Unicode (a lone surrogate U+{ord(text[error.start]):04X} at "
            f"character {error.start}); replace or remove it"
        ) from None


def canonical_line(document: Document) -> bytes:
    """A document as one line of JSON, the same wherever it is written."""
    record = {
        "doc_id": document.doc_id,
        "text": document.text,
        "metadata": {name: v for name, v in document.metadata.items() if v is not None},
        "scored": document.scored,
        "messages": document.messages
        and [(message.role, message.content) for message in document.messages],
        "special_tokens": document.special_tokens,
        "parent_id": document.parent_id,
        "char_start": document.char_start,
    }
    text = json.dumps(record, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode() + b"\n"


def _restored(line: bytes, columns: Mapping[str, ColumnType]) -> Document:
    record = json.loads(line)
    values = record.pop("metadata")
    metadata = {name: values.get(name) for name in columns}
    for name, value in metadata.items():
        if columns[name] == "float64" and value is not None:
            metadata[name] = float(value)
    scored, messages = record.pop("scored"), record.pop("messages")
    return Document(
        metadata=metadata,
        scored=None if scored is None else tuple((start, end) for start, end in scored),
        messages=None if messages is None else tuple(Message(*turn) for turn in messages),
        **record,
    )


def _duplicate(path: Path, doc_id: str, position: int) -> str:
    with path.open("rb") as stream:
        ids = (json.loads(line)["doc_id"] for line in stream)
        first = next(number for number, other in enumerate(ids, start=1) if other == doc_id)
    return f"doc_id {doc_id!r} is given to documents {first} and {position}; make the ids unique"


@contextmanager
def _writer(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, closed so that a full disk still shows as a ``StorageError``."""
    with _storing(path):
        stream = path.open("wb")
    try:
        yield stream
    finally:
        with _storing(path):
            stream.close()


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: the corpus cannot be held there ({error.strerror or error}); "
            "free some space or choose another folder"
        ) from error


@contextmanager
def _present(path: Path) -> Iterator[IO[bytes]]:
    try:
        stream = path.open("rb")
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{path} is missing; begin anew with --no-resume (resume=False)"
        ) from error
    with stream:
        yield stream
