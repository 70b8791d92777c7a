"""A sweep over dampings as a table: how far the ranking depends on the choice."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wherefrom.cli.question import fact_grid, question_facts
from wherefrom.query.measurement import measurement_of
from wherefrom.query.printable import printable
from wherefrom.query.sweep import DampingSweep

__all__ = ["sweep_table"]

_IDS_SHOWN = 3


def sweep_table(sweep: DampingSweep, console: Console) -> None:
    """Print a sweep: the question, a row a damping, and what the columns say.

    Args:
        sweep: Rankings under several dampings.
        console: Where to print.
    """
    measured = measurement_of(sweep.query, sweep.objective)
    facts = question_facts(sweep.query, measured)
    console.print(fact_grid([*facts, ("measured", Text(measured.quantity))]))
    console.print()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("damping", justify="right", style="bold cyan", no_wrap=True)
    table.add_column("overlap", justify="right", no_wrap=True)
    table.add_column("rank corr.", justify="right", no_wrap=True)
    iterated = any(row.residual is not None for row in sweep.rows)
    if iterated:
        table.add_column("residual", justify="right", no_wrap=True)
    table.add_column("strongest proponents", overflow="fold")
    for row in sweep.rows:
        ids = ", ".join(map(printable, row.proponents[:_IDS_SHOWN]))
        more = ", ..." if len(row.proponents) > _IDS_SHOWN else ""
        residual = ["" if row.residual is None else f"{row.residual:.2g}"] if iterated else []
        table.add_row(
            f"{row.damping:g}",
            f"{row.overlap:.0%}",
            f"{row.spearman:+.3f}",
            *residual,
            Text(ids + more),
        )
    console.print(table)
    console.print()
    console.print(
        f"overlap: share of the up to {sweep.k:,} proponents and {sweep.k:,} opponents under the "
        f"index's own damping, {sweep.damping:g}, that are found again; "
        f"{sweep.least_overlap:.0%} at least. rank corr.: Spearman's correlation of all documents' "
        "scores with those under the index's own damping."
        + (" residual: of the solution by iteration, relative." if iterated else "")
    )
    console.print(Text(measured.contract, style="dim"))
