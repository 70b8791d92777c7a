"""Likeness in words beside influence: two measures, neither of which is evidence of the other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import QueryError
from wherefrom.query.answer import Answer
from wherefrom.query.background import percentile
from wherefrom.query.interpretation.explanation import (
    HitSimilarity,
    SimilarDocument,
    Similarity,
    SimilarityFlag,
)
from wherefrom.query.interpretation.lexical import Lexicon, SharedRuns, words
from wherefrom.query.reading import ordinals_of
from wherefrom.records import Hit, Query, QuerySet
from wherefrom.store import DocumentTable, Manifest

__all__ = [
    "BACKGROUND_BELOW",
    "INFLUENTIAL_FROM",
    "SHINGLE_WORDS",
    "SIMILAR_SHARE",
    "Influence",
    "near_duplicates",
    "similarity_of",
]

Influence = Callable[[NDArray[np.int64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""From positions in the index, int64 ``[document]``, to exact scores in nats and cosines."""

INFLUENTIAL_FROM = 99.0
"""Percentile from which a proponent is called influential; an opponent, to 100 minus it."""

BACKGROUND_BELOW = 95.0
"""A document whose percentile lies below this, and above 100 minus this, is like any other."""

SIMILAR_SHARE = 0.1
"""Share of the documents, the best by BM25, that no hit is called "not similar" among."""

SHINGLE_WORDS = 5
_ALIKE = 0.5


def similarity_of(
    answer: Answer,
    manifest: Manifest,
    table: DocumentTable,
    lexicon: Lexicon,
    influence: Influence,
    *,
    most_similar: int = 10,
) -> Similarity:
    """How alike hits and question are in words, and how influential the most similar documents are.

    The words asked about are those of prompt and completion, of all members of a set; those of a
    contrast are not, for they are what was *not* said, nor are a classifier's labels, which are no
    words of a document's. A set's BM25 is the mean or sum of its members', as its measurement is.

    Flags compare percentiles against the background with ranks by BM25:

    * ``influential but not similar``: a hit from percentile 99 up (for opponents: to 1), or any hit
      where no percentiles are known, that is neither among the best tenth of the documents by BM25
      nor among ``most_similar``, or that shares no word. On the demo (4,184 passages; its four
      questions, and forty passages that the model never saw, in this order) these were 15 % and
      40 % of the proponents among the top ten, and 70 % and 82 % of the opponents, where documents
      at random would be 90 %: for opponents it is the rule.
    * ``similar but not influential``: one of ``most_similar`` that is no hit and lies between
      percentiles 5 and 95, as 90 % of random documents do. On the demo, 45 % and 64 % of the ten
      most similar, hits included. (Between 1 and 99 lay 62 % and 78 %: the twentieth of all
      documents that lies nearer than 95 % of others is left without a flag rather than called
      uninfluential.)

    Args:
        answer: What was found.
        manifest: The index's.
        table: Its documents.
        lexicon: Of all their texts.
        influence: Exact scores under the damping, and of the question, of the answer.
        most_similar: How many documents to name, at most: those that pass the answer's filter and
            share a word with the question, best first; of equals, the first in the index.

    Raises:
        QueryError: The documents are tensors, or ``most_similar`` is negative.
        IntegrityError: Stored rows differ from their digests.
    """
    if answer.query is None:
        raise QueryError("similarity compares words, and this index holds tensors; leave it out")
    if most_similar < 0:
        raise QueryError(f"most_similar={most_similar} is not allowed; give 0 or more")
    labels = manifest.objective.kind == "sequence_classification"
    likeness = _Likeness(answer.query, lexicon, table.facts.where(answer.where), labels=labels)
    best = likeness.best(most_similar)
    # Percentiles were measured under the index's own damping.
    comparable = not answer.refined and answer.damping == manifest.curvature.damping
    return Similarity(
        documents=len(likeness),
        hits=_hits(answer, table, likeness, most_similar),
        most_similar=(
            _documents(
                table,
                best,
                likeness,
                influence,
                manifest if comparable else None,
                {hit.doc_id for hit in answer.hits},
            )
            if len(best)
            else ()
        ),
    )


def near_duplicates(texts: Sequence[str]) -> list[int | None]:
    """Groups of texts that are nearly the same, numbered from 1 in the order of their first text.

    Two texts are alike whose sets of shingles (runs of five words; a shorter text is one shingle)
    overlap by half or more: by Jaccard's coefficient (Broder 1997). Groups are chains of those.
    Texts without words are alike where they are equal.

    Returns:
        For each text the number of its group; ``None`` where no other text is like it.
    """
    alike = _Groups(len(texts))
    first: dict[frozenset[Hashable], int] = {}
    for i, text in enumerate(texts):
        alike.join(i, first.setdefault(_shingles(text), i))
    holders = Counter(shingle for shingles in first for shingle in shingles)
    # Sets that overlap by half share one of the rarest half (and one) of the shingles of either, so
    # that not every pair of texts has to be compared (Bayardo et al. 2007).
    places: dict[Hashable, list[tuple[frozenset[Hashable], int]]] = {}
    for shingles, i in first.items():
        rarest = sorted(shingles, key=lambda shingle: (holders[shingle], shingle))
        for shingle in rarest[: len(rarest) - math.ceil(_ALIKE * len(rarest)) + 1]:
            for others, j in places.setdefault(shingle, []):
                shared = len(shingles & others)
                if shared >= _ALIKE * (len(shingles) + len(others) - shared):
                    alike.join(i, j)
            places[shingle].append((shingles, i))
    return alike.numbered()


class _Likeness:
    """How like a question all documents are in words, and their ranks among those searched."""

    def __init__(
        self,
        query: Query | QuerySet,
        lexicon: Lexicon,
        searched: NDArray[np.int64],
        *,
        labels: bool,
    ) -> None:
        members = query.queries if isinstance(query, QuerySet) else (query,)
        asked = [one.prompt if labels else one.prompt + one.completion for one in members]
        scores = np.zeros(len(lexicon))
        for text in asked:
            scores += lexicon.scores(text)
        if isinstance(query, QuerySet) and query.reduce == "mean":
            scores /= len(asked)
        self.runs = SharedRuns(asked)
        self._scores = scores
        self._searched = searched
        self._ascending = np.sort(scores[searched])

    def __len__(self) -> int:
        """Documents searched."""
        return len(self._searched)

    def bm25(self, ordinal: int) -> tuple[float, int]:
        """A document's score and rank."""
        score = self._scores[ordinal]
        return float(score), 1 + len(self) - int(np.searchsorted(self._ascending, score, "right"))

    def best(self, most: int) -> NDArray[np.int64]:
        """The best documents that share a word, best first."""
        found = self._searched[np.argsort(-self._scores[self._searched], kind="stable")[:most]]
        return found[self._scores[found] > 0.0]


def _hits(
    answer: Answer, table: DocumentTable, likeness: _Likeness, most_similar: int
) -> tuple[HitSimilarity, ...]:
    ordinals = ordinals_of(table, [hit.doc_id for hit in answer.hits]).tolist()
    clusters = near_duplicates([hit.text for hit in answer.hits])
    last_similar = max(most_similar, SIMILAR_SHARE * len(likeness))
    found = []
    for hit, ordinal, cluster in zip(answer.hits, ordinals, clusters, strict=True):
        bm25, rank = likeness.bm25(ordinal)
        run = likeness.runs.longest(hit.text)
        flagged = _influential(hit) and (rank > last_similar or bm25 == 0.0)
        found.append(
            HitSimilarity(
                doc_id=hit.doc_id,
                bm25=bm25,
                bm25_rank=rank,
                shared_words=run.words,
                shared_start=run.start,
                shared_end=run.end,
                cluster=cluster,
                flag="influential but not similar" if flagged else None,
            )
        )
    return tuple(found)


def _documents(
    table: DocumentTable,
    ordinals: NDArray[np.int64],
    likeness: _Likeness,
    influence: Influence,
    manifest: Manifest | None,
    listed: Collection[str],
) -> tuple[SimilarDocument, ...]:
    """Documents with their likeness and influence; without percentiles where no manifest is.

    Those that the answer lists as influential are not flagged as the opposite.
    """
    rows = table.rows(ordinals)
    scores, cosines = influence(ordinals)
    found = []
    for i, ordinal in enumerate(ordinals.tolist()):
        bm25, rank = likeness.bm25(ordinal)
        cosine = float(cosines[i])
        place = None if manifest is None else percentile(manifest, cosine)
        found.append(
            SimilarDocument(
                doc_id=rows.doc_ids[i],
                text=rows.texts[i],
                bm25=bm25,
                bm25_rank=rank,
                shared_words=likeness.runs.longest(rows.texts[i]).words,
                score=float(scores[i]),
                cosine=cosine,
                percentile=place,
                flag=None if rows.doc_ids[i] in listed else _uninfluential(place),
            )
        )
    return tuple(found)


def _influential(hit: Hit) -> bool:
    if hit.percentile is None:
        return True
    least = INFLUENTIAL_FROM
    return hit.percentile >= least if hit.score > 0.0 else hit.percentile <= 100.0 - least


def _uninfluential(place: float | None) -> SimilarityFlag | None:
    background = place is not None and 100.0 - BACKGROUND_BELOW < place < BACKGROUND_BELOW
    return "similar but not influential" if background else None


def _shingles(text: str) -> frozenset[Hashable]:
    found = words(text)
    if not found:
        return frozenset([(text,)])
    last = max(1, len(found) - SHINGLE_WORDS + 1)
    return frozenset(tuple(found[i : i + SHINGLE_WORDS]) for i in range(last))


class _Groups:
    """Sets that are joined, each named by its first member."""

    def __init__(self, members: int) -> None:
        self._first = list(range(members))

    def join(self, one: int, other: int) -> None:
        low, high = sorted((self._find(one), self._find(other)))
        self._first[high] = low

    def numbered(self) -> list[int | None]:
        """Numbers of the sets of more than one, from 1."""
        found = [self._find(member) for member in range(len(self._first))]
        sizes = Counter(found)
        shared = (name for name in dict.fromkeys(found) if sizes[name] > 1)
        numbers = {name: number for number, name in enumerate(shared, start=1)}
        return [numbers.get(name) for name in found]

    def _find(self, member: int) -> int:
        while self._first[member] != member:
            self._first[member] = self._first[self._first[member]]
            member = self._first[member]
        return member
