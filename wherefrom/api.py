"""``wherefrom.build`` and ``wherefrom.open``: the two ways to an :class:`Index`."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence

from wherefrom.gradients.fisher import Fisher
from wherefrom.gradients.models import ModelSource
from wherefrom.gradients.objectives import Objective
from wherefrom.indexer.builder import Documents, IndexBuilder
from wherefrom.indexer.options import BuildOptions
from wherefrom.maintenance.index import Index
from wherefrom.records import Progress

__all__ = ["build", "open"]


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
    metadata_columns: Collection[str] | None = None,
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
        path: The directory to make.
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
        overwrite: Replace an index at ``path``; anything else there is left alone.
        metadata_columns: For a path, the columns to keep as metadata; all by default.
        progress: Called as ``progress(phase, done, total)``.
        replay: The command that builds this index again, to be recorded in the manifest.

    Returns:
        The index, open.

    Raises:
        WherefromError: With one line that says what is wrong and what to do; nothing half-built is
            left.
    """
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
    builder = IndexBuilder(
        model,
        documents,
        path,
        options,
        objective=objective,
        context=context,
        base_model=base_model,
        dtype=dtype,
        device=device,
        overwrite=overwrite,
        metadata_columns=metadata_columns,
        progress=progress,
        replay=replay,
    )
    built = builder.run()
    return Index(built, model=builder.model, objective=builder.objective, device=device)


def open(
    path: str | os.PathLike[str],
    *,
    model: ModelSource | None = None,
    base_model: ModelSource | None = None,
    objective: Objective | None = None,
    device: str = "auto",
) -> Index:
    """Open an index and the model it was built with.

    Args:
        path: The index.
        model: The model; by default the one the manifest names. An index over a model from memory
            opens without it, but cannot be asked then.
        base_model: The model that an adapter is for; by default the one the manifest names.
        objective: Needed for an objective of your own only.
        device: Where to run the model.

    Raises:
        NotAnIndexError: The path holds no index.
        UnfinishedIndexError: It holds an interrupted build.
        MismatchError: Model or tokenizer is another one; the message says which.
        ModelError: The model cannot be loaded.
        IntegrityError: Files are missing or damaged.
    """
    return Index(path, model=model, base_model=base_model, objective=objective, device=device)
