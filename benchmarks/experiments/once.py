"""One experiment in this process: runs it, draws its pictures and writes the report."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from benchmarks.experiments.harness import PICTURE_BYTES, ExperimentError, Findings
from benchmarks.packages import MissingPackageError
from wherefrom.errors import MissingExtraError

__all__ = ["main"]


@click.command()
@click.argument("name")
@click.option("--work", required=True, type=click.Path(path_type=Path), help="Its own folder.")
@click.option("--report", required=True, type=click.Path(path_type=Path), help="JSON to write.")
@click.option("--pictures", required=True, type=click.Path(path_type=Path), help="Where to draw.")
@click.option("--quick", is_flag=True, help="Small sizes.")
def main(name: str, work: Path, report: Path, pictures: Path, quick: bool) -> None:
    """Run the experiment NAME."""
    fields: dict[str, Any] = {"skipped": None, "evidence": []}
    try:
        findings: Findings = import_module(f"benchmarks.experiments.{name}").run(work, quick=quick)
        fields["evidence"] = [evidence.to_json() for evidence in findings.evidence]
        for file, draw in findings.pictures.items():
            _draw(name, pictures / file, draw)
    except (MissingPackageError, MissingExtraError) as error:
        fields["skipped"] = str(error)
    report.write_text(json.dumps(fields, ensure_ascii=False, allow_nan=False), encoding="utf-8")


def _draw(name: str, path: Path, draw: Any) -> None:
    """Draw one picture.

    Raises:
        ExperimentError: It has another name than it should, or is too large.
    """
    if not (path.name.startswith(f"{name}-") and path.suffix == ".png"):
        raise ExperimentError(f"a picture is called {path.name}; name it {name}-*.png")
    draw(path)
    size = path.stat().st_size
    if size > PICTURE_BYTES:
        raise ExperimentError(f"{path.name} has {size:,} bytes; at most {PICTURE_BYTES:,} may be")


if __name__ == "__main__":
    main()
