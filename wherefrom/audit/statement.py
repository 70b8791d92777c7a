"""What a bundle attests, as an in-toto Statement v1 (https://in-toto.io/Statement/v1).

Its subjects are the bundle's files and, by URNs, the index and what it was built from; its
predicate sums up what was asked and how far the answers can be trusted. It holds no time and no
path, so that the same answers make the same bytes; whoever signs it adds the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from wherefrom.audit.canonical import canonical_json, read_strictly, sha256
from wherefrom.audit.entries import Entry
from wherefrom.errors import IntegrityError
from wherefrom.query.measurement import measurement_of
from wherefrom.store.manifest import Manifest
from wherefrom.store.manifest_parts import Record

__all__ = [
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "CertificateSummary",
    "GateSummary",
    "Predicate",
    "QuestionDigest",
    "Statement",
    "Subject",
    "index_subjects",
    "make_predicate",
    "make_statement",
    "read_statement",
]

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "urn:wherefrom:evidence:v1"

_Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
_Count = Annotated[int, Field(ge=0)]


class Digests(Record):
    """Digests of one subject."""

    sha256: _Sha256


class Subject(Record):
    """What is attested.

    Attributes:
        name: A file of the bundle, or ``urn:wherefrom:`` and what the index's manifest names.
        digest: Of the file's bytes; of what a URN names, the digest that the manifest records.
    """

    name: str
    digest: Digests


class QuestionDigest(Record):
    """A question, by the SHA-256 of its canonical JSON; the answers hold it in words.

    What could not be asked is ``null``.
    """

    id: str
    sha256: _Sha256


class CertificateSummary(Record):
    """How far the answers can be trusted, in numbers.

    Attributes:
        answers: Questions answered.
        failed: Questions that could not be.
        exact: Answers whose scores are of uncompressed gradients.
        certified: Answers whose lists are proved to be the true ones of their tier.
        lowest_recall: Of the others, the least estimate; ``None`` if there is none.
        in_background: Answers neither of whose lists stands out from chance; answers for which
            that was not measured do not count.
    """

    answers: _Count
    failed: _Count
    exact: _Count
    certified: _Count
    lowest_recall: float | None
    in_background: _Count


class GateSummary(Record):
    """Conditions that the answers were held against, and how often each verdict fell."""

    conditions: tuple[str, ...]
    fired: _Count
    undecidable: _Count


class Predicate(Record):
    """What is said of the subjects.

    Attributes:
        wherefrom: The version that made the bundle.
        command: How it was made, with names in the place of paths.
        contracts: Unit and sign of the answers' scores.
        questions: In the order of the answers.
        certificates: Summed up.
        gate: ``None`` if there was none.
    """

    wherefrom: str
    command: tuple[str, ...]
    contracts: tuple[str, ...]
    questions: tuple[QuestionDigest, ...]
    certificates: CertificateSummary
    gate: GateSummary | None


class Statement(Record):
    """An in-toto Statement v1."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(alias="_type")
    subject: Annotated[tuple[Subject, ...], Field(min_length=1)]
    predicate_type: Literal["urn:wherefrom:evidence:v1"] = Field(alias="predicateType")
    predicate: Predicate

    def to_bytes(self) -> bytes:
        """The bytes of ``statement.json``: canonical, on one line."""
        return canonical_json(self.model_dump(mode="json", by_alias=True)) + b"\n"

    @property
    def digest(self) -> str:
        """SHA-256 of these bytes."""
        return sha256(self.to_bytes())


def index_subjects(manifest: Manifest) -> dict[str, str]:
    """Digests of the index and of what it was built from, by URN."""
    model = manifest.model
    adapter = None if model.adapter is None else model.adapter.sha256
    named = {
        "index": manifest.digest,
        "weights": model.weights_sha256,
        "adapter": adapter,
        "tokenizer": model.tokenizer_sha256,
        "corpus": manifest.corpus.content_sha256,
    }
    return {f"urn:wherefrom:{name}": digest for name, digest in named.items() if digest}


def make_predicate(entries: Sequence[Entry], command: Sequence[str], version: str) -> Predicate:
    """What entries come to.

    Args:
        entries: All of the bundle.
        command: How they came about.
        version: Of wherefrom.
    """
    questions = tuple(
        QuestionDigest(id=entry.id, sha256=_question_sha256(entry)) for entry in entries
    )
    contracts = dict.fromkeys(
        measurement_of(entry.query, entry.answer.index.get("objective")).contract
        for entry in entries
        if entry.answer is not None
    )
    return Predicate(
        wherefrom=version,
        command=tuple(command),
        contracts=tuple(contracts),
        questions=questions,
        certificates=_certificates(entries),
        gate=_gate(entries),
    )


def make_statement(files: Mapping[str, str], manifest: Manifest, predicate: Predicate) -> Statement:
    """The statement about the files of a bundle.

    Args:
        files: SHA-256 of each.
        manifest: Of the index that was asked.
        predicate: What is said of them.
    """
    digests = dict(sorted(files.items())) | index_subjects(manifest)
    return Statement.model_validate(
        {
            "_type": STATEMENT_TYPE,
            "subject": [
                {"name": name, "digest": {"sha256": digest}} for name, digest in digests.items()
            ],
            "predicateType": PREDICATE_TYPE,
            "predicate": predicate,
        }
    )


def read_statement(data: bytes, name: str) -> Statement:
    """Read ``statement.json`` back.

    Raises:
        IntegrityError: It is none of ours, or not written as we do.
    """
    fields = read_strictly(data, name)
    try:
        statement = Statement.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"{name} is no statement of ours (field {where!r}: {first['msg']})"
        ) from error
    if statement.to_bytes() != data:
        raise IntegrityError(f"{name} is not written as wherefrom writes it (canonical JSON)")
    return statement


def _question_sha256(entry: Entry) -> str:
    return sha256(canonical_json(None if entry.query is None else asdict(entry.query)))


def _certificates(entries: Sequence[Entry]) -> CertificateSummary:
    answers = [entry.answer for entry in entries if entry.answer is not None]
    certificates = [answer.certificate for answer in answers]
    recalls = [one.recall.estimate for one in certificates if one.recall is not None]
    backgrounds = [one.background for one in certificates if one.background is not None]
    return CertificateSummary(
        answers=len(answers),
        failed=len(entries) - len(answers),
        exact=sum(one.tier == "exact" for one in certificates),
        certified=sum(one.certified for one in certificates),
        lowest_recall=min(recalls, default=None),
        in_background=sum(not (one.proponents or one.opponents) for one in backgrounds),
    )


def _gate(entries: Sequence[Entry]) -> GateSummary | None:
    conditions = dict.fromkeys(text for entry in entries for text in entry.fail_if)
    if not conditions:
        return None
    verdicts = [finding.verdict for entry in entries for finding in entry.gate]
    return GateSummary(
        conditions=tuple(conditions),
        fired=verdicts.count("fired"),
        undecidable=verdicts.count("undecidable"),
    )
