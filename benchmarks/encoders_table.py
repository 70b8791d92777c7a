"""The stored figures of the encoders as tables, which ``docs/figures.md`` holds.

``python -m benchmarks.encoders_table`` prints them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

__all__ = ["tables"]

_RESULTS = Path(__file__).resolve().parent / "results" / "encoders.json"
_SUBJECTS = {
    "digits": "Digits perceptron, 26,122 weights, 1,437 documents, 360 queries, three seeds",
    "lm": "Language model, 442,368 weights, 760 documents, 40 queries",
    "demo": "The demo's model, 540,672 weights, all its passages, 40 queries",
}
_FAMILIES = ("sketch", "sketch of part", "energy", "none", "random", "logra", "logra-pca")

Row = dict[str, Any]
Pick = Callable[[Sequence[Row]], Row | None]


def tables(result: dict[str, Any]) -> Iterator[str]:
    """Markdown, a heading and a table for each subject."""
    for name, title in _SUBJECTS.items():
        runs = result["setting"].get(f"{name}: encoders")
        if runs is None:
            continue
        measured = "LDS" if runs[0]["0"][0]["lds"] is not None else "correlation of sums"
        (whole,) = {_mean(run["0"][0] for run in runs)}
        yield f"## {title}\n"
        yield f"{measured} (uncompressed {whole:.3f}), and the share of the top 10 in 100.\n"
        yield "| bytes | chosen | " + " | ".join(_FAMILIES) + " |"
        yield "|---" * (len(_FAMILIES) + 2) + "|"
        for budget in (key for key in runs[0] if key != "0"):
            picks: list[Pick] = [_chosen, *(_best_of(family) for family in _FAMILIES)]
            cells = [_cell([pick(run[budget]) for run in runs]) for pick in picks]
            yield f"| {int(budget):,} | " + " | ".join(cells) + " |"
        yield ""


def _chosen(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row["chosen"]), None)


def _best_of(family: str) -> Pick:
    return lambda rows: max(
        (row for row in rows if row["family"] == family), key=_quality, default=None
    )


def _quality(row: Row) -> float:
    return float(row["sums"] if row["lds"] is None else row["lds"])


def _mean(rows: Iterator[Row]) -> float:
    return mean(map(_quality, rows))


def _cell(rows: Sequence[Row | None]) -> str:
    found = [row for row in rows if row is not None]
    if len(found) < len(rows):
        return ""
    names = sorted({row["encoder"].replace(", rotated", "") for row in found})
    top = mean(row["top100"] for row in found)
    return f"{_mean(iter(found)):.3f}, {top:.3f} ({'; '.join(names)})"


if __name__ == "__main__":
    print("\n".join(tables(json.loads(_RESULTS.read_text(encoding="utf-8")))))
