"""Searching 100,000,000 codes, a hundred shards that exist one at a time.

Each shard is generated from its number, searched by what a search worker runs
(:class:`~wherefrom.query.sharded.Shard`) and dropped; what the shards send is merged as it is for
workers elsewhere (:class:`~wherefrom.query.sharded.ShardedScan`). Codes are random signs with
log-normal scales, but for those that are planted for each query at random places. The time it takes
to make shards is not counted.

The answers of all queries are compared with the best of the planted rows, and those of one with
all rows, whose products are summed up from tables of each byte's share, as the scan does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import peak_memory
from benchmarks.figures import Figure, Report, command, expect
from wherefrom.query.scan import Candidates
from wherefrom.query.search import inner_products
from wherefrom.query.sharded import Found, Shard, ShardedScan, ShardRequest, ranges
from wherefrom.store import CodeFormat, LiveRows, ScanCopy
from wherefrom.store.segments import ScanSegment

__all__ = ["Corpus", "Stream", "measure", "simulate"]

QUERIES = 64
_K = 100
_BOTH = (1, -1)
_PLANTED = 110  # of each query and direction: some more than are wanted
_BRUTE = 1
_ROWS = 1 << 14


@dataclass(frozen=True)
class Corpus:
    """Rows that are made when they are wanted, always the same.

    Attributes:
        rows: How many.
        shards: Their ranges.
        code: Of one bit an entry.
        queries: float32 ``[query, dimension]``.
        planted: Ordinals of planted rows, ascending.
        planted_codes: Theirs.
        planted_scales: Theirs.
    """

    rows: int
    shards: tuple[range, ...]
    code: CodeFormat
    queries: NDArray[np.float32]
    planted: NDArray[np.int64]
    planted_codes: NDArray[np.uint8]
    planted_scales: NDArray[np.float64]

    @classmethod
    def of(cls, rows: int, shards: int, width: int, queries: int, planted: int) -> Corpus:
        """So many rows of ``width`` bytes, and what is planted for each of some queries."""
        random = np.random.default_rng(rows)
        code = CodeFormat(1, 8 * width)
        asked = random.standard_t(4, (queries, code.dimension)).astype(np.float32)
        count = planted * len(_BOTH)
        places = np.sort(random.choice(rows, queries * count, replace=False))
        signs = np.repeat(np.where(asked > 0, 1, -1), count, axis=0)
        signs *= np.tile(np.repeat(_BOTH, planted), queries)[:, None]
        flipped = random.random(signs.shape) < random.uniform(0.02, 0.15, (len(signs), 1))
        shuffled = random.permutation(len(signs))
        return cls(
            rows=rows,
            shards=ranges(rows, shards),
            code=code,
            queries=asked,
            planted=places,
            planted_codes=code.pack(np.where(flipped, -signs, signs)[shuffled]),
            planted_scales=_scales(random.uniform(2.0, 2.6, len(signs))),
        )

    def copy(self, *, within: range) -> ScanCopy:
        """The scan copy of a shard, as a worker that maps no other has it."""
        random = np.random.Generator(np.random.SFC64((self.rows, within.start)))
        count, width = len(within), self.code.bytes
        codes = random.integers(0, 1 << 64, count * width // 8, np.uint64).view(np.uint8)
        codes = codes.reshape(count, width)
        scale = _scales(np.exp(0.25 * random.standard_normal(count)))
        first, last = np.searchsorted(self.planted, [within.start, within.stop])
        here = self.planted[first:last] - within.start
        codes[here], scale[here] = self.planted_codes[first:last], self.planted_scales[first:last]
        norm = scale * np.sqrt(self.code.dimension)
        nothing = np.zeros(count)
        segment = ScanSegment(within.start, codes, scale, nothing, norm, nothing, norm)
        return ScanCopy(self.code, (segment,), LiveRows.every(self.rows))


def _scales(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of 24 significant bits, as the store's."""
    return values.astype(np.float32).astype(np.float64)


@dataclass
class Stream:
    """Workers that hold their shards only while these are searched.

    Attributes:
        corpus: What is searched.
        brute: How many queries to compare with all rows.
        cpu_seconds: Processor time that the searches of all shards took.
        scoring: Processor time that scoring what they sent took.
        elapsed: Processor time, the making of shards and all checks included.
        sent: Bytes that they sent.
        least: Bytes that k lower bounds of each take.
        products: Exact products of what was sent, by query and ordinal.
        best: Of brute force: values and ordinals, by query and direction.
    """

    corpus: Corpus
    brute: int
    cpu_seconds: float = 0.0
    scoring: float = 0.0
    elapsed: float = 0.0
    sent: int = 0
    least: int = 0
    products: dict[tuple[int, int], float] = field(default_factory=dict)
    best: dict[tuple[int, int], list[tuple[float, int]]] = field(default_factory=dict)

    @property
    def shards(self) -> tuple[range, ...]:
        """The corpus's."""
        return self.corpus.shards

    def scan(self, requests: Mapping[int, ShardRequest]) -> dict[int, Found]:
        """Make, search and drop one shard after the other."""
        started = time.process_time()
        found = {place: self._scan(self.shards[place], one) for place, one in requests.items()}
        self.elapsed += time.process_time() - started
        return found

    def _scan(self, rows: range, request: ShardRequest) -> Found:
        copy = self.corpus.copy(within=rows)
        shard = Shard(lambda within: copy, rows)
        begun = time.process_time()
        found = shard.scan(request)
        searched = time.process_time()
        self.cpu_seconds += searched - begun
        self._score(copy, found)
        self.scoring += time.process_time() - searched
        self.sent += sum(one.nbytes for ends in found for one in ends)
        self.least += sum(8 * min(len(one), request.k) for ends in found for one in ends)
        if self.brute:
            self._search_all(copy, rows.start)
        return found

    def _score(self, copy: ScanCopy, found: Found) -> None:
        for query, ends in enumerate(found):
            for one in ends:
                for chunk in copy.chunks(_ROWS, one.ordinals):
                    vectors = copy.format.decode(chunk.codes, chunk.scale)
                    values = inner_products(vectors, self.corpus.queries[query : query + 1])[0]
                    places = chunk.ordinals.tolist()
                    self.products |= {
                        (query, place): value
                        for place, value in zip(places, values.tolist(), strict=True)
                    }

    def _search_all(self, copy: ScanCopy, first: int) -> None:
        """Brute force, by tables of what each value of each byte adds to a product."""
        for query in range(self.brute):
            products = np.concatenate(
                list(_products_by_tables(copy, self.corpus.queries[query].astype(np.float64)))
            )
            for direction in _BOTH:
                values = direction * products
                top = (
                    np.argpartition(values, -_K)[-_K:]
                    if len(values) > _K
                    else np.arange(len(values))
                )
                held = self.best.get((query, direction), [])
                held += [(float(values[i]), first + int(i)) for i in top]
                self.best[query, direction] = sorted(held, key=lambda v: (-v[0], v[1]))[:_K]

    def close(self) -> None:
        """Nothing to let go."""


def _products_by_tables(
    copy: ScanCopy, query: NDArray[np.float64]
) -> Iterator[NDArray[np.float64]]:
    width = copy.format.bytes
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    tables = (2.0 * bits - 1.0) @ query.reshape(width, 8).T  # [value of a byte, its place]
    flat, places = np.ascontiguousarray(tables.T).reshape(-1), 256 * np.arange(width)
    for segment in copy.segments:
        for start in range(0, len(segment), _ROWS):
            codes = segment.codes[start : start + _ROWS]
            shares = np.take(flat, codes + places)
            yield shares.sum(axis=1) * segment.scale[start : start + _ROWS]


@dataclass(frozen=True, slots=True)
class Simulated:
    """A search of all shards.

    Attributes:
        stream: What the shards told.
        merging: Processor time that all but the shards took.
        found: Candidates of the whole.
    """

    stream: Stream
    merging: float
    found: Found


def simulate(corpus: Corpus, queries: int, brute: int = 0) -> Simulated:
    """Search a corpus for its first queries, comparing ``brute`` of them with all rows."""
    stream = Stream(corpus, brute)
    started = time.process_time()
    found = ShardedScan(stream)(corpus.queries[:queries], _K, _BOTH)
    return Simulated(stream, time.process_time() - started - stream.elapsed, found)


def check(corpus: Corpus, searched: Simulated) -> list[str]:
    """Certified answers against the planted rows, and against all of them."""
    answers = [
        [
            _best(query, one, direction, searched.stream)
            for direction, one in zip(_BOTH, ends, strict=True)
        ]
        for query, ends in enumerate(searched.found)
    ]
    decoded = corpus.code.decode(corpus.planted_codes, corpus.planted_scales)
    planted = corpus.queries[: len(answers)].astype(np.float64) @ decoded.T
    same = all(
        answer == _top(direction * values, corpus.planted)
        for values, ends in zip(planted, answers, strict=True)
        for direction, answer in zip(_BOTH, ends, strict=True)
    )
    checks = [
        expect(same, f"top {_K} of {len(answers)} queries, both signs: the best of the planted")
    ]
    for (query, direction), best in searched.stream.best.items():
        found = answers[query][_BOTH.index(direction)]
        expect(found == [place for _, place in best], f"query {query}: brute force over all rows")
    if searched.stream.best:
        checks.append(
            f"top {_K} of {searched.stream.brute} queries, both signs: brute force over all rows"
        )
    return checks


def _best(query: int, found: Candidates, direction: int, stream: Stream) -> list[int]:
    values = np.array([direction * stream.products[query, i] for i in found.ordinals.tolist()])
    return _top(values, found.ordinals)


def _top(values: NDArray[np.float64], ordinals: NDArray[np.int64]) -> list[int]:
    chosen: Sequence[int] = ordinals[np.lexsort((ordinals, -values))[:_K]].tolist()
    return list(chosen)


def measure(*, quick: bool) -> Report:
    """Search for one query and for 64 at once."""
    rows, shards, width = (100_000, 10, 64) if quick else (100_000_000, 100, 64)
    corpus = Corpus.of(rows, shards, width, QUERIES, _PLANTED)
    alone = simulate(replace(corpus, queries=corpus.queries[:1]), 1)
    together = simulate(corpus, QUERIES, brute=_BRUTE)
    peak = peak_memory()
    checks = check(corpus, together)
    gigabytes = rows * width / 1e9
    one, many = alone.stream, together.stream
    per_query = 1 / (QUERIES * 2**10)
    candidates = tuple(float(len(found)) for ends in together.found for found in ends)
    return Report(
        (
            Figure("scan, one query, both signs (CPU time)", "s", (one.cpu_seconds,)),
            Figure(
                "codes scanned for one query (CPU time)", "GB/s", (gigabytes / one.cpu_seconds,)
            ),
            Figure(f"scan, {QUERIES} queries (CPU time)", "s", (many.cpu_seconds,)),
            Figure("the same, each query", "s", (many.cpu_seconds / QUERIES,)),
            Figure(f"merging what {shards} shards sent (CPU time)", "s", (together.merging,)),
            Figure("scoring what was sent (CPU time)", "s", (many.scoring,)),
            Figure("sent, each query, both signs", "KiB", (many.sent * per_query,)),
            Figure("k lower bounds of each shard alone", "KiB", (many.least * per_query,)),
            Figure("candidates, each query and sign", "", candidates),
            Figure("peak memory", "MiB", (peak / 2**20,), at_most=1024),
        ),
        tuple(checks),
        {
            "rows": rows,
            "bytes_per_row": width,
            "shards": shards,
            "k": _K,
            "threads": torch.get_num_threads(),
            "rows_planted": len(corpus.planted),
        },
    )


if __name__ == "__main__":
    command(measure)()
