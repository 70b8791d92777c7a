"""Answers: ranked documents with their scores, and how far to trust them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wherefrom.query.export.json_text import as_json, json_text
from wherefrom.query.interpretation.explanation import Explanation, Grouping, Similarity
from wherefrom.query.measurement import measurement_of
from wherefrom.records import Certificate, Hit, Normalise, Query, QuerySet, Sign

__all__ = ["ANSWER_SCHEMA", "Answer"]

ANSWER_SCHEMA = "wherefrom-answer/2"


@dataclass(frozen=True, slots=True)
class Answer:
    """The most influential documents for one query.

    Attributes:
        query: What was asked; ``None`` for tensor queries.
        proponents: Documents that make the completion more likely (that raise the measurement, for
            contrasts and sets), strongest first.
        opponents: Documents that make it less likely, strongest first.
        certificate: Tier, guarantee, and what was searched.
        log_likelihood: Value of the measurement: nats of the completion under the model, or the
            difference, mean or sum of several.
        scored_tokens: How many predictions count.
        sign: Which lists were asked for; the other one is empty.
        normalise: What documents are ranked by: scores, cosines, or l-RelatIF.
        damping: Under which the scores are, in units of a layer's mean eigenvalue; for a refined
            query, of the mean over all layers.
        refined: Steps of conjugate gradients that the query was refined by.
        residual: Relative residual of the solution, where it was solved for by iteration.
        index: Path, manifest digest, N, curvature, damping and encoder of the index.
        where: The metadata filter, as given.
        options: Every choice it was asked with, as arguments of :meth:`wherefrom.Index.query`.
        seconds: Time from question to answer.
        explanation: Shares of layers and tokens, where they were asked for.
        similarity: How alike hits and question are in words, likewise.
        groups: Influence summed by metadata columns, likewise.
    """

    query: Query | QuerySet | None
    proponents: tuple[Hit, ...]
    opponents: tuple[Hit, ...]
    certificate: Certificate
    log_likelihood: float
    scored_tokens: int
    sign: Sign
    normalise: Normalise
    damping: float
    refined: int
    residual: float | None
    index: Mapping[str, Any]
    where: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    explanation: Explanation | None = None
    similarity: Similarity | None = None
    groups: tuple[Grouping, ...] = ()

    @property
    def hits(self) -> tuple[Hit, ...]:
        """Proponents, then opponents."""
        return (*self.proponents, *self.opponents)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the schema version and the meaning of the score."""
        return {
            "schema": ANSWER_SCHEMA,
            "contract": measurement_of(self.query, self.index.get("objective")).contract,
            "query": None if self.query is None else asdict(self.query),
            "log_likelihood": self.log_likelihood,
            "scored_tokens": self.scored_tokens,
            "sign": self.sign,
            "normalise": self.normalise,
            "damping": self.damping,
            "refined": self.refined,
            "residual": self.residual,
            "proponents": [_plain(hit) for hit in self.proponents],
            "opponents": [_plain(hit) for hit in self.opponents],
            "certificate": asdict(self.certificate),
            "where": as_json(self.where),
            "options": as_json(self.options),
            "index": dict(self.index),
            "seconds": self.seconds,
            "explanation": None if self.explanation is None else asdict(self.explanation),
            "similarity": None if self.similarity is None else asdict(self.similarity),
            "groups": [asdict(grouping) for grouping in self.groups],
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON on one line; floats read back to the same bits.

        What it is to hold stands in the JSON Schema that ``wherefrom schema`` prints.
        """
        return json_text(self.to_dict())

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write a self-contained HTML report and return its path.

        Raises:
            StorageError: The disk refuses.
        """
        from wherefrom.query.report.html import write_report

        return write_report([("", self)], path)

    def to_arrow(self) -> Any:
        """The hits as an Arrow table; see :func:`wherefrom.query.export.tables.hits_table`."""
        from wherefrom.query.export.tables import hits_table

        return hits_table([self])

    def to_pandas(self) -> Any:
        """The hits as a pandas ``DataFrame``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        from wherefrom.query.export.tables import hits_frame

        return hits_frame([self])

    def to_dataset(self) -> Any:
        """The hits as a ``datasets.Dataset``.

        Raises:
            MissingExtraError: ``datasets`` is not installed.
        """
        from wherefrom.query.export.tables import hits_dataset

        return hits_dataset([self])

    def to_jsonl(self, path: str | os.PathLike[str]) -> Path:
        """Write the hits as JSON Lines and return the file's path.

        Raises:
            StorageError: The disk refuses.
        """
        from wherefrom.query.export.tables import write_jsonl

        return write_jsonl([self], path)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the hits as CSV, without formulas, and return the file's path.

        Raises:
            StorageError: The disk refuses.
        """
        from wherefrom.query.export.tables import write_csv

        return write_csv([self], path)

    def to_parquet(self, path: str | os.PathLike[str]) -> Path:
        """Write the hits as Parquet and return the file's path.

        Raises:
            StorageError: The disk refuses.
        """
        from wherefrom.query.export.tables import write_parquet

        return write_parquet([self], path)


def _plain(hit: Hit) -> dict[str, Any]:
    return {**asdict(hit), "metadata": dict(hit.metadata)}
