"""Exact top 100 of a million coded rows, in a process of its own so that its memory can be told.

Prints one JSON object. The peak is read before answers are compared with brute force, which decodes
every row.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import peak_memory
from benchmarks.figures import expect
from wherefrom.query.scan import scan
from wherefrom.query.search import inner_products
from wherefrom.store import CodeFormat, LiveRows, ScanCopy, ScanRecord, SegmentRecord

__all__ = ["BYTES", "QUERIES", "main", "write"]

BYTES = 1024
QUERIES = 64
_K = 100
_BOTH = (1, -1)
_CHECKED = 2
_ROWS = 4096


def write(folder: Path, rows: int, code: CodeFormat) -> ScanRecord:
    """A scan copy of random codes whose scales, hence norms, are log-normal."""
    random = np.random.default_rng(code.bits)
    directory = folder / "1"
    directory.mkdir()
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, BYTES)}
    squares = []
    # Written, not mapped: Linux counts this process's peak into that of the one that it starts.
    with open(directory / "codes.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, rows, _ROWS):
            some = np.frombuffer(random.bytes(min(_ROWS, rows - start) * BYTES), np.int8)
            some = np.maximum(some, -127) if code.bits == 8 else some
            file.write(some.data)
            squares.append(code.squared_norms(some.view(np.uint8).reshape(-1, BYTES)))
    scale = random.lognormal(0.0, 1.0, rows).astype(np.float32).astype(np.float64)
    norm = scale * np.sqrt(np.concatenate(squares))
    columns = {"scale": scale, "norm": norm, "whole": norm, "residual": 0.0, "lost": 0.0}
    for name, values in columns.items():
        np.save(directory / f"{name}.npy", np.broadcast_to(np.float64(values), rows))
    segment = SegmentRecord(number=1, first_row=0, rows=rows, files={})
    return ScanRecord(
        rows=rows, width=BYTES, bits=code.bits, dimension=code.dimension, segments=(segment,)
    )


@click.command()
@click.option("--directory", type=click.Path(path_type=Path), required=True)
@click.option("--record", required=True, help="The scan copy's record, as JSON.")
@click.option("--rounds", type=int, required=True)
def main(directory: Path, record: str, rounds: int) -> None:
    """Time searches of the scan copy in a directory."""
    read = ScanRecord.model_validate_json(record)
    copy = ScanCopy.open(directory, read, LiveRows.every(read.rows), verify=False)
    queries = np.random.default_rng(0).standard_t(4, (QUERIES, copy.format.dimension))
    queries = queries.astype(np.float32)
    words = torch.utils.dlpack.from_dlpack(copy.segments[0].codes.view(np.int64))
    best(copy, queries[:1])
    taken: dict[str, list[float]] = {"read": [], "scan": [], "one": [], "batch": []}
    for i in range(rounds):
        one = queries[i % QUERIES : i % QUERIES + 1]
        taken["read"].append(_seconds(words.sum))
        taken["scan"].append(_seconds(partial(scan, copy, one, _K, (1,))))
        taken["one"].append(_seconds(partial(best, copy, one)))
    for _ in range(max(1, rounds // 4)):
        taken["batch"].append(_seconds(partial(best, copy, queries)))
    peak = peak_memory()
    answers, candidates = best(copy, queries[:_CHECKED], _BOTH)
    check(copy, queries[:_CHECKED], answers)
    found = {"seconds": taken, "peak_bytes": peak, "candidates": candidates}
    click.echo(json.dumps({**found, "threads": torch.get_num_threads()}))


def best(
    copy: ScanCopy, queries: NDArray[np.float32], directions: Sequence[int] = (1,)
) -> tuple[list[list[NDArray[np.int64]]], list[int]]:
    """The exact top 100, ``[query][direction]``, and how many rows were scored for each."""
    answers, candidates = [], []
    for query, ends in zip(queries, scan(copy, queries, _K, directions), strict=True):
        answer = []
        for direction, found in zip(directions, ends, strict=True):
            segment = copy.segments[0]
            rows = copy.format.decode(segment.codes[found.ordinals], segment.scale[found.ordinals])
            values = direction * inner_products(rows, query[None])[0]
            answer.append(found.ordinals[np.argsort(-values, kind="stable")[:_K]])
            candidates.append(len(found.ordinals))
        answers.append(answer)
    return answers, candidates


def check(
    copy: ScanCopy, queries: NDArray[np.float32], answers: list[list[NDArray[np.int64]]]
) -> None:
    """Answers, of both signs, against products of all decoded rows in float64."""
    wide = queries.astype(np.float64).T
    parts = [copy.format.decode(chunk.codes, chunk.scale) @ wide for chunk in copy.chunks(_ROWS)]
    products = np.concatenate(parts).T
    for values, ends in zip(products, answers, strict=True):
        for direction, found in zip(_BOTH, ends, strict=True):
            order = np.argsort(-direction * values, kind="stable")[:_K]
            expect(found.tolist() == order.tolist(), "answers are those of brute force, in order")


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
