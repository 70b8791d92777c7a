"""Likeness beside influence: ranks and flags against plain Python, clusters against all pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from answers import answer, certificate, hit
from fact_files import published
from wherefrom.errors import QueryError
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import Similarity
from wherefrom.query.interpretation.lexical import Lexicon, words
from wherefrom.query.interpretation.similarity import near_duplicates, similarity_of
from wherefrom.records import Document, Query, QuerySet
from wherefrom.store import DocumentTable

COUNT = 60
TEXTS = [
    " ".join(
        [
            *("gold" if i % 7 == 0 else "corn" for _ in range(1 + i % 3)),
            *(["silver trade"] if i % 5 == 0 else []),
            *(["the union of states"] if i % 4 == 0 else ["an army at war"]),
            f"number{i // 2}",
        ]
    )
    for i in range(COUNT)
]
# 0 % at a cosine of -1, 100 % at 1.
BACKGROUND = SimpleNamespace(quantiles=[-1.0, 1.0], levels=[0.0, 1.0])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> DocumentTable:
    path: Path = tmp_path_factory.mktemp("similarity")
    made = DocumentTable.create(path, metadata={"even": "bool"}, dimension=2, bits=16)
    documents = [
        Document(f"speech {COUNT - i}", text, {"even": i % 2 == 0}) for i, text in enumerate(TEXTS)
    ]
    ones = np.ones(COUNT)
    made.append(documents, np.ones((COUNT, 2), np.float32), norms=ones, tokens=ones.astype(int))
    return published(made, path)


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return Lexicon(TEXTS)


def influence(ordinals: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Cosines rise from -1 to 1 with the position; scores are a tenth of that."""
    cosines = 2.0 * ordinals / (COUNT - 1.0) - 1.0
    return 0.1 * cosines, cosines


def manifest(kind: str = "causal_lm", damping: float = 0.1, **fields: Any) -> Any:
    values: dict[str, Any] = {
        "objective": SimpleNamespace(kind=kind),
        "curvature": SimpleNamespace(damping=damping),
        "background": BACKGROUND,
    }
    return SimpleNamespace(**{**values, **fields})


def asked(
    query: Query | QuerySet | None,
    proponents: Sequence[int] = (),
    opponents: Sequence[int] = (),
    percentiles: Sequence[float | None] = (99.5, 0.5),
    **fields: Any,
) -> Answer:
    """An answer with those documents for hits."""
    lists = [
        tuple(
            hit(
                rank,
                sign * 0.01,
                doc_id=f"speech {COUNT - i}",
                text=TEXTS[i],
                percentile=percentile,
            )
            for rank, i in enumerate(chosen, start=1)
        )
        for sign, chosen, percentile in zip(
            (1.0, -1.0), (proponents, opponents), percentiles, strict=True
        )
    ]
    return answer(query=query, proponents=lists[0], opponents=lists[1], **{"where": {}, **fields})


def rank_by_hand(scores: NDArray[np.float64], among: Sequence[int], document: int) -> int:
    return 1 + sum(bool(scores[other] > scores[document]) for other in among)


GOLD = Query("GOLD and", " silver trade")


@pytest.mark.parametrize("where", [{}, {"even": True}])
def test_hits_are_ranked_among_the_documents_searched(
    table: DocumentTable, lexicon: Lexicon, where: dict[str, Any]
) -> None:
    searched = [i for i in range(COUNT) if not where or i % 2 == 0]
    hits = [34, 0, 2, 20, 36, 56]
    found = similarity_of(
        asked(GOLD, hits[:4], hits[4:], where=where), manifest(), table, lexicon, influence
    )
    assert found.documents == len(searched)
    assert [one.doc_id for one in found.hits] == [f"speech {COUNT - i}" for i in hits]
    scores = lexicon.scores("gold and silver trade")
    for i, one in zip(hits, found.hits, strict=True):
        assert one.bm25 == scores[i]
        assert one.bm25_rank == rank_by_hand(scores, searched, i)
        shared = TEXTS[i][one.shared_start : one.shared_end].split()
        assert one.shared_words == len(shared)
        assert " ".join(shared) in "gold and silver trade"
    assert len({one.bm25_rank for one in found.hits}) < len(hits)  # ties share a rank
    assert [one.shared_words for one in found.hits] == [0, 2, 0, 2, 0, 1]
    expected = sorted(searched, key=lambda i: (-scores[i], i))[:10]
    assert [one.doc_id for one in found.most_similar] == [f"speech {COUNT - i}" for i in expected]
    for i, one in zip(expected, found.most_similar, strict=True):
        assert (one.text, one.bm25) == (TEXTS[i], scores[i])
        assert one.bm25_rank == rank_by_hand(scores, searched, i)
        assert one.score == pytest.approx(0.1 * one.cosine)
        assert one.cosine == 2.0 * i / (COUNT - 1.0) - 1.0
        assert one.percentile == pytest.approx(50.0 + 50.0 * one.cosine)


def most(found: Similarity) -> list[str]:
    return [one.text for one in found.most_similar]


def test_documents_without_a_shared_word_are_not_similar(
    table: DocumentTable, lexicon: Lexicon
) -> None:
    def similar(query: Query, **options: Any) -> list[str]:
        return most(similarity_of(asked(query), manifest(), table, lexicon, influence, **options))

    holding = [text for text in TEXTS if "number3 " in f"{text} "]
    assert similar(Query("Number3", "!")) == holding
    assert len(holding) == 2
    assert similar(Query("Number3", "!"), most_similar=1) == holding[:1]
    assert similar(GOLD, most_similar=0) == []
    assert similar(Query("", " peace")) == []
    assert len(similar(GOLD, most_similar=1000)) == sum(
        bool({"gold", "silver"} & set(text.split())) for text in TEXTS
    )


def test_what_words_are_asked_about(table: DocumentTable, lexicon: Lexicon) -> None:
    def bm25(query: Query | QuerySet, kind: str = "causal_lm") -> float:
        found = similarity_of(asked(query, [0]), manifest(kind), table, lexicon, influence)
        return found.hits[0].bm25

    gold, trade = Query("the", " gold"), Query("the", " trade")
    alone = [lexicon.scores(text)[0] for text in ("the gold", "the trade")]
    assert bm25(gold) == alone[0]
    assert bm25(replace(gold, contrast=" trade")) == alone[0]
    assert bm25(QuerySet((gold, trade), "sum")) == pytest.approx(sum(alone))
    assert bm25(QuerySet((gold, trade), "mean")) == pytest.approx(sum(alone) / 2)
    labelled = Query("the gold", "trade")
    assert bm25(labelled, "sequence_classification") == alone[0]
    assert bm25(Query("silver tr", "ade")) == lexicon.scores("silver trade")[0]


NOT_SIMILAR = "influential but not similar"


@pytest.mark.parametrize(
    ("document", "percentiles", "flags"),
    [
        (1, (99.0, 1.0), (NOT_SIMILAR, NOT_SIMILAR)),  # not a word
        (1, (98.9, 1.1), (None, None)),
        (1, (None, None), (NOT_SIMILAR, NOT_SIMILAR)),
        (1, (0.5, 99.5), (None, None)),
        (0, (99.9, 0.1), (None, None)),  # the best
    ],
)
def test_flags_of_hits(
    table: DocumentTable,
    lexicon: Lexicon,
    document: int,
    percentiles: tuple[float | None, float | None],
    flags: tuple[str | None, str | None],
) -> None:
    for sign in (0, 1):
        lists: list[Sequence[int]] = [(), ()]
        lists[sign] = (document,)
        found = similarity_of(
            asked(GOLD, *lists, percentiles=percentiles), manifest(), table, lexicon, influence
        )
        assert [one.flag for one in found.hits] == [flags[sign]]


def test_a_hit_among_the_best_tenth_or_those_shown_is_called_similar(
    table: DocumentTable, lexicon: Lexicon
) -> None:
    scores = lexicon.scores("union war gold silver trade")
    order = sorted(range(COUNT), key=lambda i: -scores[i])
    assert scores[order[-1]] > 0.0
    query = Query("union war", " gold silver trade")
    for shown in (0, 20):
        found = similarity_of(
            asked(query, order), manifest(), table, lexicon, influence, most_similar=shown
        )
        for i, one in zip(order, found.hits, strict=True):
            similar = rank_by_hand(scores, range(COUNT), i) <= max(0.1 * COUNT, shown)
            assert one.flag == (None if similar else NOT_SIMILAR)
        assert 0 < sum(one.flag is None for one in found.hits) < COUNT


def test_flags_of_similar_documents(table: DocumentTable, lexicon: Lexicon) -> None:
    def flags(chosen: Answer, **options: Any) -> list[tuple[float | None, str | None]]:
        found = similarity_of(
            chosen, manifest(**options), table, lexicon, influence, most_similar=COUNT
        )
        return [(one.percentile, one.flag) for one in found.most_similar]

    query = Query("union war", " gold corn")
    known = flags(asked(query))
    assert len(known) == COUNT
    for percentile, flag in known:
        assert percentile is not None
        assert flag == ("similar but not influential" if 5.0 < percentile < 95.0 else None)
    assert sum(flag is None for _, flag in known) == 6
    # Nothing is known of chance.
    unknown = [(None, None)] * COUNT
    assert flags(asked(query), damping=0.2) == unknown
    assert flags(asked(query, refined=3)) == unknown
    assert flags(asked(query), background=None) == unknown


def test_clusters_are_numbered_over_both_signs(table: DocumentTable, lexicon: Lexicon) -> None:
    chosen = asked(GOLD, [0, 1, 2], [3, 4])
    long = "all that is gold does not glitter, not all those who wander are lost"
    texts = ["one", long, "two", long.replace(" ", "\n").upper(), "two"]
    hits = [replace(one, text=text) for one, text in zip(chosen.hits, texts, strict=True)]
    chosen = replace(chosen, proponents=tuple(hits[:3]), opponents=tuple(hits[3:]))
    found = similarity_of(chosen, manifest(), table, lexicon, influence)
    assert [one.cluster for one in found.hits] == [None, 1, 2, 1, 2]
    one = found.of(hits[1].doc_id)
    assert one is not None
    assert long[one.shared_start : one.shared_end] == "gold"


def test_answers_without_hits_have_similar_documents_still(
    table: DocumentTable, lexicon: Lexicon
) -> None:
    found = similarity_of(asked(GOLD), manifest(), table, lexicon, influence)
    assert found.hits == ()
    assert len(found.most_similar) == 10
    nothing = asked(GOLD, where={"even": None}, certificate=certificate(documents=0))
    found = similarity_of(nothing, manifest(), table, lexicon, influence)
    assert (found.documents, found.hits, found.most_similar) == (0, (), ())


def test_bad_questions_are_refused(table: DocumentTable, lexicon: Lexicon) -> None:
    with pytest.raises(QueryError, match="similarity compares words, and this index holds tensors"):
        similarity_of(asked(None), manifest(), table, lexicon, influence)
    with pytest.raises(QueryError, match="most_similar=-1 is not allowed; give 0 or more"):
        similarity_of(asked(GOLD), manifest(), table, lexicon, influence, most_similar=-1)
    stranger = asked(GOLD, [0])
    stranger = replace(stranger, proponents=(replace(stranger.proponents[0], doc_id="x"),))
    with pytest.raises(QueryError, match="the index holds no document 'x'"):
        similarity_of(stranger, manifest(), table, lexicon, influence)


def shingles(text: str) -> set[Any]:
    found = words(text)
    if len(found) < 5:
        return {tuple(found) or text}
    return {tuple(found[i : i + 5]) for i in range(len(found) - 4)}


def clusters_by_hand(texts: Sequence[str]) -> list[int | None]:
    """All pairs; the number of a text is passed on until nothing changes any more."""
    sets = [shingles(text) for text in texts]
    numbers = list(range(len(texts)))
    pairs = [
        (i, j)
        for i, j in combinations(range(len(texts)), 2)
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.5
    ]
    for _ in texts:
        for i, j in pairs:
            numbers[i] = numbers[j] = min(numbers[i], numbers[j])
    order = [n for n in dict.fromkeys(numbers) if numbers.count(n) > 1]
    return [order.index(n) + 1 if n in order else None for n in numbers]


# Few words and long repeats, so that shingles are shared.
PIECES = st.lists(
    st.sampled_from(["a b c d e f g", "a b c d e", "h i j k l m", "a", "b c", "n o p q", "!"]),
    max_size=4,
)


@given(st.lists(PIECES.map(" ".join), max_size=9))
def test_clusters_are_those_of_all_pairs(texts: list[str]) -> None:
    assert near_duplicates(texts) == clusters_by_hand(texts)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], []),
        (["a"], [None]),
        (["one two", "ONE  two!", "one two three"], [1, 1, None]),
        (["", "", "!!", "?"], [1, 1, None, None]),
        (["a b c d e f g", "x", "a b c d e f"], [1, None, 1]),  # 2 of 3
        (["a b c d e f", "b c d e f g"], [None, None]),  # 1 of 3
        (["a b c d e f g h i", "d e f g h i j k l"], [None, None]),  # 2 of 8
        # The first and the last by way of the second.
        (["a b c d e f g", "b c d e f g h", "c d e f g h i"], [1, 1, 1]),
        (["z", "b", "a", "b", "a", "z"], [1, 2, 3, 2, 3, 1]),
    ],
)
def test_clusters(texts: list[str], expected: list[int | None]) -> None:
    assert near_duplicates(texts) == expected
