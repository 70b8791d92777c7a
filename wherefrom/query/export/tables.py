"""Answers as tables, a row a hit: Arrow, pandas, ``datasets``; JSON Lines, CSV, Parquet.

All of them are one table (:func:`hits_table`), so that they hold the same. Its columns are always
there, whatever was asked for, and typed; metadata columns come last, as ``metadata.NAME``. The
version of the columns stands in every row (``schema``), for rows get separated from their files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa

from wherefrom.errors import MissingExtraError, QueryError
from wherefrom.query.answer import Answer
from wherefrom.query.export.files import write_file
from wherefrom.query.export.json_text import as_json, json_text
from wherefrom.query.interpretation.explanation import Explanation, HitSimilarity
from wherefrom.query.measurement import measurement_of
from wherefrom.query.printable import printable, printable_lines
from wherefrom.records import Hit, MetadataValue, Query

__all__ = [
    "HITS_SCHEMA",
    "hits_dataset",
    "hits_frame",
    "hits_table",
    "write_csv",
    "write_jsonl",
    "write_parquet",
]

HITS_SCHEMA = "wherefrom-hits/1"

_METADATA = "metadata."
_SURROGATE = re.compile("[\ud800-\udfff]")
# The first four start formulas in all spreadsheets, the wide ones in some; the mark itself is
# doubled, so that taking one off a cell always gives its text back.
_FORMULA_STARTS = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20", "'")

_TEXT, _INT, _FLOAT, _BOOL = pa.string(), pa.int64(), pa.float64(), pa.bool_()
_LAYERS = pa.list_(pa.struct([("layer", _TEXT), ("share", _FLOAT)]))
_TOKENS = pa.list_(pa.struct([("text", _TEXT), ("start", _INT), ("end", _INT), ("share", _FLOAT)]))

_OF_ANSWER: dict[str, tuple[Any, Callable[[Answer], Any]]] = {
    "query": (_TEXT, lambda a: None if a.query is None else json_text(asdict(a.query))),
    "prompt": (_TEXT, lambda a: a.query.prompt if isinstance(a.query, Query) else None),
    "completion": (_TEXT, lambda a: a.query.completion if isinstance(a.query, Query) else None),
    "contrast": (_TEXT, lambda a: a.query.contrast if isinstance(a.query, Query) else None),
    "measured": (_TEXT, lambda a: measurement_of(a.query, a.index.get("objective")).quantity),
    "log_likelihood": (_FLOAT, lambda a: a.log_likelihood),
    "scored_tokens": (_INT, lambda a: a.scored_tokens),
}
_OF_HIT: dict[str, tuple[Any, Callable[[Hit], Any]]] = {
    "rank": (_INT, lambda h: h.rank),
    "doc_id": (_TEXT, lambda h: h.doc_id),
    "score": (_FLOAT, lambda h: h.score),
    "percentile": (_FLOAT, lambda h: h.percentile),
    "cosine": (_FLOAT, lambda h: h.cosine),
    "relatif": (_FLOAT, lambda h: h.relatif),
    "norm": (_FLOAT, lambda h: h.norm),
    "tokens": (_INT, lambda h: h.tokens),
    "parent_id": (_TEXT, lambda h: h.parent_id),
    "char_start": (_INT, lambda h: h.char_start),
    "text": (_TEXT, lambda h: h.text),
}
_OF_SIMILARITY: dict[str, tuple[Any, Callable[[HitSimilarity], Any]]] = {
    "bm25": (_FLOAT, lambda s: s.bm25),
    "bm25_rank": (_INT, lambda s: s.bm25_rank),
    "shared_words": (_INT, lambda s: s.shared_words),
    "cluster": (_INT, lambda s: s.cluster),
    "flag": (_TEXT, lambda s: s.flag),
}
_OF_CERTIFICATE: dict[str, tuple[Any, Callable[[Answer], Any]]] = {
    "tier": (_TEXT, lambda a: a.certificate.tier),
    "certified": (_BOOL, lambda a: a.certificate.certified),
    "documents": (_INT, lambda a: a.certificate.documents),
    "candidates": (_INT, lambda a: a.certificate.candidates),
    "backend": (_TEXT, lambda a: a.certificate.backend),
    "slope": (_FLOAT, lambda a: a.certificate.slope),
    "recall_estimate": (_FLOAT, lambda a: a.certificate.recall and a.certificate.recall.estimate),
    "recall_low": (_FLOAT, lambda a: a.certificate.recall and a.certificate.recall.low),
    "recall_high": (_FLOAT, lambda a: a.certificate.recall and a.certificate.recall.high),
    "normalise": (_TEXT, lambda a: a.normalise),
    "damping": (_FLOAT, lambda a: a.damping),
    "refined": (_INT, lambda a: a.refined),
    "residual": (_FLOAT, lambda a: a.residual),
    "where": (_TEXT, lambda a: json_text(as_json(a.where))),
    "index": (_TEXT, lambda a: a.index["path"]),
    "manifest_sha256": (_TEXT, lambda a: a.index["manifest_sha256"]),
    "weights_sha256": (_TEXT, lambda a: a.index["weights_sha256"]),
}


def hits_table(answers: Sequence[Answer], *, ids: Sequence[str] | None = None) -> pa.Table:
    """All hits of answers as an Arrow table, proponents before opponents within each answer.

    Columns that say nothing for a hit are null there: ``prompt``, ``completion`` and ``contrast``
    of questions asked as one (``query`` holds those, as JSON), BM25 of answers without similarity,
    shares of answers without explanation. ``answer`` counts from 0; ``sign`` is ``proponent`` or
    ``opponent``; ``bound`` is what no document left out can exceed; scores are in nats.

    Args:
        answers: Of one index or of several.
        ids: A name for each answer's question, which goes into ``question_id``.

    Raises:
        QueryError: A metadata column holds numbers in one answer and text in another.
    """
    hits = [
        (number, answer, kind, hit)
        for number, answer in enumerate(answers)
        for kind, found in (("proponent", answer.proponents), ("opponent", answer.opponents))
        for hit in found
    ]
    columns: dict[str, tuple[Any, list[Any]]] = {
        "schema": (_TEXT, [HITS_SCHEMA] * len(hits)),
        "answer": (_INT, [number for number, *_ in hits]),
        "question_id": (_TEXT, [ids[number] or None if ids else None for number, *_ in hits]),
    }
    for name, (kind, of_answer) in _OF_ANSWER.items():
        columns[name] = kind, _once_each(hits, of_answer)
    columns["sign"] = _TEXT, [sign for _, _, sign, _ in hits]
    for name, (kind, of_hit) in _OF_HIT.items():
        columns[name] = kind, [of_hit(hit) for *_, hit in hits]
    alike = [
        None if answer.similarity is None else answer.similarity.of(hit.doc_id)
        for _, answer, _, hit in hits
    ]
    for name, (kind, of_similarity) in _OF_SIMILARITY.items():
        columns[name] = kind, [one and of_similarity(one) for one in alike]
    columns["bound"] = _FLOAT, [_bound(answer, sign) for _, answer, sign, _ in hits]
    columns["stands_out"] = _BOOL, [_stands_out(answer, sign) for _, answer, sign, _ in hits]
    for name, (kind, of_answer) in _OF_CERTIFICATE.items():
        columns[name] = kind, _once_each(hits, of_answer)
    shares = [_shares(answer.explanation, hit.doc_id) for _, answer, _, hit in hits]
    columns["layer_shares"] = _LAYERS, [layers for layers, _ in shares]
    columns["token_shares"] = _TOKENS, [tokens for _, tokens in shares]
    for name in dict.fromkeys(name for *_, hit in hits for name in hit.metadata):
        values = [hit.metadata.get(name) for *_, hit in hits]
        columns[_METADATA + _whole(name)] = _metadata_type(name, values), values
    contracts = dict.fromkeys(
        measurement_of(answer.query, answer.index.get("objective")).contract for answer in answers
    )
    return pa.table(
        [pa.array(_whole(values), kind) for kind, values in columns.values()],
        schema=pa.schema(
            [pa.field(name, kind) for name, (kind, _) in columns.items()],
            metadata={"schema": HITS_SCHEMA, "contract": "\n".join(contracts)},
        ),
    )


def hits_frame(answers: Sequence[Answer]) -> Any:
    """:func:`hits_table` as a pandas ``DataFrame``; whole numbers and truths may be missing.

    Raises:
        MissingExtraError: pandas is not installed.
        QueryError: As for :func:`hits_table`.
    """
    pandas = _extra("pandas", "pandas")
    table = hits_table(answers)
    types = {_INT: pandas.Int64Dtype(), _BOOL: pandas.BooleanDtype()}
    frame = table.to_pandas(types_mapper=types.get)
    frame.attrs = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return frame


def hits_dataset(answers: Sequence[Answer]) -> Any:
    """:func:`hits_table` as a ``datasets.Dataset``.

    Raises:
        MissingExtraError: ``datasets`` is not installed.
        QueryError: As for :func:`hits_table`.
    """
    return _extra("datasets", "datasets").Dataset(hits_table(answers))


def write_jsonl(answers: Sequence[Answer], path: str | os.PathLike[str]) -> Path:
    """Write :func:`hits_table` as JSON Lines, an object a hit, and return the file's path.

    Raises:
        StorageError: The file cannot be written.
        QueryError: As for :func:`hits_table`.
    """
    rows = hits_table(answers).to_pylist()
    lines = "".join(json_text(row) + "\n" for row in rows)
    return write_file(path, lambda temporary: temporary.write_text(lines, "utf-8", newline="\n"))


def write_csv(
    answers: Sequence[Answer],
    path: str | os.PathLike[str],
    *,
    ids: Sequence[str] | None = None,
) -> Path:
    """Write :func:`hits_table` as CSV for spreadsheets, and return the file's path.

    Documents may hold what a spreadsheet would run. So cells of text that begin, after white space,
    with ``=``, ``+``, ``-``, ``@`` or ``'`` get a ``'`` before them (take it off to have the text
    back), and control and invisible characters are left out. Numbers stay numbers. Shares of layers
    and tokens are left out too. Nothing between two commas is a missing value, ``""`` an empty
    text. Use Parquet or JSON Lines where every character counts.

    Raises:
        StorageError: The file cannot be written.
        QueryError: As for :func:`hits_table`.
    """
    from pyarrow import csv

    table = hits_table(answers, ids=ids).drop_columns(["layer_shares", "token_shares"])
    cells = [
        pa.array([text and _harmless(text) for text in column.to_pylist()], _TEXT)
        if column.type == _TEXT
        else column
        for column in table.columns
    ]
    safe = pa.table(cells, names=[_harmless(printable(name)) for name in table.column_names])
    return write_file(path, lambda temporary: csv.write_csv(safe, temporary))


def write_parquet(
    answers: Sequence[Answer],
    path: str | os.PathLike[str],
    *,
    ids: Sequence[str] | None = None,
) -> Path:
    """Write :func:`hits_table` as Parquet, and return the file's path.

    Raises:
        StorageError: The file cannot be written.
        QueryError: As for :func:`hits_table`.
    """
    from pyarrow import parquet

    table = hits_table(answers, ids=ids)
    return write_file(path, lambda temporary: parquet.write_table(table, temporary))


_Row = tuple[int, Answer, str, Hit]


def _once_each(hits: Sequence[_Row], of_answer: Callable[[Answer], Any]) -> list[Any]:
    """A value of each hit's answer, computed once an answer."""
    values = {number: of_answer(answer) for number, answer in {n: a for n, a, *_ in hits}.items()}
    return [values[number] for number, *_ in hits]


def _bound(answer: Answer, sign: str) -> float | None:
    found = answer.certificate
    return found.next_proponent if sign == "proponent" else found.next_opponent


def _stands_out(answer: Answer, sign: str) -> bool | None:
    background = answer.certificate.background
    if background is None:
        return None
    return background.proponents if sign == "proponent" else background.opponents


def _shares(
    explanation: Explanation | None, doc_id: str
) -> tuple[list[dict[str, Any]] | None, list[dict[str, Any]] | None]:
    """Shares of a hit: of its layers and of its tokens."""
    hit = None if explanation is None else explanation.of(doc_id)
    if explanation is None or hit is None:
        return None, None
    layers = [
        {"layer": layer.name, "share": share}
        for layer, share in zip(explanation.layers, hit.layers, strict=True)
    ]
    return layers, None if hit.tokens is None else [asdict(token) for token in hit.tokens]


def _metadata_type(name: str, values: Sequence[MetadataValue]) -> Any:
    """The type that holds all values of a metadata column.

    Raises:
        QueryError: There is none.
    """
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return _FLOAT
    if len(kinds) > 1:
        raise QueryError(
            f"metadata column {name!r} is of several types in these answers: "
            f"{', '.join(sorted(kind.__name__ for kind in kinds))}; export the answers of each "
            "index by themselves"
        )
    return {bool: _BOOL, int: _INT, float: _FLOAT}.get(kinds.pop() if kinds else str, _TEXT)


def _whole(value: Any) -> Any:
    """``value`` with stand-ins for halves of characters, which Arrow cannot hold."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {name: _whole(one) for name, one in value.items()}
    return value


def _harmless(text: str) -> str:
    """A cell that no spreadsheet takes for a formula, and no terminal for a command."""
    shown = printable_lines(text)
    return "'" + shown if shown.lstrip().startswith(_FORMULA_STARTS) else shown


def _extra(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed; pip install 'wherefrom[{extra}]'"
        ) from error
