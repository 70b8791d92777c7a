"""The scan over shards: the same candidates, to the last bit, as one scan of all rows."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import ExecutionError, IntegrityError, QueryError, WherefromError
from wherefrom.query import shard_workers
from wherefrom.query.scan import Candidates, scan
from wherefrom.query.search import CertifiedSearch
from wherefrom.query.selection import merged
from wherefrom.query.shard_workers import LocalShards, ProcessShards, sharded_scan
from wherefrom.query.sharded import Found, Shard, ShardedScan, ShardRequest, ranges
from wherefrom.records import Document
from wherefrom.store import Bits, DocumentTable, ScanCopy
from wherefrom.store.quantise import quantise, row_norms
from wherefrom.store.segments import encode_rows

Rows = NDArray[np.float32]
COUNT, WIDTH = 400, 70
BOTH = (1, -1)


def copy_of(vectors: Rows, bits: Bits) -> ScanCopy:
    """The scan copy of vectors, in memory."""
    stored = quantise(vectors, bits)
    codes = stored if bits <= 8 else encode_rows(stored.vectors)
    return ScanCopy.of_arrays(
        codes.format,
        codes=np.pad(codes.codes, ((0, 0), (0, -codes.codes.shape[1] % 64))),
        scale=codes.scales,
        residual=np.zeros(len(vectors)) if bits <= 8 else codes.residual_norms,
        norm=row_norms(stored.vectors),
        lost=stored.residual_norms,
        whole=row_norms(vectors),
    )


def collection(seed: int = 0, *, spread: float = 1.5) -> Rows:
    """Heavy-tailed rows, with zeros and, for ties, copies of good rows."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_t(4, (COUNT, WIDTH)) * rng.lognormal(0, spread, (COUNT, 1))
    rows[rng.choice(COUNT, 20)] = 0.0
    rows[-40:] = rows[np.argsort(-np.abs(rows).sum(axis=1))[:40]]
    return rows.astype(np.float32)


def alike(seed: int = 1) -> Rows:
    """Rows that differ so little that bounds of 8 bits cannot tell them apart."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((1, WIDTH)) + 1e-3 * rng.standard_normal((COUNT, WIDTH))
    return rows.astype(np.float32)


def some_queries(count: int = 3) -> Rows:
    rng = np.random.default_rng(2)
    sizes = 10.0 ** np.arange(-12, 12, 24 / count)[:count, None]
    return (rng.standard_t(4, (count, WIDTH)) * sizes).astype(np.float32)


COPIES = {
    bits: copy_of(collection() if bits < 16 else alike(), bits) for bits in (1, 2, 4, 8, 16, 32)
}


def same(one: Candidates, other: Candidates) -> bool:
    return (
        one.ordinals.tolist() == other.ordinals.tolist()
        and one.estimate.tobytes() == other.estimate.tobytes()
        and one.error.tobytes() == other.error.tobytes()
        and one.rest == other.rest
    )


def all_same(one: Found, other: Found) -> bool:
    return all(
        same(a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left, right, strict=True)
    )


@given(
    bits=st.sampled_from(sorted(COPIES)),
    k=st.integers(1, 30) | st.sampled_from([COUNT, 2 * COUNT]),
    normalised=st.booleans(),
    parts=st.integers(1, 12),
    data=st.data(),
)
@settings(max_examples=60)
def test_any_tree_of_merges_over_any_partition_gives_the_scan(
    bits: Bits, k: int, normalised: bool, parts: int, data: st.DataObject
) -> None:
    copy, query = COPIES[bits], some_queries(1)
    ((whole, _),) = scan(copy, query, k, BOTH, normalised=normalised)
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    owner = random.integers(parts, size=COUNT)
    left = [
        scan(copy, query, k, (1,), ordinals=np.flatnonzero(owner == part), normalised=normalised)
        for part in range(parts)
    ]
    forest = [found[0][0] for found in left]
    while len(forest) > 1:
        taken = data.draw(st.integers(2, min(3, len(forest))))
        picked = [forest.pop(data.draw(st.integers(0, len(forest) - 1))) for _ in range(taken)]
        forest.append(merged(picked, k))
    assert same(forest[0], whole)
    assert same(merged([whole], k), whole)


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_a_floor_leaves_out_what_cannot_reach_it(bits: Bits) -> None:
    queries = some_queries()
    plain = scan(COPIES[bits], queries, 20, BOTH)
    floors = np.array([[one.lower.max() if len(one) else 1.0 for one in ends] for ends in plain])
    floors[1] = np.inf
    raised = scan(COPIES[bits], queries, 20, BOTH, floors=floors)
    for ends, own, floor in zip(plain, raised, floors.tolist(), strict=True):
        assert all(map(same, own, [one.at_least(f) for one, f in zip(ends, floor, strict=True)]))
    assert [len(one) for one in raised[1]] == [0, 0]
    assert sum(map(len, raised[0])) >= 1


@dataclass
class Counting:
    """Workers in this process that count what is asked of them and what they send."""

    inner: LocalShards
    forgetful: bool = False
    asked: int = 0
    rounds: int = 0
    sent: int = 0
    longest: int = 0

    @property
    def shards(self) -> tuple[range, ...]:
        return self.inner.shards

    def scan(self, requests: Mapping[int, ShardRequest]) -> dict[int, Found]:
        self.asked += len(requests)
        self.rounds += bool(requests)
        found = self.inner.scan(requests)
        candidates = [one for held in found.values() for ends in held for one in ends]
        self.sent += sum(one.nbytes for one in candidates)
        self.longest = max([self.longest, *map(len, candidates)])
        if self.forgetful:
            for shard in self.inner._held:
                shard._last = (-1, [])
        return found

    def close(self) -> None:
        self.inner.close()


def counting(copy: ScanCopy, shards: int, **options: Any) -> Counting:
    return Counting(LocalShards(lambda within: copy, ranges(len(copy), shards)), **options)


@pytest.mark.parametrize("bits", sorted(COPIES))
@pytest.mark.parametrize("shards", [1, 3, 7])
@pytest.mark.parametrize("slack", [0.0, 1.0])
def test_shards_find_what_one_scan_finds(bits: Bits, shards: int, slack: float) -> None:
    copy, queries = COPIES[bits], some_queries()
    searched = ShardedScan(counting(copy, shards), slack)
    random = np.random.default_rng(3)
    some = random.permutation(COUNT)[:150]
    for k in (1, 10, COUNT):
        for ordinals in (None, some, some[some > 390], some[:0]):
            for off in (None, 0.01):
                whole = scan(
                    copy, queries, k, (-1, 1), ordinals=ordinals, normalised=True, slack=off
                )
                found = searched(queries, k, (-1, 1), ordinals=ordinals, normalised=True, slack=off)
                assert all_same(found, whole)
    assert searched(queries[:0], 3, BOTH) == []


@pytest.mark.parametrize("bits", [1, 16])
def test_a_shard_may_be_a_single_row(bits: Bits) -> None:
    copy, queries = COPIES[bits], some_queries()
    found = ShardedScan(counting(copy, COUNT + 1), slack=0.0)(queries, 3, BOTH)
    assert all_same(found, scan(copy, queries, 3, BOTH))


def test_few_bits_are_told_in_one_round_and_close_calls_in_two() -> None:
    queries = some_queries()
    workers = counting(COPIES[1], 5)
    ShardedScan(workers)(queries, 5, BOTH)
    assert workers.asked == 5
    workers = counting(COPIES[16], 5)
    found = ShardedScan(workers)(queries, 5, BOTH)
    assert workers.rounds == 2
    assert max(len(one) for ends in found for one in ends) > 50
    generous = counting(COPIES[16], 5)
    ShardedScan(generous, slack=float(COUNT))(queries, 5, BOTH)
    assert generous.asked == 5


def test_what_is_kept_back_is_not_sent() -> None:
    """One shard holds all that matters; the others' many close calls stay where they are."""
    rows = alike()
    rows[80:] *= np.float32(0.5)
    copy = copy_of(rows, 16)
    workers = counting(copy, 5)
    query = rows[:1]
    found = ShardedScan(workers)(query, 5, (1,))
    assert all_same(found, scan(copy, query, 5, (1,)))
    assert workers.asked == 6
    assert len(scan(copy, query, 5, (1,), ordinals=range(80, 160))[0][0]) > 40
    assert workers.sent < (5 * 5 + 2 * len(found[0][0])) * 24 + 6 * 8


@pytest.mark.parametrize("bits", [16, 32])
def test_a_shard_that_forgot_searches_again(bits: Bits) -> None:
    copy, queries = COPIES[bits], some_queries()
    workers = counting(copy, 4, forgetful=True)
    for k in (1, 12):
        found = ShardedScan(workers, slack=0.0)(queries, k, BOTH)
        assert all_same(found, scan(copy, queries, k, BOTH))
    assert workers.rounds == 4


def test_rounds_of_two_questions_may_interleave() -> None:
    copy, queries = COPIES[32], some_queries(2)
    (rows,) = ranges(COUNT, 1)
    shard = Shard(lambda within: copy, rows)
    plain = ShardRequest(1, queries[:1], 4, BOTH, None, False, None, 4)
    other = replace(plain, number=2, queries=queries[1:])
    shard.scan(plain)
    shard.scan(other)
    floors = np.full((1, 2), -np.inf)
    for request in (plain, other):
        found = shard.scan(replace(request, floors=floors))
        assert all_same(found, scan(copy, request.queries, 4, BOTH))


def test_ranges_make_up_all_rows() -> None:
    assert ranges(10, 3) == (range(0, 3), range(3, 6), range(6, 10))
    assert ranges(2, 5) == (range(0, 1), range(1, 2))
    assert ranges(0, 5) == (range(0, 0),)


def test_a_query_that_is_not_finite_is_refused() -> None:
    with pytest.raises(QueryError, match="NaN or infinity"):
        ShardedScan(counting(COPIES[1], 2))(np.full((1, WIDTH), np.nan, np.float32), 3, BOTH)


@pytest.mark.parametrize(
    ("executor", "workers", "expected"),
    [("threads", None, "choose one of"), ("processes", 0, "at least 1"), ("serial", 3, "'serial'")],
)
def test_bad_choices_get_one_line(executor: str, workers: int | None, expected: str) -> None:
    with pytest.raises(WherefromError, match=expected) as caught:
        sharded_scan(executor, lambda **_: COPIES[1], COUNT, workers)
    assert "\n" not in str(caught.value)


def test_serial_is_the_plain_scan() -> None:
    assert sharded_scan("serial", lambda **_: COPIES[1], COUNT, None) is None


@dataclass(frozen=True)
class OnDisk:
    """A table with its scan copy in two segments, where that is, and what maps it."""

    table: DocumentTable
    folder: Path
    opener: Any

    @property
    def copy(self) -> ScanCopy:
        return cast("ScanCopy", self.opener())


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory: pytest.TempPathFactory) -> OnDisk:
    folder = tmp_path_factory.mktemp("index")
    vectors = collection()
    table = DocumentTable.create(folder, metadata={}, dimension=WIDTH, bits=4)

    def append(rows: range) -> None:
        part = vectors[rows.start : rows.stop]
        norms = np.linalg.norm(part.astype(np.float64), axis=1)
        documents = [Document(f"d{i * 7919 % 1009:04d}", f"text {i}") for i in rows]
        table.append(documents, part, norms=norms, tokens=np.ones(len(rows), np.int64))

    append(range(200))
    record = ScanCopy.build(table, folder / "scan")
    append(range(200, COUNT))
    record = ScanCopy.extend(record, table, folder / "scan", number=2)
    opener = partial(ScanCopy.open, folder / "scan", record, table.live)
    return OnDisk(table, folder / "scan", opener)


@pytest.fixture(scope="module")
def processes(on_disk: OnDisk) -> Iterator[ProcessShards]:
    held = ProcessShards(on_disk.opener, ranges(COUNT, 2), 1)
    yield held
    held.close()


def test_processes_find_what_one_scan_finds(on_disk: OnDisk, processes: ProcessShards) -> None:
    queries = some_queries()
    searched = ShardedScan(processes, slack=0.0)
    for k, ordinals in ((3, None), (COUNT, None), (10, np.arange(100, 390, 3))):
        whole = scan(on_disk.copy, queries, k, BOTH, ordinals=ordinals)
        assert all_same(searched(queries, k, BOTH, ordinals=ordinals), whole)
    local = CertifiedSearch(on_disk.table, partial(scan, on_disk.copy))
    apart = CertifiedSearch(on_disk.table, searched)
    for one, other in zip(local.search(queries, 9), apart.search(queries, 9), strict=True):
        for ours, theirs in zip(one.rankings, other.rankings, strict=True):
            assert ours.rest == theirs.rest
            assert [(r.doc_id, r.product) for r in ours.best()] == [
                (r.doc_id, r.product) for r in theirs.best()
            ]
        assert one.scored == other.scored


def test_processes_have_mapped_all_once_they_are_there(
    on_disk: OnDisk, processes: ProcessShards
) -> None:
    whole = scan(on_disk.copy, some_queries(), 5, BOTH)
    elsewhere = on_disk.folder.rename(on_disk.folder.with_name("elsewhere"))
    try:
        assert all_same(ShardedScan(processes)(some_queries(), 5, BOTH), whole)
    finally:
        elsewhere.rename(on_disk.folder)


@pytest.mark.parametrize("noticed", [False, True])
def test_a_process_that_dies_is_replaced(
    on_disk: OnDisk, processes: ProcessShards, noticed: bool
) -> None:
    queries = some_queries(1)
    ShardedScan(processes)(queries, 4, BOTH)
    (killed,) = processes._pools[1]._processes
    os.kill(killed, signal.SIGKILL)
    if noticed:
        with pytest.raises(BrokenProcessPool):
            processes._pools[1].submit(os.getpid).result()
    found = ShardedScan(processes)(queries, 4, BOTH)
    assert all_same(found, scan(on_disk.copy, queries, 4, BOTH))
    assert killed not in processes._pools[1]._processes


class Deadly:
    """Maps nothing: kills the process that asks it to."""

    def __call__(self, **_: object) -> ScanCopy:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def damaged(**_: object) -> ScanCopy:
    """Maps nothing: the files are not what they were."""
    raise IntegrityError("codes.npy is damaged")


def test_errors_of_workers_come_as_themselves_and_deaths_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shard_workers, "_DEATHS_ALLOWED", 1)
    for opener, error, expected in (
        (damaged, IntegrityError, "codes.npy is damaged"),
        (Deadly(), ExecutionError, "search processes died 1 times"),
    ):
        with pytest.raises(error, match=expected) as caught:
            ProcessShards(cast("Any", opener), ranges(COUNT, 1), 1)
        assert "\n" not in str(caught.value)


def test_workers_trust_no_file_that_was_verified_elsewhere(on_disk: OnDisk) -> None:
    """Another index of the same shape may have been built there meanwhile."""
    on_disk.opener()
    path = on_disk.folder / "1" / "codes.npy"
    before = path.read_bytes()
    path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        with pytest.raises(IntegrityError, match=r"codes\.npy"):
            sharded_scan("processes", on_disk.opener, COUNT, 1)
    finally:
        path.write_bytes(before)


def test_an_index_answers_the_same_whoever_scans(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    objective, model = wf.CausalLM(tokenizer), tiny_llama()
    built = wf.build(model, text_documents(30), tmp_path / "index", objective=objective, bits=4)
    question: dict[str, Any] = {"prompt": "the gold", "completion": " silver", "k": 4}
    with wf.open(
        tmp_path / "index", model=model, objective=objective, executor="processes", workers=2
    ) as apart:
        for choice in ({"rerank": "stored"}, {"rerank": "recompute", "candidates": 5}):
            one, other = (index.query(**question, **choice) for index in (built, apart))
            assert replace(one, seconds=0.0) == replace(other, seconds=0.0)
