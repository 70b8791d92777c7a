"""Evidence on a terminal: a table of figures with their intervals, then what a reader must see."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wherefrom.evaluation.evidence import Evidence, Figure
from wherefrom.query.printable import excerpt, printable

__all__ = ["evidence_table", "figure_in_words", "suspects_table"]

_EXCERPT = 160


def evidence_table(evidence: Evidence, console: Console) -> None:
    """Print the figures, name by name, and the notes."""
    console.print(Text(f"{evidence.kind}: {printable(evidence.subject)}", style="bold"))
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("figure", "method"):
        table.add_column(title, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("95 % interval", no_wrap=True)
    names = list(dict.fromkeys(figure.name for figure in evidence.figures))
    for name in names:
        title = printable(name)
        for figure in evidence.figures:
            if figure.name == name:
                value, interval = figure_in_words(figure)
                table.add_row(Text(title), Text(printable(figure.method)), value, interval)
                title = ""
        table.add_section()
    console.print(table)
    for note in evidence.notes:
        console.print()
        console.print(Text(printable(note)))


def suspects_table(evidence: Evidence, console: Console) -> None:
    """Print the suspects of a ``mislabeled`` evaluation, the most suspicious first."""
    # Details are plain JSON, whose form wherefrom.evaluation.mislabeled decides.
    suspects: Any = evidence.details["suspects"]
    if not suspects:
        return
    labels = "label" in suspects[0]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("#", justify="right", style="dim")
    table.add_column("self-influence", justify="right")
    table.add_column("loss", justify="right")
    if labels:
        table.add_column("label")
        table.add_column("the model's")
    table.add_column("document", overflow="fold")
    for one in suspects:
        cells = [str(one["rank"]), f"{one['self-influence']:.3g}", f"{one['loss']:.3g}"]
        if labels:
            cells += [
                f"{printable(str(one[name]))} ({one[share]:.2f})"
                for name, share in (
                    ("label", "label_probability"),
                    ("model_label", "model_probability"),
                )
            ]
        document = Text(printable(one["doc_id"]), style="dim" if "text" in one else "")
        if "text" in one:
            document.append(f"\n{excerpt(one['text'], _EXCERPT)}", style="not dim")
        table.add_row(*map(Text, cells), document)
    console.print()
    console.print(Text("Suspects, by self-influence (in nats)", style="bold"))
    console.print(table)


def figure_in_words(figure: Figure) -> tuple[str, str]:
    """The number with its unit, and its interval, to three digits."""
    value = _number(figure.value) + (f" {figure.unit}" if figure.unit else "")
    if figure.low is None or figure.high is None:
        return value, ""
    return value, f"{_number(figure.low)} to {_number(figure.high)}"


def _number(value: float) -> str:
    """Three decimals, or two digits of what is smaller; counts in full."""
    size = abs(value)
    if size >= 1000 or (value.is_integer() and size >= 10):
        return f"{value:,.0f}"
    return f"{value:.3f}" if size >= 0.1 or size == 0 else f"{value:.2g}"
