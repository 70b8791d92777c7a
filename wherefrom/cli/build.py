"""``wherefrom build``: index a corpus by its influence on a model."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from wherefrom.records import SCORE_CONTRACT

if TYPE_CHECKING:
    from wherefrom.store import Manifest

__all__ = ["BUILD_SCHEMA", "build"]

BUILD_SCHEMA = "wherefrom-build/1"

_SKIPPED_SHOWN = 5
_PATHS = ("corpus", "model", "index")
_NOT_REPLAYED = ("overwrite", "as_json", "quiet")


def _count_or_share(
    context: click.Context, option: click.Parameter, value: str | None
) -> int | float | None:
    """``600`` (documents) or ``0.15`` (a share of them)."""
    if value is None:
        return None
    try:
        number = float(value) if "." in value else int(value)
    except ValueError:
        number = 0
    if number >= 1 if isinstance(number, int) else 0.0 < number < 1.0:
        return number
    raise click.BadParameter(
        f"{value!r} is neither a whole number of at least 1 nor a share below 1, as 0.15"
    )


@click.command(epilog=SCORE_CONTRACT)
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    help="Folder of a saved Hugging Face causal language model, tokenizer included.",
)
@click.option(
    "--index",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The directory to make.",
)
@click.option(
    "--layers",
    multiple=True,
    metavar="NAME",
    help="Layers to compute influence for: mlp (the default), attention, linear, or a "
    "glob pattern of module names, which may be repeated.",
)
@click.option(
    "--damping",
    type=click.FloatRange(min=0.0, min_open=True),
    default=0.1,
    metavar="NUMBER",
    show_default=True,
    help="Damping of each layer, in units of its mean eigenvalue.",
)
@click.option(
    "--fisher",
    type=click.Choice(["sampled", "expected", "empirical"]),
    help="Labels the curvature is fitted with: drawn from the model (the default), all of them "
    "weighted by the model, or the true ones.",
)
@click.option(
    "--encoder",
    type=click.Choice(["auto", "sketch", "none"]),
    default="auto",
    show_default=True,
    help="How vectors are stored: sketched, whole (none), or whole where that fits the budget.",
)
@click.option(
    "--bytes-per-document",
    type=click.IntRange(min=1),
    default=4096,
    show_default=True,
    metavar="N",
    help="Budget of a stored vector.",
)
@click.option(
    "--fit-documents",
    callback=_count_or_share,
    metavar="N|SHARE",
    help="Fit the curvature on so many documents (600) or such a share of them (0.15); all by "
    "default.",
)
@click.option(
    "--metadata",
    multiple=True,
    metavar="COLUMN",
    help="Column to keep as metadata; may be repeated. All by default.",
)
@click.option(
    "--context",
    type=click.IntRange(min=2),
    metavar="TOKENS",
    help="Cut longer texts into passages of so many tokens; what the model takes, at most 1024, "
    "by default.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    metavar="N",
    help="Most documents to run at once; chosen by length by default.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed."
)
@click.option(
    "--device", metavar="NAME", default="auto", show_default=True, help="auto, cpu, cuda, ..."
)
@click.option("--overwrite", is_flag=True, help="Replace the index at PATH, finished or not.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
@click.option("--quiet", is_flag=True, help="Show neither progress nor summary.")
@click.pass_context
def build(
    ctx: click.Context,
    corpus: Path,
    model: str,
    index: Path,
    layers: tuple[str, ...],
    damping: float,
    fisher: Literal["sampled", "expected", "empirical"] | None,
    encoder: str,
    bytes_per_document: int,
    fit_documents: int | float | None,
    metadata: tuple[str, ...],
    context: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Index the documents of CORPUS by their influence on a model.

    CORPUS is a .jsonl, .jsonl.gz, .csv, .parquet or .txt file, a folder of text files or a saved
    `datasets` folder. Texts longer than the context are cut into passages.
    """
    from wherefrom.cli.failures import Interrupted
    from wherefrom.cli.progress import progress_bars

    started = time.perf_counter()
    try:
        from wherefrom.api import build as build_index
        from wherefrom.gradients.objectives import CausalLM

        with progress_bars(quiet=quiet) as progress, warnings.catch_warnings():
            # What a build warns of stands in its manifest, and is told below.
            warnings.simplefilter("ignore")
            built = build_index(
                model,
                corpus,
                index,
                objective=CausalLM(context=context),
                damping=damping,
                fisher=fisher,
                layers=layers[0] if len(layers) == 1 else layers or None,
                encoder=encoder,
                bytes_per_document=bytes_per_document,
                fit_documents=fit_documents,
                metadata_columns=metadata or None,
                batch_size=batch_size,
                seed=seed,
                device=device,
                overwrite=overwrite,
                progress=progress,
                replay=_replay(ctx),
            )
    except KeyboardInterrupt as interrupt:
        raise Interrupted(_left_at(index)) from interrupt
    _tell(index, built.manifest, time.perf_counter() - started, as_json=as_json, quiet=quiet)


def _replay(ctx: click.Context) -> str:
    """The command that builds the same index again, from anywhere and whatever the defaults."""
    arguments, options = [], []
    for parameter in ctx.command.params:
        name = str(parameter.name)
        value = ctx.params.get(name)
        if value is None or name in _NOT_REPLAYED:
            continue
        for item in value if isinstance(value, tuple) else (value,):
            written = os.path.abspath(item) if name in _PATHS and _is_path(name, item) else item
            if isinstance(parameter, click.Argument):
                arguments.append(str(written))
            else:
                options.append(f"{parameter.opts[0]}={written}")
    return shlex.join(["wherefrom", "build", *arguments, *options])


def _is_path(name: str, value: object) -> bool:
    """Whether a value is a path: a model may be the id of one in the local cache, too."""
    return name != "model" or os.path.exists(str(value))


def _left_at(index: Path) -> str:
    """What an interruption left."""
    from wherefrom.store import state

    found = state(index)
    if found == "unfinished":
        return f"{index} is left unfinished; build it again with --overwrite"
    return f"{index} is as it was before" if found == "finished" else "nothing was written"


def _tell(index: Path, manifest: Manifest, seconds: float, *, as_json: bool, quiet: bool) -> None:
    """Summarise a finished build."""
    from wherefrom.cli.failures import warn
    from wherefrom.cli.render import emit_json, print_facts, terminal

    corpus, encoder = manifest.corpus, manifest.encoder
    if as_json:
        emit_json(
            {
                "schema": BUILD_SCHEMA,
                "index": str(index.resolve()),
                "manifest_sha256": manifest.digest,
                **corpus.model_dump(mode="json"),
                "encoder": encoder.kind,
                "bytes_per_document": encoder.bytes_per_document,
                "seconds": seconds,
                "warnings": list(manifest.warnings),
            }
        )
        return
    for warning in manifest.warnings:
        warn(warning)
    if quiet:
        return
    skipped = f"{corpus.skipped_count:,}"
    if corpus.skipped_count:
        shown = ", ".join(corpus.skipped[:_SKIPPED_SHOWN])
        more = ", ..." if corpus.skipped_count > _SKIPPED_SHOWN else ""
        skipped += f" without a scored token: {shown}{more}"
    facts = [
        ("index", str(index)),
        ("documents", f"{corpus.documents:,} ({corpus.tokens:,} scored tokens)"),
        ("skipped", skipped),
        ("vectors", f"{encoder.kind}, {encoder.bytes_per_document:,} bytes per document"),
        ("seconds", f"{seconds:.1f}"),
    ]
    print_facts(facts, terminal())
