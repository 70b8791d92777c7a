"""What a build and a search cost at any size: operations, bytes and seconds, term by term.

Operations follow from shapes alone: those of a Llama's matrices, of the Kronecker factors' moments,
of the rotation into their eigenbases (each side before or after the sum over tokens, whichever is
cheaper, as :class:`~wherefrom.curvature.bases.GradientRotation` does it). Rates are measured
(:mod:`benchmarks.scale_costs`, :mod:`benchmarks.scale_simulation`) or stand in data sheets. On this
machine the model is held against three builds (:func:`held_against`); for 10^9 documents and 70 B
weights it says what would have to be paid (:func:`plan`). ``python -m benchmarks.scale_model``
renews the tables of ``docs/scale.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure

__all__ = [
    "LLAMA_70B",
    "PAGE",
    "Figures",
    "Held",
    "Kind",
    "Subject",
    "Term",
    "held_against",
    "plan",
    "rendered",
    "tables",
]

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scale.md"
_RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True)
class Kind:
    """Indexed layers of one shape.

    Attributes:
        d_in: Their inputs.
        d_out: Their outputs.
        count: How many there are.
        shares_input: Whether they read the same input as the kind before.
    """

    d_in: int
    d_out: int
    count: int
    shares_input: bool = False


@dataclass(frozen=True, slots=True)
class Subject:
    """A language model.

    Attributes:
        weights: That each token is multiplied with.
        kinds: Indexed layers.
    """

    weights: float
    kinds: tuple[Kind, ...]

    @classmethod
    def llama(
        cls, width: int, feed_forward: int, layers: int, vocabulary: int, key_value: float = 1.0
    ) -> Subject:
        """A Llama whose MLPs are indexed; ``key_value``: width of keys, as a share of all."""
        mlp = 3 * width * feed_forward
        attention = (2 + 2 * key_value) * width * width
        return cls(
            layers * (mlp + attention) + vocabulary * width,
            (
                Kind(width, feed_forward, layers),
                Kind(width, feed_forward, layers, shares_input=True),
                Kind(feed_forward, width, layers),
            ),
        )

    @property
    def indexed(self) -> int:
        """Weights of the indexed layers."""
        return sum(kind.count * kind.d_in * kind.d_out for kind in self.kinds)

    def factors(self, block: int | None = None) -> int:
        """Entries of all bases, of which no block is wider than ``block``."""
        return sum(
            kind.count
            * (_entries(kind.d_in, block) * (not kind.shares_input) + _entries(kind.d_out, block))
            for kind in self.kinds
        )

    def passing(self, tokens: float) -> float:
        """Operations of forward and backward to the layers' outputs; no weight gradients."""
        return 4 * self.weights * tokens

    def moments(self, tokens: float) -> float:
        """Operations of the factors' sums over tokens, of which a triangle is computed."""
        return self.factors() * tokens

    def rotation(self, tokens: float, block: int | None = None) -> float:
        """Operations of a document's gradient in all layers' eigenbases."""
        return sum(2 * kind.count * _rotation(kind, tokens, block) for kind in self.kinds)


def _entries(width: int, block: int | None) -> int:
    return width * min(width, block or width)


def _rotation(kind: Kind, tokens: float, block: int | None) -> float:
    """Multiplications of one layer, each side rotated early or late."""
    into, out = _entries(kind.d_in, block), _entries(kind.d_out, block)
    early_in = 0 if kind.shares_input else into
    formed = kind.d_in * kind.d_out
    return min(
        tokens * (early_in + out + formed),
        tokens * (early_in + formed) + out * kind.d_in,
        tokens * (out + formed) + into * kind.d_out,
        tokens * formed + into * kind.d_out + out * kind.d_in,
    )


LLAMA_70B = Subject.llama(8192, 28672, 80, 128256, key_value=0.125)


@dataclass(frozen=True, slots=True)
class Figures:
    """Medians of a stored benchmark, their units, and what it ran on."""

    values: Mapping[str, float]
    units: Mapping[str, str]
    setting: Mapping[str, Any]

    @classmethod
    def read(cls, name: str) -> Figures:
        """Those of ``benchmarks/results/NAME.json``."""
        stored = json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        figures = [Figure.from_json(figure) for figure in stored["figures"]]
        return cls(
            {figure.name: figure.median for figure in figures},
            {figure.name: figure.unit for figure in figures},
            stored["setting"],
        )

    def all(self) -> dict[str, tuple[float, str]]:
        """Every figure with its unit."""
        return {name: (value, self.units[name]) for name, value in self.values.items()}


@dataclass(frozen=True, slots=True)
class Held:
    """A build's phase: what the model says and what was measured, in CPU seconds."""

    model: str
    phase: str
    predicted: float
    measured: float


_FIRST, _SECOND = "fitting the curvature, pass 1 of 2", "fitting the curvature, pass 2 of 2"
_ENCODE = "encoding the documents"


def held_against(costs: Figures) -> list[Held]:
    """The model against the measured builds.

    Two numbers are taken from the smallest build: what squaring and adding up a coordinate of a
    document takes, and what whitening, sketching and storing it does. All else is shapes, the speed
    of the bare pass and the measured speed of a product.
    """
    builds = costs.setting["builds"]
    smallest = next(iter(builds))
    per_entry: dict[str, float] = {}
    held = []
    for name, build in builds.items():
        subject = Subject.llama(
            build["width"], build["feed_forward"], build["layers"], build["vocabulary"]
        )
        documents = build["documents"]
        tokens = build["tokens"] / documents
        speed = 1e9 * costs.values["product of width 512, float32"]
        entries = documents * subject.indexed
        products = {
            _FIRST: subject.moments(tokens),
            _SECOND: subject.rotation(tokens),
            _ENCODE: subject.rotation(tokens),
        }
        for phase, operations in products.items():
            measured = build["seconds"][phase]
            predicted = build["bare_seconds"] + documents * operations / speed
            if name == smallest:
                per_entry[phase] = max(0.0, measured - predicted) / entries
            held.append(Held(name, phase, predicted + per_entry[phase] * entries, measured))
    return held


@dataclass(frozen=True, slots=True)
class Term:
    """One cost of the plan.

    Attributes:
        what: It is.
        amount: How much.
        unit: Of it.
        source: Of the number: shapes, measured, data sheet or assumed.
    """

    what: str
    amount: float
    unit: str
    source: str


DOCUMENTS = 1e9
TOKENS = 500
FITTED = 1e6
BYTES = 4096
BLOCK = 4096
TEXT = 2000

# One H100 SXM: dense tensor-core and vector peaks, memory. Data sheet; how much of them is reached
# is assumed.
_BF16, _TF32, _FP32, _BANDWIDTH = 989e12, 495e12, 67e12, 3.35e12
_REACHED = 0.4
# Float32 coordinates written by the product, read and written by whitening, read by the sketch.
_BYTES_AN_ENTRY = 16
_HOUR = 3600.0


def plan(costs: Figures, simulation: Figures, million: Figures) -> list[Term]:
    """What 10^9 documents of 500 tokens and a Llama of 70 B weights cost."""
    return [
        *_building(LLAMA_70B),
        *_curvature(LLAMA_70B, costs),
        *_storing(costs),
        *_asking(costs, simulation, million),
    ]


def _building(subject: Subject) -> list[Term]:
    def hours(operations: float, peak: float) -> float:
        return DOCUMENTS * operations / (peak * _REACHED) / _HOUR

    formed = 2 * TOKENS * subject.indexed
    dense, blocks = (subject.rotation(TOKENS, block) - formed for block in (None, BLOCK))
    traffic = DOCUMENTS * subject.indexed * _BYTES_AN_ENTRY / (_BANDWIDTH * _REACHED) / _HOUR
    rate = "shapes; H100 data sheet, 40 % of its peak assumed"
    return [
        Term(
            "forward and backward, bfloat16", hours(subject.passing(TOKENS), _BF16), "GPU h", rate
        ),
        Term("rotation, dense bases, float32", hours(dense, _FP32), "GPU h", rate),
        Term("rotation, dense bases, TF32", hours(dense, _TF32), "GPU h", rate),
        Term(f"rotation, blocks of {BLOCK}, TF32", hours(blocks, _TF32), "GPU h", rate),
        Term("sum over tokens, float32", hours(formed, _FP32), "GPU h", rate),
        Term("sum over tokens, TF32", hours(formed, _TF32), "GPU h", rate),
        Term("coordinates through memory", traffic, "GPU h", rate),
    ]


def _curvature(subject: Subject, costs: Figures) -> list[Term]:
    cubed = costs.values["eigendecomposition of width 4096, float64"] / 4096**3

    def eigen_hours(block: int | None) -> float:
        widths = [
            (width, kind.count)
            for kind in subject.kinds
            for width in ((kind.d_out,) if kind.shares_input else (kind.d_in, kind.d_out))
        ]
        seconds = sum(n * w * min(w, block or w) ** 2 * cubed for w, n in widths)
        return seconds / _HOUR

    passes = FITTED * (
        2 * subject.passing(TOKENS) / _BF16
        + (subject.moments(TOKENS) + subject.rotation(TOKENS)) / _FP32
    )
    shapes = "shapes"
    return [
        Term(
            f"curvature from {FITTED:.0e} documents", passes / _REACHED / _HOUR, "GPU h", "as above"
        ),
        Term("factors, dense, float32", 4 * subject.factors() / 1e9, "GB", shapes),
        Term(
            f"factors, blocks of {BLOCK}, float32", 4 * subject.factors(BLOCK) / 1e9, "GB", shapes
        ),
        Term("eigenvalues, float32", 4 * subject.indexed / 1e9, "GB", shapes),
        Term("largest factor, float64", 8 * 28672**2 / 1e9, "GB", shapes),
        Term(
            "one eigendecomposition of width 28672",
            28672**3 * cubed / _HOUR,
            "core h",
            "measured to width 4096, cubed",
        ),
        Term("all eigendecompositions", eigen_hours(None), "core h", "the same"),
        Term(f"the same in blocks of {BLOCK}", eigen_hours(BLOCK), "core h", "the same"),
    ]


def _storing(costs: Figures) -> list[Term]:
    row = costs.values["documents table: a row beside code and text"]
    scan = costs.values["scan copy: a row beside its code"]
    writing = costs.values["quantising and writing rows"] * 1e6
    return [
        Term(
            "documents table",
            DOCUMENTS * (BYTES + TEXT + row) / 1e12,
            "TB",
            "measured; text assumed",
        ),
        Term("scan copy", DOCUMENTS * (BYTES + scan) / 1e12, "TB", "measured"),
        Term(
            "quantising and writing rows", DOCUMENTS * BYTES / writing / _HOUR, "core h", "measured"
        ),
        Term(
            "verifying the scan copy on opening",
            DOCUMENTS * (BYTES + scan) / (costs.values["SHA-256"] * 1e6) / _HOUR,
            "core h",
            "measured",
        ),
    ]


def _asking(costs: Figures, simulation: Figures, million: Figures) -> list[Term]:
    codes = million.setting["rows"] * million.setting["bytes_per_row"]
    scale = 1e-3 * DOCUMENTS * BYTES / codes
    alone = million.values["1-bit codes: scan"]
    batch = million.values["1-bit codes: the same of 64 queries"] / 64
    sent = simulation.values["sent, each query, both signs"] / simulation.setting["shards"]
    merge = costs.values["merging 1000 shards, one query and sign"]
    return [
        Term("scan, one query", alone * scale, "core s", "measured (`scan_million`)"),
        Term("scan, each of 64 queries", batch * scale, "core s", "measured (`scan_million`)"),
        Term(
            "sent by 1000 shards, one query of both signs", 1000 * sent / 1024, "MiB", "simulation"
        ),
        Term("merging them", 2 * merge / 1e3, "s", "measured"),
        Term(
            "bases and eigenvalues that a query reads, dense",
            4 * (LLAMA_70B.factors() + LLAMA_70B.indexed) / 1e9,
            "GB",
            "shapes",
        ),
    ]


def tables(costs: Figures, simulation: Figures, million: Figures) -> dict[str, str]:
    """The tables of ``docs/scale.md`` by their names, in Markdown."""
    held = [
        (one.model, one.phase, f"{one.predicted:.1f}", f"{one.measured:.1f}")
        for one in held_against(costs)
    ]
    terms = [
        (term.what, f"{_rounded(term.amount)} {term.unit}", term.source)
        for term in plan(costs, simulation, million)
    ]
    searched = [
        (name, f"{_rounded(value)} {unit}".strip())
        for name, (value, unit) in simulation.all().items()
    ]
    rates = [
        (name, f"{_rounded(value)} {unit}".strip()) for name, (value, unit) in costs.all().items()
    ]
    return {
        "simulation": _table(("", "measured"), searched),
        "rates": _table(("", "measured"), rates),
        "plan": _table(("term", "amount", "source"), terms),
        "held": _table(("model", "phase", "foretold, s", "measured, s"), held),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _rounded(amount: float) -> str:
    """Two digits that mean something."""
    return f"{float(f'{amount:.2g}'):,.0f}" if amount >= 10 else f"{amount:.2g}"


def rendered(page: str, found: Mapping[str, str]) -> str:
    """A page with its tables renewed: each stands between two comments that name it."""
    for name, text in found.items():
        opening = f"<!-- {name} -->\n\n"
        start = page.index(opening) + len(opening)
        page = page[:start] + text + page[page.index(f"\n<!-- end of {name} -->") :]
    return page


def main() -> None:
    """Renew the tables of ``docs/scale.md``."""
    names = ("scale_costs", "scale_simulation", "scan_million")
    found = tables(*map(Figures.read, names))
    PAGE.write_text(rendered(PAGE.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main()
