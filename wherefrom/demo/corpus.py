"""The demo's corpus: State of the Union addresses, cut into passages, and questions to ask of them.

Everything here is deterministic: the same package yields the same passages, ids and texts.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files

from wherefrom.errors import CorpusError
from wherefrom.records import Document, MetadataValue, Span

__all__ = [
    "QUESTIONS",
    "Address",
    "Question",
    "cut_passages",
    "held_out_passages",
    "load_addresses",
    "training_passages",
]

DATA_FILE = "state_of_the_union.jsonl.gz"

PASSAGE_CHARACTERS = 590
"""Longest passage of whole sentences; about 130 tokens of the demo's tokenizer."""

TAIL_CHARACTERS = 150
"""An address's last passage is joined to the one before it when it is shorter than this."""

PROSE_SHARE = 0.9
"""Passages with a lower share of letters, spaces, commas and stops are tables, and left out."""

TRAINING_PASSAGES = 4100

_SENTENCE_END = re.compile(
    r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bNo\.)(?<!\bMessrs\.)"
    r"(?<!\b[A-Z]\.)[\"”')]*\s+(?=[\"“'(]*[A-Z0-9])"
)
_CLAUSE_END = re.compile(r"(?<=[;:,])\s+")
_FIGURE = re.compile(r"[^\w ,.]|[\d_]")
_WORD_END = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Address:
    """One address to the Congress.

    Attributes:
        doc_id: Such as ``sotu-1863-lincoln``.
        year: Year of delivery.
        president: Full name.
        party: The president's party, ``"none"`` for Washington.
        text: The whole address.
    """

    doc_id: str
    year: int
    president: str
    party: str
    text: str


@dataclass(frozen=True, slots=True)
class Question:
    """A sentence to trace, together with the era it speaks of.

    Attributes:
        name: Short label, one word or two.
        prompt: The context.
        completion: The words whose likelihood is traced; starts with a space.
        years: First and last year of the era, both included.
    """

    name: str
    prompt: str
    completion: str
    years: tuple[int, int]


QUESTIONS = (
    Question(
        name="frontier",
        prompt="The hostile tribes of Indians on our frontier have been",
        completion=" brought to peace by a treaty with the Cherokees and the Creeks.",
        years=(1790, 1820),
    ),
    Question(
        name="emancipation",
        prompt="Congress must now decide on",
        completion=" emancipation in the rebel States and the freedom of the slaves.",
        years=(1861, 1866),
    ),
    Question(
        name="world war",
        prompt="Our ships, our planes and our fighting men will",
        completion=" defeat the Japanese and the Nazis, and the war will be won.",
        years=(1941, 1945),
    ),
    Question(
        name="terror",
        prompt="America will not wait while",
        completion=" terrorists plot against our homeland from Iraq and Afghanistan.",
        years=(2002, 2008),
    ),
)
"""One question for each of four eras, quoted from no address.

They were chosen among a dozen phrasings for answers that tell something: they illustrate.
"""


def load_addresses() -> tuple[Address, ...]:
    """Reads the 233 addresses that come with the package, oldest first.

    Raises:
        CorpusError: The packaged file is missing or damaged.
    """
    source = files(__package__) / "data" / DATA_FILE
    try:
        lines = gzip.decompress(source.read_bytes()).decode("utf-8").splitlines()
        return tuple(Address(**json.loads(line)) for line in lines)
    except (OSError, EOFError, ValueError, TypeError) as error:
        raise CorpusError(
            f"the demo's corpus {DATA_FILE} cannot be read ({error}); reinstall wherefrom"
        ) from error


def cut_passages(address: Address) -> list[Document]:
    """Cuts an address into consecutive passages of whole sentences.

    A sentence too long for a passage is cut between clauses, or else between words.

    Args:
        address: The address.

    Returns:
        The passages in order, with ids such as ``sotu-1863-lincoln-007``; ``parent_id`` and
        ``char_start`` say where each one stands.
    """
    metadata: dict[str, MetadataValue] = {
        "year": address.year,
        "president": address.president,
        "party": address.party,
        "address": address.doc_id,
    }
    return [
        Document(
            doc_id=f"{address.doc_id}-{number:03d}",
            text=address.text[start:end],
            metadata=metadata,
            parent_id=address.doc_id,
            char_start=start,
        )
        for number, (start, end) in enumerate(_passage_spans(address.text), start=1)
    ]


def training_passages(
    addresses: Sequence[Address], count: int = TRAINING_PASSAGES
) -> list[Document]:
    """Picks passages evenly over the addresses and evenly within each.

    Every address gives up to the same number of passages, the smallest with which ``count`` is
    reached; so none dominates by its length.

    Args:
        addresses: The addresses to draw from.
        count: How many passages to reach; up to one per address more are returned.

    Raises:
        CorpusError: The addresses hold fewer passages than ``count``.
    """
    cut = [_prose(cut_passages(address)) for address in addresses]
    quota = _even_quota([len(passages) for passages in cut], count)
    return [passages[place] for passages in cut for place in _evenly_spaced(len(passages), quota)]


def held_out_passages(
    addresses: Sequence[Address], training: Sequence[Document], count: int
) -> list[Document]:
    """Picks ``count`` passages, evenly over all years, that are not among ``training``.

    Raises:
        CorpusError: Fewer than ``count`` passages are left.
    """
    taken = {document.doc_id for document in training}
    rest = [
        passage
        for address in addresses
        for passage in _prose(cut_passages(address))
        if passage.doc_id not in taken
    ]
    if len(rest) < count:
        raise CorpusError(
            f"{count} held-out passages asked for, {len(rest)} are left outside the training set; "
            "ask for fewer"
        )
    return [rest[place] for place in _evenly_spaced(len(rest), count)]


def _prose(passages: Sequence[Document]) -> list[Document]:
    return [passage for passage in passages if _letter_share(passage.text) >= PROSE_SHARE]


def _letter_share(text: str) -> float:
    return 1 - len(_FIGURE.findall(text)) / len(text)


def _passage_spans(text: str) -> list[Span]:
    """Spans of at most ``PASSAGE_CHARACTERS``, but for the last, which may take in a short tail."""
    spans: list[Span] = []
    for start, end in _pieces(text, (0, len(text)), (_SENTENCE_END, _CLAUSE_END, _WORD_END)):
        if spans and end - spans[-1][0] <= PASSAGE_CHARACTERS:
            spans[-1] = (spans[-1][0], end)
        else:
            spans.append((start, end))
    if len(spans) > 1 and spans[-1][1] - spans[-1][0] < TAIL_CHARACTERS:
        _, end = spans.pop()
        spans[-1] = (spans[-1][0], end)
    return spans


def _pieces(text: str, span: Span, breaks: Sequence[re.Pattern[str]]) -> Iterator[Span]:
    """Cuts ``span`` at the first kind of break, and pieces still too long at the next kind."""
    start, last = span
    for gap in (*breaks[0].finditer(text, start, last), None):
        end = last if gap is None else gap.start() + len(gap.group().rstrip())
        if end - start > PASSAGE_CHARACTERS and len(breaks) > 1:
            yield from _pieces(text, (start, end), breaks[1:])
        elif end > start:
            yield start, end
        start = last if gap is None else gap.end()


def _even_quota(sizes: Sequence[int], count: int) -> int:
    """The smallest q with sum(min(size, q)) >= count."""
    if sum(sizes) < count:
        raise CorpusError(
            f"{count} passages asked for, the addresses hold {sum(sizes)}; ask for fewer"
        )
    quota = 0
    while sum(min(size, quota) for size in sizes) < count:
        quota += 1
    return quota


def _evenly_spaced(size: int, count: int) -> list[int]:
    """``min(size, count)`` distinct places out of ``range(size)``, at even distances."""
    count = min(size, count)
    return [(2 * place + 1) * size // (2 * count) for place in range(count)]
