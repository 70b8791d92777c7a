"""Pictures of evidence: bars with their intervals, and predicted beside measured changes.

matplotlib comes with the extra ``plots`` and is imported when something is drawn. The same evidence
gives the same bytes: no dates are written, and settings of the user's are left out.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wherefrom.errors import EvaluationError, MissingExtraError
from wherefrom.evaluation.agreement import Changes
from wherefrom.evaluation.evidence import Evidence, Figure
from wherefrom.store.durable import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["FORMATS", "plot", "require_format", "scatter"]

# Without these, files say when they were made or by which release.
FORMATS: Mapping[str, Mapping[str, None]] = {
    ".png": {"Software": None},
    ".svg": {"Date": None, "Creator": None},
    ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""File name endings that can be drawn to, with the metadata to leave out."""

_COLUMNS = 3
_COLOURS = ("#3b6ea5", "#c8553d", "#588157", "#8e6c8a", "#d19a2a", "#5f8a8b", "#7a7a7a")
_FAINT = "#d9d9d9"
_LONGEST = 34
_LONGEST_TITLE = 46


def plot(
    evidence: Evidence,
    path: str | os.PathLike[str],
    *,
    names: Sequence[str] | None = None,
    methods: Sequence[str] | None = None,
    title: str | None = None,
) -> None:
    """Draw the figures: a panel a name, a bar a method, the highest on top, with 95 % intervals.

    Args:
        evidence: Whose figures.
        path: Of the picture, ``.png``, ``.svg`` or ``.pdf``.
        names: Of the figures to draw; by default all.
        methods: Whose; by default all.
        title: By default what was evaluated and how.

    Raises:
        EvaluationError: There is no such figure, or no such format.
        MissingExtraError: matplotlib is not installed.
        StorageError: The disk refuses.
    """
    target = require_format(path)
    chosen = [
        figure
        for figure in evidence.figures
        if (names is None or figure.name in names) and (methods is None or figure.method in methods)
    ]
    panels: dict[str, list[Figure]] = {}
    for name in dict.fromkeys(names if names is not None else (f.name for f in chosen)):
        panels[name] = [figure for figure in chosen if figure.name == name]
    if not panels or not all(panels.values()):
        known = ", ".join(dict.fromkeys(figure.name for figure in evidence.figures))
        raise EvaluationError(f"no figures of {list(names or ())} to draw; there are: {known}")
    order = dict.fromkeys(figure.method for figure in evidence.figures)
    colours = {method: _COLOURS[i % len(_COLOURS)] for i, method in enumerate(order)}
    columns = min(_COLUMNS, len(panels))
    rows = math.ceil(len(panels) / columns)
    bars = max(map(len, panels.values()))
    with _drawing((4.2 * columns, (0.9 + 0.3 * bars) * rows + 0.3), target) as canvas:
        canvas.suptitle(
            title or f"{evidence.subject}: {evidence.kind}, 95 % intervals", fontsize=11
        )
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (name, figures) in zip(grid.flat, panels.items(), strict=False):
            _bars(axes, name, figures, colours)


def scatter(
    predicted: Mapping[str, Changes],
    measured: Changes,
    path: str | os.PathLike[str],
    *,
    title: str,
    unit: str = "nats",
) -> None:
    """Draw measured over predicted changes: a panel a method, a point a change and question.

    The dotted line is that of predictions that are right, where both have the same unit.

    Args:
        predicted: ``[change, question]`` of each method.
        measured: Likewise.
        path: Of the picture, ``.png``, ``.svg`` or ``.pdf``.
        title: What is drawn.
        unit: Of what was measured.

    Raises:
        EvaluationError: Shapes differ, there is no method, or no such format.
        MissingExtraError: matplotlib is not installed.
        StorageError: The disk refuses.
    """
    target = require_format(path)
    if not predicted:
        raise EvaluationError("no method to draw; give the predictions of at least one")
    for method, values in predicted.items():
        if values.shape != measured.shape:
            raise EvaluationError(
                f"{method!r} predicts changes of shape {values.shape}, measured were "
                f"{measured.shape}; give [change, question]"
            )
    columns = min(_COLUMNS, len(predicted))
    rows = math.ceil(len(predicted) / columns)
    with _drawing((3.4 * columns, 3.2 * rows + 0.3), target) as canvas:
        canvas.suptitle(title, fontsize=11)
        grid = canvas.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(predicted) :]:
            axes.set_axis_off()
        for axes, (method, values) in zip(grid.flat, predicted.items(), strict=False):
            axes.axhline(0.0, color=_FAINT, linewidth=0.8, zorder=0)
            axes.axvline(0.0, color=_FAINT, linewidth=0.8, zorder=0)
            axes.axline((0.0, 0.0), slope=1.0, color="#808080", linestyle=":", zorder=1)
            axes.scatter(values.ravel(), measured.ravel(), s=9, alpha=0.6, color=_COLOURS[0])
            axes.set_title(method, fontsize=10)
            axes.set_xlim(*_span(values))
            axes.set_ylim(*_span(measured))
            axes.set_xlabel("predicted", fontsize=9)
            axes.set_ylabel(f"measured, {unit}", fontsize=9)
            axes.tick_params(labelsize=8)


def require_format(path: str | os.PathLike[str]) -> Path:
    """Refuse a picture that cannot be drawn, before hours go into what it would show.

    Returns:
        Its path.

    Raises:
        EvaluationError: There is no such format, or no such folder.
        MissingExtraError: matplotlib is not installed.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise EvaluationError(
            f"{target.name} is no picture that can be drawn; end it in {', '.join(FORMATS)}"
        )
    if not target.absolute().parent.is_dir():
        raise EvaluationError(f"{target} is in no folder that exists; make the folder first")
    _matplotlib()
    return target


def _bars(axes: Axes, name: str, figures: Sequence[Figure], colours: Mapping[str, str]) -> None:
    """One panel."""
    figures = sorted(figures, key=lambda figure: figure.value)
    places = np.arange(len(figures))
    values = np.array([figure.value for figure in figures])
    axes.barh(places, values, color=[colours[figure.method] for figure in figures], height=0.7)
    for place, figure in zip(places, figures, strict=True):
        if figure.low is not None and figure.high is not None:
            axes.plot([figure.low, figure.high], [place, place], color="black", linewidth=1.2)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set_yticks(places, [_shortened(figure.method) for figure in figures], fontsize=9)
    units = {figure.unit for figure in figures if figure.unit}
    title = f"{name} ({', '.join(sorted(units))})" if units else name
    axes.set_title(textwrap.fill(title, _LONGEST_TITLE), fontsize=10)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _span(values: Changes) -> tuple[float, float]:
    """The values' range with a margin; also of a constant."""
    low, high = float(values.min()), float(values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


@contextmanager
def _drawing(size: tuple[float, float], path: Path) -> Iterator[Canvas]:
    """A canvas that is written to the path when all is drawn."""
    matplotlib = _matplotlib()
    from matplotlib.figure import Figure as Canvas
    from matplotlib.style import context

    # The salt makes the names of an SVG's parts the same every time; a name with dollars is no TeX.
    settings = {"svg.hashsalt": "wherefrom", "text.parse_math": False}
    with context("default"), matplotlib.rc_context(settings):
        canvas = Canvas(figsize=size, layout="constrained")
        yield canvas
        kind = path.suffix.lower()
        write_atomically(
            path,
            lambda temporary: canvas.savefig(
                temporary, format=kind[1:], dpi=110, metadata=dict(FORMATS[kind])
            ),
        )


def _matplotlib() -> Any:
    """The library.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed: pip install 'wherefrom[plots]'"
        ) from error
    return matplotlib
