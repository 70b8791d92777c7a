"""wherefrom's half of the comparison with kronfluence, in a process of its own."""

from __future__ import annotations

import time

STARTED = time.perf_counter()  # importing is part of the bill

import argparse  # noqa: E402
import json  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import wherefrom as wf  # noqa: E402
from benchmarks.environment import peak_memory  # noqa: E402

__all__: list[str] = []


def main() -> None:
    """Build the index, score one batch of queries in full, ask two batches of the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    stored = json.loads((folder / "queries.json").read_text(encoding="utf-8"))
    first, second = (
        [wf.Query(prompt, completion) for prompt, completion in stored[name]]
        for name in ("first", "second")
    )
    times = {"loading": time.perf_counter() - STARTED}
    peaks = {"loading": peak_memory()}
    begun = time.perf_counter()
    index = wf.build(
        folder / "model",
        folder / "documents.jsonl",
        folder / "comparison.index",
        fisher="empirical",
        overwrite=True,
    )
    times["build"] = time.perf_counter() - begun
    peaks["build"] = peak_memory()
    begun = time.perf_counter()
    exact = index.scores(first, tier="exact")
    times["exact"] = time.perf_counter() - begun
    peaks["exact"] = peak_memory()
    times["total"] = time.perf_counter() - STARTED
    for name, queries in (("first", first), ("second", second)):
        begun = time.perf_counter()
        for query in queries:
            index.query(prompt=query.prompt, completion=query.completion, k=10)
        times[name] = time.perf_counter() - begun
    np.savez(
        folder / "wherefrom.npz",
        exact=exact,
        stored=index.scores(first, tier="stored"),
        doc_ids=np.array(index.doc_ids()),
    )
    found = {
        "seconds": times,
        "peak_bytes": {**peaks, "end": peak_memory()},
        "threads": torch.get_num_threads(),
        "bytes_per_document": index.manifest.encoder.bytes_per_document,
    }
    (folder / "wherefrom.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
