"""Truth 8: certified answers equal brute force on every query, both signs, filters and ties."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import wherefrom as wf
from fact_files import published
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.maintenance.index import Index
from wherefrom.query.scan import scan
from wherefrom.query.search import DIRECTIONS, CertifiedSearch, Found, inner_products
from wherefrom.records import Document, Sign
from wherefrom.store import Bits, DocumentTable, ScanCopy
from wherefrom.store.quantise import quantise
from wherefrom.store.segments import encode_rows

Rows = NDArray[np.float32]
SIGNS: tuple[Sign, ...] = ("both", "proponents", "opponents")
BITS: tuple[Bits, ...] = (1, 2, 4, 8, 16, 32)


@dataclass
class MemoryTable:
    """As much of a documents table as a search reads; counts the rows it was asked for."""

    vectors: NDArray[np.float64]
    ids: list[str]
    norms: NDArray[np.float64]
    read: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @dataclass
    class Taken:
        vectors: NDArray[np.float64]
        doc_ids: list[str]
        norms: NDArray[np.float64]

        def alone(self, position: int) -> Any:
            part = slice(position, position + 1)
            return type(self)(self.vectors[part], self.doc_ids[part], self.norms[part])

    def rows(self, ordinals: NDArray[np.int64]) -> Taken:
        self.read += len(ordinals)
        ids = [self.ids[i] for i in ordinals]
        return self.Taken(self.vectors[ordinals], ids, self.norms[ordinals])


def shuffled_ids(count: int) -> list[str]:
    """Ids whose order has nothing to do with the documents' order."""
    return [f"d{i:05d}" for i in np.random.default_rng(count).permutation(count)]


def stored(vectors: Rows, bits: Bits = 32) -> tuple[MemoryTable, ScanCopy]:
    """A table of these vectors and its scan copy."""
    kept = quantise(vectors, bits)
    codes = kept if kept.format.packed else encode_rows(kept.vectors)
    padded = np.zeros((len(vectors), -(-codes.format.bytes // 64) * 64), np.uint8)
    padded[:, : codes.format.bytes] = codes.codes
    whole = np.linalg.norm(vectors.astype(np.float64), axis=1)
    copy = ScanCopy.of_arrays(
        codes.format,
        codes=padded,
        scale=codes.scales,
        residual=np.zeros(len(vectors)) if kept.format.packed else codes.residual_norms,
        norm=np.linalg.norm(kept.vectors, axis=1),
        lost=kept.residual_norms,
        whole=whole,
    )
    return MemoryTable(kept.vectors, shuffled_ids(len(vectors)), whole), copy


def searched(
    vectors: Rows,
    query: Rows,
    k: int,
    *,
    sign: Sign = "both",
    ordinals: Any = None,
    bits: Bits = 32,
    normalised: bool = False,
) -> tuple[Found, MemoryTable]:
    table, copy = stored(vectors, bits)
    chosen = None if ordinals is None else np.asarray(ordinals, np.int64)
    searcher = CertifiedSearch(cast("DocumentTable", table), partial(scan, copy))
    (found,) = searcher.search(query[None], k, sign=sign, ordinals=chosen, normalised=normalised)
    return found, table


def listed(found: Found, direction: int) -> list[tuple[int, float]]:
    """Ordinals and inner products of one end of a ranking."""
    for ranking in found.rankings:
        if ranking.direction == direction:
            return [(one.ordinal, one.product) for one in ranking.best()]
    return []


def brute_force(scores: dict[int, float], ids: list[str], k: int) -> list[tuple[int, float]]:
    """The k largest positive scores, ties by id."""
    order = sorted(scores, key=lambda i: (-scores[i], ids[i]))
    return [(i, scores[i]) for i in order if scores[i] > 0][:k]


def assert_found(
    found: Found, scores: dict[int, float], ids: list[str], k: int, sign: Sign
) -> None:
    negated = {i: -score for i, score in scores.items()}
    proponents = brute_force(scores, ids, k) if sign != "opponents" else []
    opponents = brute_force(negated, ids, k) if sign != "proponents" else []
    assert listed(found, 1) == proponents
    assert listed(found, -1) == [(i, -score) for i, score in opponents]
    assert found.documents == len(scores)
    assert [ranking.direction for ranking in found.rankings] == list(DIRECTIONS[sign])
    for ranking in found.rankings:
        left = [ranking.direction * s for i, s in scores.items() if i not in found.scored]
        assert all(score <= ranking.rest for score in left)
        assert ranking.rest < ranking.threshold


def exact_scores(vectors: Rows, query: Rows) -> dict[int, float]:
    """Correctly rounded: products of float32 numbers are exact in float64, and fsum is."""
    products = vectors.astype(np.float64) * query.astype(np.float64)
    return {i: math.fsum(row) for i, row in enumerate(products)}


@st.composite
def collections(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> tuple[Rows, Rows]:
    """Vectors with repetitions and zero rows among them, and a query."""
    width, distinct = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    base = draw(hnp.arrays(np.float32, (distinct, width), elements=elements))
    picks = draw(st.lists(st.integers(-1, distinct - 1), min_size=1, max_size=30))
    rows = np.concatenate([base, np.zeros((1, width), np.float32)])[picks]
    return rows, draw(hnp.arrays(np.float32, width, elements=elements))


# Multiples of 1/8 up to 2**10: products and their sums have no rounding in float64.
eighths = st.integers(-(2**13), 2**13).map(lambda i: i / 8)
anything = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    given=collections(eighths),
    k=st.integers(1, 35),
    sign=st.sampled_from(SIGNS),
    chosen=st.none() | st.sets(st.integers(0, 29)),
)
@settings(max_examples=300)
def test_certified_search_equals_exact_brute_force(
    given: tuple[Rows, Rows], k: int, sign: Sign, chosen: set[int] | None
) -> None:
    vectors, query = given
    ordinals = None if chosen is None else sorted(i for i in chosen if i < len(vectors))
    found, table = searched(vectors, query, k, sign=sign, ordinals=ordinals)
    scores = exact_scores(vectors, query)
    kept = {i: s for i, s in scores.items() if ordinals is None or i in ordinals}
    assert_found(found, kept, table.ids, k, sign)


@given(given=collections(anything), k=st.integers(1, 35), sign=st.sampled_from(SIGNS))
@settings(max_examples=300)
def test_certified_search_equals_brute_force_on_any_floats(
    given: tuple[Rows, Rows], k: int, sign: Sign
) -> None:
    vectors, query = given
    found, table = searched(vectors, query, k, sign=sign)
    computed = inner_products(vectors.astype(np.float64), query[None])[0]
    assert_found(found, dict(enumerate(computed.tolist())), table.ids, k, sign)
    exact = exact_scores(vectors, query)
    lengths = np.abs(vectors.astype(np.float64)) @ np.abs(query.astype(np.float64))
    for i, score in (*listed(found, 1), *listed(found, -1)):
        assert abs(score - exact[i]) <= len(query) * 2.0**-53 * lengths[i]


def collection(kind: str, count: int, width: int) -> Rows:
    rng = np.random.default_rng(5)
    normal = rng.standard_normal((count, width))
    made = {
        "normal": normal,
        "norms of many sizes": normal * np.exp(2 * rng.standard_normal((count, 1))),
        "heavy tails": normal**7,
        "nearly alike": normal[:1] + 1e-5 * normal,
        "alike but for one": np.repeat(normal[:1], count, 0) + 1e-6 * np.eye(count, width),
        "small": normal * 1e-30,
    }[kind]
    return made.astype(np.float32)


@pytest.mark.parametrize(
    "kind",
    ["normal", "norms of many sizes", "heavy tails", "nearly alike", "alike but for one", "small"],
)
def test_battery_of_large_collections(kind: str) -> None:
    vectors = collection(kind, 600, 192)
    rng = np.random.default_rng(6)
    queries = [*rng.standard_normal((4, 192)), vectors[3], vectors[5] - vectors[6]]
    for query in np.array(queries, np.float32):
        computed = inner_products(vectors.astype(np.float64), query[None])[0].tolist()
        for k, sign in ((1, "both"), (10, "both"), (10, "opponents"), (600, "both")):
            found, table = searched(vectors, query, k, sign=cast("Sign", sign))
            assert_found(found, dict(enumerate(computed)), table.ids, k, cast("Sign", sign))
            assert table.read == len(found.scored)


@pytest.mark.parametrize("bits", BITS)
def test_few_bits_are_searched_as_exactly_as_many(bits: Bits) -> None:
    vectors = collection("norms of many sizes", 500, 200)
    queries = np.random.default_rng(9).standard_normal((3, 200)).astype(np.float32)
    for query in queries:
        found, table = searched(vectors, query, 10, bits=bits)
        computed = inner_products(table.vectors, query[None])[0]
        assert_found(found, dict(enumerate(computed.tolist())), table.ids, 10, "both")
        assert len(found.scored) < 60


@pytest.mark.parametrize("bits", [1, 4, 16])
def test_normalised_scores_are_ranked_by_cosine(bits: Bits) -> None:
    vectors = collection("norms of many sizes", 300, 100)
    vectors[7] = 0.0
    query = np.random.default_rng(10).standard_normal(100).astype(np.float32)
    found, table = searched(vectors, query, 10, bits=bits, normalised=True)
    products = inner_products(table.vectors, query[None])[0]
    with np.errstate(invalid="ignore"):
        values = np.where(table.norms > 0, products / table.norms, 0.0)
    for direction in (1, -1):
        expected = brute_force(dict(enumerate((direction * values).tolist())), table.ids, 10)
        assert [i for i, _ in listed(found, direction)] == [i for i, _ in expected]
    plain, _ = searched(vectors, query, 10, bits=bits)
    assert listed(found, 1) != listed(plain, 1)


def test_a_batch_of_queries_is_answered_as_each_of_them_alone() -> None:
    vectors = collection("heavy tails", 400, 64)
    queries = collection("normal", 5, 64)
    table, copy = stored(vectors, 1)
    searcher = CertifiedSearch(cast("DocumentTable", table), partial(scan, copy))
    for query, found in zip(queries, searcher.search(queries, 7), strict=True):
        (alone,) = searcher.search(query[None], 7)
        assert listed(found, 1) == listed(alone, 1)
        assert listed(found, -1) == listed(alone, -1)


class Inexact:
    """An accelerator whose scores lie off by up to its error, so that it misses the true best."""

    def __init__(self, vectors: NDArray[np.float64], off: float, error: float) -> None:
        self.vectors = vectors
        self.off = off * np.cos(np.arange(len(vectors)) * 7.0)
        self.reported = error
        self.asked: list[int] = []

    def search(
        self, query: Rows, count: int, sign: int, ordinals: Any = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        self.asked.append(count)
        scores = sign * (self.vectors @ query.astype(np.float64)) + self.off
        best = np.argsort(-scores)[:count]
        return best, scores[best]

    def error(self, query: Rows) -> float:
        return self.reported


@pytest.mark.parametrize(("off", "error"), [(0.0, 1e-9), (2.0, 2.0), (50.0, 50.0), (2.0, math.inf)])
def test_an_inexact_backend_is_asked_until_nothing_can_be_missing(off: float, error: float) -> None:
    vectors = collection("normal", 600, 32)
    query = collection("normal", 1, 32)[0]
    table, copy = stored(vectors)
    backend = Inexact(table.vectors, off, error)
    searcher = CertifiedSearch(
        cast("DocumentTable", table), partial(scan, copy), cast("Any", backend)
    )
    (found,) = searcher.search(query[None], 5)
    exact, _ = searched(vectors, query, 5)
    assert listed(found, 1) == listed(exact, 1)
    assert listed(found, -1) == listed(exact, -1)
    assert (error == math.inf) == (not backend.asked)
    if off == 2.0 == error:
        first, _ = backend.search(query, 5, 1)
        assert set(first.tolist()) != {i for i, _ in listed(exact, 1)}
        assert max(backend.asked) > 20


def test_few_rows_are_read_where_vectors_differ() -> None:
    vectors = collection("norms of many sizes", 600, 192)
    query = np.random.default_rng(7).standard_normal(192).astype(np.float32)
    found, table = searched(vectors, query, 5)
    assert 10 <= table.read == len(found.scored) < 60
    one_sided, table = searched(vectors, query, 5, sign="opponents")
    assert len(one_sided.scored) < len(found.scored)
    assert listed(one_sided, -1) == listed(found, -1)


def test_inner_products_do_not_depend_on_their_surroundings() -> None:
    rng = np.random.default_rng(8)
    vectors = rng.standard_normal((9, 1001))
    queries = rng.standard_normal((4, 1001)).astype(np.float32)
    together = inner_products(vectors, queries)
    for i, query in enumerate(queries):
        for j, vector in enumerate(vectors):
            alone = inner_products(vector[None].copy(), query[None].copy())
            assert alone.tobytes() == together[i, j].tobytes()
    swapped = inner_products(np.ascontiguousarray(vectors[::-1]), queries[::-1])
    assert swapped[::-1, ::-1].tobytes() == together.tobytes()


def test_opponents_are_the_proponents_of_the_opposite_query() -> None:
    vectors = collection("heavy tails", 100, 64)
    query = vectors[0]
    asked, opposite = searched(vectors, query, 7)[0], searched(vectors, -query, 7)[0]
    assert listed(asked, -1) == [(i, -score) for i, score in listed(opposite, 1)]
    assert all(i >= 0 for i, _ in (*listed(asked, 1), *listed(asked, -1)))


def test_stored_rows_are_looked_up_by_ordinal_not_by_place(tmp_path: Path) -> None:
    """Through the table itself, with an empty filter result and one that skips rows."""
    vectors = collection("normal", 40, 16)
    ids = shuffled_ids(40)
    table = DocumentTable.create(tmp_path, metadata={"even": "bool"}, dimension=16, bits=32)
    for start in range(0, 40, 16):
        part = slice(start, start + 16)
        table.append(
            [
                Document(doc_id, f"text of {doc_id}", {"even": i % 2 == 0})
                for i, doc_id in list(enumerate(ids))[part]
            ],
            vectors[part],
            norms=np.ones(len(ids[part])),
            tokens=np.ones(len(ids[part]), int),
        )
    copy = ScanCopy.open(tmp_path / "scan", ScanCopy.build(table, tmp_path / "scan"), table.live)
    published(table, tmp_path)
    scores = exact_scores(vectors, vectors[1])
    odd = table.facts.where({"even": False})
    searcher = CertifiedSearch(table, partial(scan, copy))
    (found,) = searcher.search(vectors[1:2], 4, ordinals=odd)
    expected = sorted((i for i in range(1, 40, 2)), key=lambda i: -scores[i])[:4]
    assert [i for i, _ in listed(found, 1)] == expected
    texts = [one.rows.texts[0] for one in found.rankings[0].best()]
    assert texts == [f"text of {ids[i]}" for i in expected]
    (nothing,) = searcher.search(vectors[1:2], 4, ordinals=np.array([], np.int64))
    assert (listed(nothing, 1), listed(nothing, -1), nothing.documents) == ([], [], 0)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    return wf.build(
        tiny_llama(),
        text_documents(150),
        tmp_path_factory.mktemp("search") / "i",
        objective=wf.CausalLM(tiny_tokenizer()),
        encoder="sketch",
        bytes_per_document=2048,
    )


def test_a_certificate_says_what_was_searched(index: Index) -> None:
    asked: Any = {"prompt": "gold", "completion": " silver trade", "rerank": "stored"}
    answer = index.query(**asked, k=1)
    certificate = answer.certificate
    assert (certificate.tier, certificate.certified, certificate.documents) == ("stored", True, 150)
    assert 2 <= certificate.candidates < 100
    scores = index.scores([wf.Query("gold", " silver trade")], tier="stored")[0]
    assert certificate.next_proponent is not None
    assert certificate.next_opponent is not None
    assert answer.proponents[0].score == scores.max() > certificate.next_proponent
    assert answer.opponents[0].score == scores.min() < -certificate.next_opponent
    assert (scores > certificate.next_proponent).sum() <= certificate.candidates
    assert (-scores > certificate.next_opponent).sum() <= certificate.candidates
    everything = index.query(**asked, k=1000)
    assert everything.certificate.next_proponent in (None, 0.0)
    assert len(everything.proponents) + len(everything.opponents) == 150
    some = index.query(**asked, k=1, where={"party": "Whig"})
    assert some.certificate.documents == 38


@pytest.mark.parametrize("k", [0, -1, True, 2.0, "3", None])
def test_k_must_be_a_positive_whole_number(index: Index, k: Any) -> None:
    with pytest.raises(wf.WherefromError, match="whole number of at least 1"):
        index.query(prompt="gold", completion=" silver", k=k)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"prompt": "gold", "completion": ""}, "completion is empty"),
        ({"prompt": "gold"}, "completion"),
        ({"completion": "x"}, "no token to score"),
        ({}, "prompt= and completion="),
        ({"prompt": "gold", "completion": " war " * 200}, "context is"),
        ({"prompt": "gold", "completion": "\ud800"}, "not valid Unicode"),
        ({"prompt": "a", "completion": "b", "sign": "up"}, "'proponents'"),
        ({"prompt": "a", "completion": " war", "where": {"yaer": 1}}, "yaer"),
        ({"prompt": "a", "completion": " war", "where": {"year": ("~", 1)}}, "'~'"),
        ({"prompt": "a", "completion": " war", "where": {"year": "x' OR '1'='1"}}, "year"),
    ],
)
def test_bad_questions_get_one_line(index: Index, question: dict[str, Any], message: str) -> None:
    with pytest.raises(wf.WherefromError, match=message) as caught:
        index.query(**question)
    assert "\n" not in str(caught.value)


def test_tensor_questions_to_a_text_index_are_refused(index: Index) -> None:
    inputs, targets = torch.zeros(1, 5), torch.zeros(1, dtype=torch.long)
    for ask in (
        lambda: index.query(inputs=inputs[0], target=0),
        lambda: index.scores((inputs, targets)),
        lambda: index.encode((inputs, targets)),
    ):
        with pytest.raises(wf.WherefromError, match="holds text"):
            ask()
    with pytest.raises(wf.WherefromError, match="'exact' or 'stored'"):
        index.scores([wf.Query("gold", " silver")], tier=cast("Any", "best"))


def test_found_documents_let_go_of_their_neighbours(tmp_path: Path) -> None:
    vectors = collection("normal", 200, 32)
    table = DocumentTable.create(tmp_path, metadata={}, dimension=32, bits=32)
    table.append(
        [Document(f"{i:03d}", "text") for i in range(200)],
        vectors,
        norms=np.ones(200),
        tokens=np.ones(200, int),
    )
    copy = ScanCopy.open(tmp_path / "scan", ScanCopy.build(table, tmp_path / "scan"), table.live)
    (found,) = CertifiedSearch(table, partial(scan, copy)).search(vectors[:1], 5)
    for one in (one for ranking in found.rankings for one in ranking.best()):
        assert len(one.rows) == 1
        assert "code" not in one.rows.batch.schema.names
        assert one.rows.batch.get_total_buffer_size() < 1000
        assert one.rows.texts == ["text"]
