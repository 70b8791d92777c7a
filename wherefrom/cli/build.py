"""``wherefrom build``: index a corpus by its influence on a model."""

from __future__ import annotations

import os
import shlex
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from wherefrom.cli import values
from wherefrom.cli.execution import (
    execution_options,
    is_another_rank,
    left_at,
    tell_of_going_on,
    tell_of_rank,
)
from wherefrom.records import SCORE_CONTRACT

if TYPE_CHECKING:
    from wherefrom.gradients.objectives import Objective
    from wherefrom.store import Manifest

__all__ = ["BITS", "BUILD_SCHEMA", "CURVATURES", "DTYPES", "ENCODERS", "build"]

BUILD_SCHEMA = "wherefrom-build/1"
BITS = (1, 2, 4, 8, 16, 32)
"""``wherefrom.encoding.stages.CODE_BITS``, written out so that ``--help`` imports little."""
ENCODERS = ("auto", "sketch", "energy", "random", "none")
"""``auto`` and ``wherefrom.encoding.stages.REDUCTIONS``, likewise."""
CURVATURES = ("ekfac", "kfac", "diagonal", "identity", "datainf", "lissa", "exact")
"""``wherefrom.curvature.kinds.CURVATURE_KINDS``, which takes torch to import."""
DTYPES = ("float32", "bfloat16", "float16", "float64")
"""``wherefrom.gradients.fingerprints.DTYPES``, which takes torch to import."""

_SKIPPED_SHOWN = 5
_PATHS = ("corpus", "model", "base_model", "index")
_PATHS_OR_IDS = ("model", "base_model")
_NOT_REPLAYED = (
    *("overwrite", "resume", "executor", "workers", "threads"),
    *("dry_run", "as_json", "quiet"),
)


@click.command(epilog=SCORE_CONTRACT)
@click.argument("corpus", type=click.Path(path_type=Path))
@click.option(
    "--model",
    required=True,
    metavar="DIR",
    help="Folder of a saved Hugging Face model, tokenizer included, or of a PEFT adapter: a causal "
    "language model, a masked one or a sequence classifier.",
)
@click.option(
    "--base-model",
    metavar="DIR",
    help="Folder of the model that the adapter is for; by default the one the adapter names.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="float32",
    show_default=True,
    help="Precision that the model runs in.",
)
@click.option(
    "--index",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The directory to make.",
)
@click.option(
    "--objective",
    type=click.Choice(["causal-lm", "masked-lm", "sequence-classification"]),
    help="What is differentiated; what the model was trained for by default.",
)
@click.option(
    "--label",
    metavar="COLUMN",
    help="Metadata column with a document's label, a name or a number that the classifier knows "
    "(sequence-classification only; 'label' by default).",
)
@click.option(
    "--layers",
    multiple=True,
    metavar="NAME",
    help="Layers to compute influence for: mlp (the default), attention, linear, lora (the default "
    "for adapters), or a glob pattern of module names, which may be repeated.",
)
@click.option(
    "--curvature",
    type=click.Choice(CURVATURES),
    default="ekfac",
    show_default=True,
    help="What gradients are whitened by; identity is the plain gradient dot product.",
)
@click.option(
    "--damping",
    callback=values.damping,
    metavar="NUMBER",
    help="Damping of each layer, in units of its mean eigenvalue; 0.1 by default, 0 for identity.",
)
@click.option(
    "--fisher",
    type=click.Choice(["sampled", "expected", "empirical"]),
    help="Labels the curvature is fitted with: drawn from the model, all of them weighted by the "
    "model, or the true ones. Chosen by the objective by default; not for datainf and identity.",
)
@click.option(
    "--encoder",
    type=click.Choice(ENCODERS),
    default="auto",
    show_default=True,
    help="How vectors are shortened: sketched, to the coordinates of largest expected energy, by a "
    "random projection (the baseline), not at all (none), or by what a sample of the documents "
    "shows to be best (auto).",
)
@click.option(
    "--bits",
    type=click.Choice([str(bits) for bits in BITS]),
    help="Bits of a stored entry, 16 and 32 being floats; chosen on the sample by default, 32 for "
    "none without a budget.",
)
@click.option(
    "--pca",
    type=click.IntRange(min=1),
    metavar="N",
    help="Project on so many directions fitted on documents, whose basis counts in the bytes.",
)
@click.option(
    "--bytes-per-document",
    type=click.IntRange(min=1),
    metavar="N",
    help="Budget of a stored vector; 4096 by default, and none with --fidelity or --encoder none.",
)
@click.option(
    "--fidelity",
    callback=values.fidelity,
    metavar="SHARE",
    help="Take the smallest vectors with that recall and that correlation of summed scores with "
    "uncompressed ones, as 0.95.",
)
@click.option(
    "--fit-documents",
    callback=values.count_or_share,
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
    help="Cut longer texts into passages of so many tokens, or truncate them for a classifier; "
    "what the model takes, at most 1024, by default.",
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
@execution_options
@click.option(
    "--overwrite",
    is_flag=True,
    help="Replace the index at PATH, or an unfinished build of something else there.",
)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Go on with an interrupted build of the same at PATH, or begin anew.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Build a sample of the documents only, and say what all of them will take in time, memory "
    "and disk. Nothing stays.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a summary.")
@click.option("--quiet", is_flag=True, help="Show neither progress nor summary.")
@click.pass_context
def build(
    ctx: click.Context,
    corpus: Path,
    model: str,
    base_model: str | None,
    dtype: str,
    index: Path,
    objective: str | None,
    label: str | None,
    layers: tuple[str, ...],
    curvature: str,
    damping: float | None,
    fisher: Literal["sampled", "expected", "empirical"] | None,
    encoder: str,
    bits: str | None,
    pca: int | None,
    bytes_per_document: int | None,
    fidelity: float | None,
    fit_documents: int | float | None,
    metadata: tuple[str, ...],
    context: int | None,
    batch_size: int | None,
    seed: int,
    device: str,
    executor: str | None,
    workers: int | None,
    threads: int | None,
    factor_memory: int | None,
    overwrite: bool,
    resume: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Index the documents of CORPUS by their influence on a model.

    CORPUS is a .jsonl, .jsonl.gz, .csv, .parquet or .txt file, a folder of text files or a saved
    `datasets` folder. Texts longer than the context are cut into passages.
    """
    from wherefrom.cli.failures import Interrupted, terminable
    from wherefrom.cli.progress import progress_bars

    if damping == 0.0 and curvature != "identity":
        raise click.BadParameter(
            f"0 would divide {curvature} by zero; give a number above 0, as 0.1",
            param_hint="--damping",
        )
    if label is not None and objective not in (None, "sequence-classification"):
        raise click.UsageError(f"--label does not go with --objective {objective}; leave it out")
    if is_another_rank():
        if executor in (None, "torchrun") and not dry_run:
            from wherefrom.indexer.executors.torchrun import serve

            serve()
        else:
            tell_of_rank()
        return
    given: dict[str, Any] = {
        "base_model": base_model,
        "dtype": dtype,
        "objective": _objective(objective, label, context, seed),
        "context": context,
        "curvature": curvature,
        "damping": damping,
        "fisher": fisher,
        "layers": layers[0] if len(layers) == 1 else layers or None,
        "encoder": encoder,
        "bits": None if bits is None else int(bits),
        "pca": pca,
        "bytes_per_document": bytes_per_document,
        "fidelity": fidelity,
        "fit_documents": fit_documents,
        "metadata_columns": metadata or None,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
        "workers": workers,
        "threads": threads,
        "factor_memory": factor_memory,
        "overwrite": overwrite,
    }
    if dry_run:
        from wherefrom.api import estimate
        from wherefrom.cli.estimate import tell_estimate

        found = estimate(model, corpus, index, **given)
        tell_estimate(index, found, as_json=as_json, quiet=quiet)
        return
    if resume and not (overwrite or quiet):
        tell_of_going_on(index)
    started = time.perf_counter()
    try:
        from wherefrom.api import build as build_index

        with terminable(), progress_bars(quiet=quiet) as progress, warnings.catch_warnings():
            # What a build warns of stands in its manifest, and is told below.
            warnings.simplefilter("ignore")
            built = build_index(
                model,
                corpus,
                index,
                **given,
                executor=executor,
                resume=resume,
                progress=progress,
                replay=_replay(ctx),
            )
    except KeyboardInterrupt as interrupt:
        raise Interrupted(left_at(index), interrupt) from interrupt
    _tell(index, built.manifest, time.perf_counter() - started, as_json=as_json, quiet=quiet)


def _objective(
    name: str | None, label: str | None, context: int | None, seed: int
) -> Objective | None:
    """The objective asked for; a label asks for classification, and nothing for the model's own."""
    from wherefrom.gradients.objectives import CausalLM, MaskedLM, SequenceClassification

    if name == "sequence-classification" or label is not None:
        return SequenceClassification(label=label or "label", context=context)
    if name == "masked-lm":
        return MaskedLM(context=context, seed=seed)
    return None if name is None else CausalLM(context=context)


def _replay(ctx: click.Context) -> str:
    """The command that builds the same index again, from anywhere and whatever the defaults."""
    arguments, options = [], []
    for parameter in ctx.command.params:
        name = str(parameter.name)
        value = ctx.params.get(name)
        if value is None or name in _NOT_REPLAYED:
            continue
        for item in value if isinstance(value, tuple) else (value,):
            written = _absolute(item) if name in _PATHS and _is_path(name, item) else item
            if isinstance(parameter, click.Argument):
                arguments.append(str(written))
            else:
                options.append(f"{parameter.opts[0]}={written}")
    return shlex.join(["wherefrom", "build", *arguments, *options])


def _absolute(path: str | os.PathLike[str]) -> str:
    """The path from anywhere; a URL is that already."""
    from wherefrom.store import Location

    place = Location(path)
    return str(place) if place.remote else os.path.abspath(path)


def _is_path(name: str, value: object) -> bool:
    """Whether a value is a path: a model may be the id of one in the local cache, too."""
    return name not in _PATHS_OR_IDS or os.path.exists(str(value))


def _tell(index: Path, manifest: Manifest, seconds: float, *, as_json: bool, quiet: bool) -> None:
    """Summarise a finished build."""
    from wherefrom.cli.encoders import fidelity_in_words
    from wherefrom.cli.failures import warn
    from wherefrom.cli.render import emit_json, print_facts, terminal
    from wherefrom.store import Location

    place = Location(index)
    corpus, encoder = manifest.corpus, manifest.encoder
    fidelity = encoder.fidelity
    if as_json:
        emit_json(
            {
                "schema": BUILD_SCHEMA,
                "index": place.full,
                "manifest_sha256": manifest.digest,
                **corpus.model_dump(mode="json"),
                "encoder": encoder.name,
                "bytes_per_document": encoder.bytes_per_document,
                "fidelity": fidelity and fidelity.model_dump(mode="json"),
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
        ("index", str(place)),
        ("documents", f"{corpus.documents:,} ({corpus.tokens:,} scored tokens)"),
        ("skipped", skipped),
        ("encoder", f"{encoder.name}: {encoder.bytes_per_document:,.0f} bytes per document"),
        ("fidelity", fidelity_in_words(fidelity)),
        ("seconds", f"{seconds:.1f}"),
    ]
    print_facts(facts, terminal())
