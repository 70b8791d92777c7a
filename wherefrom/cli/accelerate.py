"""``wherefrom accelerate``: give an index a vector index of another library."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from wherefrom.store import AcceleratorKind

__all__ = ["ACCELERATE_SCHEMA", "KINDS", "accelerate"]

ACCELERATE_SCHEMA = "wherefrom-accelerate/1"
KINDS = ("faiss-flat", "faiss-sq8", "faiss-rabitq", "lance-ivf")
"""``wherefrom.store.AcceleratorKind``, written out so that ``--help`` imports little."""


@click.command(short_help="Make a vector index that proposes candidates.")
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--kind",
    required=True,
    type=click.Choice(KINDS),
    help="FAISS over the stored vectors as they are, a byte or a bit an entry (pip install "
    "'wherefrom[faiss]'), or an indexed Lance table.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
def accelerate(index: Path, kind: AcceleratorKind, as_json: bool) -> None:
    """Make a vector index over the vectors of INDEX; ask it with query --backend.

    It proposes candidates only: scores and answers stay what they are without it. The model is not
    needed. One of the same kind that is there already is replaced.
    """
    from wherefrom.cli.render import emit_json, print_facts, terminal
    from wherefrom.store import DocumentTable, Manifest

    started = time.perf_counter()
    manifest = Manifest.read(index)
    table = DocumentTable.open(index, manifest)

    from wherefrom.query.accelerators import Accelerators

    made = Accelerators(index, manifest, table, "cpu").build(kind)
    (record,) = (record for record in made.accelerators if record.kind == kind)
    seconds = time.perf_counter() - started
    if as_json:
        emit_json(
            {
                "schema": ACCELERATE_SCHEMA,
                "index": str(index.resolve()),
                "manifest_sha256": made.digest,
                "accelerator": record.model_dump(mode="json"),
                "seconds": seconds,
            }
        )
        return
    facts = [
        ("index", str(index)),
        ("backend", f"{kind}, by {record.library}"),
        ("vectors", f"{record.rows:,} of {record.dimension:,} entries"),
        ("seconds", f"{seconds:.1f}"),
    ]
    print_facts(facts, terminal())
