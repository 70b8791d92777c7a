"""``wherefrom.build`` and ``wherefrom.open``: the two ways to an :class:`Index`; ``estimate``."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import fields
from typing import Any

from wherefrom.gradients.fisher import Fisher
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective
from wherefrom.indexer.builder import IndexBuilder
from wherefrom.indexer.estimate import Estimate
from wherefrom.indexer.estimate import estimate as measured_estimate
from wherefrom.indexer.executors import Executor
from wherefrom.indexer.executors.torchrun import is_follower, serve
from wherefrom.indexer.options import BuildOptions
from wherefrom.indexer.planning import Documents
from wherefrom.maintenance.index import Index
from wherefrom.maintenance.publish import building_folder, publish
from wherefrom.records import Progress
from wherefrom.store import Location

__all__ = ["build", "estimate", "open"]


def build(
    model: ModelSource,
    documents: Documents,
    path: str | os.PathLike[str],
    *,
    objective: Objective | None = None,
    context: int | None = None,
    base_model: ModelSource | None = None,
    dtype: str = "float32",
    curvature: str = "ekfac",
    damping: float | None = None,
    fisher: Fisher | None = None,
    layers: str | Sequence[str] | None = None,
    encoder: str = "auto",
    bits: int | None = None,
    pca: int | None = None,
    bytes_per_document: int | None = None,
    fidelity: float | None = None,
    fit_documents: int | float | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = True,
    metadata_columns: Collection[str] | None = None,
    executor: str | Executor | None = None,
    workers: int | None = None,
    threads: int | None = None,
    factor_memory: int | None = None,
    progress: Progress | None = None,
    replay: str | None = None,
) -> Index:
    """Index a training corpus by influence on a model.

    Args:
        model: An ``nn.Module``, or the path (or locally cached id) of a Hugging Face causal LM,
            masked LM or sequence classifier, or of a LoRA adapter saved by PEFT.
        documents: A path (.jsonl, .jsonl.gz, .csv, .parquet, .txt, a folder of text, a saved
            ``datasets`` folder), an iterable of :class:`Document`, or ``(inputs, targets)``
            tensors.
        path: The directory to make; or a URL of object storage (``s3://bucket/name``), where the
            index is published once it is built in the local cache.
        objective: ``CausalLM``, ``MaskedLM`` or ``SequenceClassification`` for text (by default
            what the model was trained for); ``Classification`` (the default), ``Regression`` or
            ``Diffusion`` for tensors; or your own.
        context: Longest text in tokens, where the objective names none; longer ones are cut into
            passages. By default the model's limit, at most 1024.
        base_model: The model that an adapter is for, if not the one it names.
        dtype: Precision of weights loaded from a path; the curvature is float32 at least.
        curvature: ``ekfac``, ``kfac``, ``diagonal``, ``identity`` (gradient dot products),
            ``datainf``, ``lissa`` or ``exact``; see ``docs/guide.md``.
        damping: lambda of each layer in units of its mean eigenvalue; 0.1 by default, and 0 for
            ``identity``. Another one may be asked for in each query.
        fisher: Where the curvature's labels come from: ``sampled`` from the model (default for
            language models), ``expected`` over all classes (default for classifiers of up to 1000
            classes) or ``empirical``, the true labels.
        layers: ``mlp`` (default for transformers), ``attention``, ``linear`` (default elsewhere),
            ``lora`` (default for adapters), or glob patterns of module names.
        encoder: How vectors are shortened: ``sketch``, ``energy``, ``random`` (the baseline),
            ``none`` (all coordinates), or ``auto``: the best that the budget allows, measured on a
            sample of the documents. See ``docs/guide.md``.
        bits: Of a stored entry: 1, 2, 4, 8 (integers with one scale a vector), 16 or 32 (floats);
            chosen by measurement by default, and 32 for ``none`` without a budget.
        pca: Project what the encoder leaves on so many directions, fitted on a sample; their basis
            counts in the bytes.
        bytes_per_document: Budget of a stored vector; 4096 by default, and without limit if a
            fidelity is asked for.
        fidelity: Take the smallest encoder with that recall (top 10 in 100) and that correlation of
            summed scores with uncompressed ones, as 0.95.
        fit_documents: Fit the curvature on so many documents (int) or such a share (float), chosen
            by a hash of their ids; all by default.
        batch_size: Most documents that run together.
        seed: Of everything random.
        device: ``auto``, ``cpu``, ``cuda``, ...
        overwrite: Replace an index at ``path``, or an unfinished build of something else there;
            what is no index is left alone.
        resume: Go on with an interrupted build of the same at ``path``, which ends with the same
            bits as if it had not been interrupted (with the same ``threads`` and ``batch_size``);
            else begin anew.
        metadata_columns: For a path, the columns to keep as metadata; all by default.
        executor: What carries out the work: ``serial`` (this process), ``processes`` (several, each
            with a model of its own), ``ray``, or ``torchrun`` (the default where torchrun started
            this process). Vectors are the same to the last bit for the same ``threads``.
        workers: How many tasks run at once, for ``processes`` and ``ray``; by default one a GPU, or
            as many as the processors allow.
        threads: Of torch in each worker; as many as here by default.
        factor_memory: Bytes that the curvature's factors may take, in memory at once; half of the
            machine's by default. With less, more passes over the documents gather them.
        progress: Called as ``progress(phase, done, total)``.
        replay: The command that builds this index again, to be recorded in the manifest.

    Returns:
        The index, open.

    Raises:
        WherefromError: With one line that says what is wrong and what to do. What was built is
            taken back, or left to go on with where that may help: after a full disk, too little
            memory, workers that died.
    """
    if executor in (None, "torchrun") and is_follower():
        serve()
        return Index(path, model=model, base_model=base_model, objective=objective, device=device)
    options = BuildOptions(
        curvature=curvature,
        damping=damping,
        fisher=fisher,
        layers=layers,
        encoder=encoder,
        bits=bits,
        pca=pca,
        bytes_per_document=bytes_per_document,
        fidelity=fidelity,
        fit_documents=fit_documents,
        batch_size=batch_size,
        seed=seed,
    )
    place = Location(path)
    folder = building_folder(place, overwrite=overwrite) if place.remote else place.directory
    builder = IndexBuilder(
        model,
        documents,
        folder,
        options,
        objective=objective,
        context=context,
        base_model=base_model,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        resume=resume,
        metadata_columns=metadata_columns,
        executor=executor,
        workers=workers,
        threads=threads,
        factor_memory=factor_memory,
        progress=progress,
        replay=replay,
    )

    def publish_there(built: os.PathLike[str]) -> None:
        if place.remote:
            publish(built, place, replace=overwrite, progress=progress)

    built = builder.run(publish_there)
    return Index(
        place if place.remote else built,
        model=builder.model,
        objective=builder.objective,
        device=device,
    )


def estimate(
    model: ModelSource,
    documents: Documents,
    path: str | os.PathLike[str],
    *,
    workers: int | None = None,
    sample: int | None = None,
    **given: Any,
) -> Estimate:
    """What :func:`build` will take in time, memory and disk, measured on a sample of the documents.

    Nothing of it stays. It holds for this machine, while nothing else runs on it.

    Args:
        model: As for :func:`build`, as are all but ``sample``.
        documents: What would be indexed; an iterator is used up.
        path: Where the index would stand; the sample is built beside it for a while.
        workers: How many tasks would run at once, each on processors of its own.
        sample: Documents to go over; as many as a minute or so allows, up to 1024, by default.
        **given: What else :func:`build` takes.

    Raises:
        WherefromError: What the build would refuse.
    """
    names = {field.name for field in fields(BuildOptions)}
    options = BuildOptions(**{name: value for name, value in given.items() if name in names})
    place = Location(path)
    overwrite = bool(given.get("overwrite"))
    folder = building_folder(place, overwrite=overwrite) if place.remote else place.directory
    others = {name: value for name, value in given.items() if name not in names}
    return measured_estimate(
        model, documents, folder, options, workers=workers or 1, sample=sample, **others
    )


def open(
    path: str | os.PathLike[str],
    *,
    model: ModelSource | None = None,
    base_model: ModelSource | None = None,
    objective: Objective | None = None,
    device: str = "auto",
    executor: str = "serial",
    workers: int | None = None,
) -> Index:
    """Open an index and the model it was built with.

    Args:
        path: The index: a directory, or the URL that it is published at.
        model: The model; by default the one the manifest names. An index over a model from memory
            opens without it, but cannot be asked then.
        base_model: The model that an adapter is for; by default the one the manifest names.
        objective: Needed for an objective of your own only.
        device: Where to run the model.
        executor: Where to scan the codes: ``serial`` in this process, by torch's threads;
            ``processes`` of this machine or ``ray`` actors, each of which holds a shard. Answers
            are the same to the last bit. Close the index (``with wf.open(...) as index``) to let
            the workers go.
        workers: How many shards; by default one a thread of torch, or a processor of the cluster.

    Raises:
        NotAnIndexError: The path holds no index.
        UnfinishedIndexError: It holds an interrupted build.
        MismatchError: Model or tokenizer is another one; the message says which.
        ModelError: The model cannot be loaded.
        IntegrityError: Files are missing or damaged.
        MissingExtraError: Ray is not installed.
        ExecutionError: Ray cannot be reached.
    """
    return Index(
        path,
        model=model,
        base_model=base_model,
        objective=objective,
        device=device,
        executor=executor,
        workers=workers,
    )
