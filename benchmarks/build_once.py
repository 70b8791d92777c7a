"""One build in a process of its own, for the memory benchmark; prints its peak memory as JSON.

The texts are made one at a time, so that they take no memory themselves.
"""

from __future__ import annotations

import argparse
import json
import time

import wherefrom as wf
from benchmarks.environment import peak_memory
from benchmarks.workload import SMALL, random_llama, small_texts, small_tokenizer

__all__: list[str] = []


def main() -> None:
    """Build, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, required=True)
    parser.add_argument("--index", required=True)
    given = parser.parse_args()
    tokenizer = small_tokenizer()
    model = random_llama(len(tokenizer), SMALL)
    started = time.perf_counter()
    index = wf.build(
        model, small_texts(given.documents), given.index, objective=wf.CausalLM(tokenizer)
    )
    taken = {
        "documents": len(index),
        "seconds": time.perf_counter() - started,
        "peak_bytes": peak_memory(),
    }
    print(json.dumps(taken))


if __name__ == "__main__":
    main()
