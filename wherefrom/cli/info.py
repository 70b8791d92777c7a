"""``wherefrom info``: what an index holds and what it was built from and with."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wherefrom.errors import StorageError, UnfinishedIndexError

if TYPE_CHECKING:
    from wherefrom.store import Manifest

__all__ = ["INFO_SCHEMA", "info"]

INFO_SCHEMA = "wherefrom-info/1"

_CHANGES_SHOWN = 10


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a list.")
def info(index: Path, as_json: bool) -> None:
    """Show what INDEX holds, and how it was built and changed.

    Exit status 1 for a build that was interrupted and for anything that is no index.
    """
    from wherefrom.cli.render import emit_json, print_facts, terminal
    from wherefrom.store import Location, Manifest, build_info, state
    from wherefrom.store.lock import writer_lock

    if state(index) == "unfinished":
        noted = build_info(index)
        if as_json:
            fields = {"schema": INFO_SCHEMA, "path": str(index.resolve()), "state": "unfinished"}
            emit_json({**fields, "build": noted})
        else:
            facts = [("state", "unfinished"), *((k, v) for k, v in noted.items() if v)]
            print_facts(facts, terminal())
        with suppress(StorageError), writer_lock(index):  # Where somebody builds it, it says so.
            pass
        raise UnfinishedIndexError(
            f"{index} holds an unfinished build; run the command that began it again to go on, or "
            "remove it"
        )
    manifest = Manifest.read(index)
    location = Location.of(index)
    size = sum(location.objects.sizes("").values()) if location.remote else _bytes_on_disk(index)
    if as_json:
        emit_json(
            {
                "schema": INFO_SCHEMA,
                "path": location.full,
                "state": "finished",
                "bytes_on_disk": size,
                "manifest_sha256": manifest.digest,
                "manifest": manifest.model_dump(mode="json"),
            }
        )
    else:
        print_facts(_facts(manifest, size), terminal())


def _bytes_on_disk(index: Path) -> int:
    from wherefrom.store import storage_errors

    with storage_errors(index):
        return sum(
            os.path.getsize(os.path.join(folder, name))
            for folder, _, names in os.walk(index)
            for name in names
        )


def _facts(manifest: Manifest, size: int) -> list[tuple[str, object]]:
    """What a reader wants to know, most important first."""
    from wherefrom.cli.encoders import encoder_facts
    from wherefrom.cli.render import readable_size

    model, corpus = manifest.model, manifest.corpus
    versions = manifest.versions
    cut = "" if corpus.parents == corpus.documents else f", passages of {corpus.parents:,}"
    metadata = ", ".join(f"{name} ({kind})" for name, kind in manifest.metadata.items())
    return [
        ("state", "finished"),
        ("documents", f"{corpus.documents:,}{cut}"),
        ("scored tokens", f"{corpus.tokens:,}"),
        ("skipped", f"{corpus.skipped_count:,}"),
        ("metadata", metadata or "none"),
        ("model", _model(manifest)),
        ("weights SHA-256", model.weights_sha256),
        *_adapter(manifest),
        ("tokenizer SHA-256", model.tokenizer_sha256),
        ("objective", _objective(manifest)),
        ("layers", _layers(manifest)),
        ("curvature", _curvature(manifest)),
        ("scale", f"1/N = {manifest.scale:.6g} (N = {round(1 / manifest.scale):,} documents)"),
        *encoder_facts(manifest.encoder),
        *_background(manifest),
        *_exact_scores(manifest),
        *_accelerators(manifest),
        ("size on disk", readable_size(size)),
        ("created", manifest.created),
        *_history(manifest),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("corpus SHA-256", corpus.content_sha256),
        ("manifest SHA-256", manifest.digest),
        ("replay", manifest.replay or None),
        *(("warning", warning) for warning in manifest.warnings),
    ]


def _model(manifest: Manifest) -> str:
    model = manifest.model
    task = "" if model.task is None else f", {model.task}"
    return f"{model.architecture}{task}, {model.dtype}, {model.source or 'handed over in memory'}"


def _adapter(manifest: Manifest) -> list[tuple[str, object]]:
    adapter = manifest.model.adapter
    if adapter is None:
        return []
    return [
        ("adapter", adapter.source or "handed over in memory"),
        ("adapter SHA-256", adapter.sha256),
    ]


def _objective(manifest: Manifest) -> str:
    objective = manifest.objective
    options = (
        f"{name} {value if isinstance(value, str) else json.dumps(value)}"
        for name, value in objective.options.items()
        if value is not None
    )
    return ", ".join([objective.kind, *options])


def _curvature(manifest: Manifest) -> str:
    curvature = manifest.curvature
    facts = [curvature.kind, f"damping {curvature.damping:g}"]
    if curvature.fisher is not None:
        facts += [
            f"{curvature.fisher} Fisher",
            f"fitted on {curvature.fit_documents:,} documents",
            f"seed {curvature.seed}",
        ]
    return ", ".join([*facts, *(f"{name} {value:.4g}" for name, value in curvature.report.items())])


def _layers(manifest: Manifest) -> str:
    layers = manifest.layers
    weights = sum(layer.d_out * (layer.d_in + layer.bias) for layer in layers)
    names = layers[0].name + (f" ... {layers[-1].name}" if len(layers) > 1 else "")
    return f"{len(layers):,} with {weights:,} weights: {names}"


def _background(manifest: Manifest) -> list[tuple[str, object]]:
    import numpy as np

    background = manifest.background
    if background is None:
        return []
    low, high = np.interp([0.01, 0.99], background.levels, background.quantiles)
    return [
        (
            "background",
            f"{background.pairs:,} random document/query pairs ({background.queries:,} queries), "
            f"98% of their cosines between {low:+.3g} and {high:+.3g}",
        )
    ]


def _exact_scores(manifest: Manifest) -> list[tuple[str, object]]:
    seconds = manifest.seconds_per_document
    if seconds is None:
        return []
    return [("exact scores", f"{1000 * seconds:.3g} ms per document, as the build measured")]


def _accelerators(manifest: Manifest) -> list[tuple[str, object]]:
    return [
        ("backend", f"{one.kind}, {one.rows:,} vectors, by {one.library}")
        for one in manifest.accelerators
    ]


def _history(manifest: Manifest) -> list[tuple[str, object]]:
    """The state that the index is in, and the changes that led to it, the latest last."""
    shown = manifest.history[-_CHANGES_SHOWN:]
    earlier = len(manifest.history) - len(shown)
    facts: list[tuple[str, object]] = [("generation", f"{manifest.generation:,}")]
    if earlier:
        facts.append(("changes", f"{earlier:,} more before these; --json lists all"))
    for change in shown:
        counts = [
            f"{count:,} {what}"
            for count, what in ((change.added, "added"), (change.removed, "removed"))
            if count
        ]
        if change.drift is not None:
            counts.append(f"{change.drift:.2f} times the whitened energy of the build")
        told = f"{change.when} {change.kind}" + (f": {', '.join(counts)}" if counts else "")
        facts.append((f"  {change.generation:,}", told))
        facts += [("  warning", warning) for warning in change.warnings]
    return facts
