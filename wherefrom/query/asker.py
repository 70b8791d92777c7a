"""The model side of an open index: loaded, checked against the manifest, ready to be asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.persistence import ENCODER_FILE, load_encoder
from wherefrom.encoding.stages import Stages
from wherefrom.errors import IntegrityError, MismatchError, ModelError
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fingerprints import Fingerprint, check_fingerprint, fingerprint
from wherefrom.gradients.layers import Layer, select_layers
from wherefrom.gradients.models import LoadedModel, ModelSource, load_recorded
from wherefrom.gradients.objectives import Objective, TextObjective, objective_from
from wherefrom.gradients.pretrained import load_tokenizer
from wherefrom.store import Location, Manifest, ModelRecord, file_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Asker", "load_asker"]


@dataclass(frozen=True, slots=True)
class Asker:
    """What turns questions into vectors.

    Attributes:
        extractor: Model, objective and layers.
        encoder: The index's own.
    """

    extractor: GradientExtractor
    encoder: Encoder


def load_asker(
    path: str | os.PathLike[str],
    manifest: Manifest,
    model: ModelSource | None,
    base_model: ModelSource | None,
    objective: Objective | None,
    device: str,
) -> Asker:
    """Load a model for an index and make sure that it is the one the index was built with.

    Args:
        path: The index, a directory or a URL.
        manifest: Its manifest.
        model: The model; by default where the manifest says it is.
        base_model: The model that an adapter is for; likewise.
        objective: By default the one that the manifest names.
        device: Where to run the model.

    Raises:
        MismatchError: Weights, adapter, tokenizer, architecture, precision or objective differ;
            the message says which.
        ModelError: The model cannot be loaded, or the objective is one of the user's own.
        IntegrityError: The encoder's file is missing or damaged.
    """
    location = Location.of(path)
    record = manifest.model
    adapter = record.adapter
    loaded = load_recorded(
        source=record.source,
        adapter_source=None if adapter is None else adapter.source,
        dtype=record.dtype,
        device=device,
        model=model,
        base=base_model,
    )
    if objective is None:
        objective = objective_from(manifest.objective.kind, manifest.objective.options)
    if objective.kind != manifest.objective.kind:
        raise MismatchError(
            f"{location} was built for objective {manifest.objective.kind!r}, not "
            f"{objective.kind!r}; open it with the objective it was built with"
        )
    tokenizer = _tokenizer(loaded, objective, record) if record.tokenizer_sha256 else None
    recorded = Fingerprint(
        architecture=record.architecture,
        dtype=record.dtype,
        weights_sha256=record.weights_sha256,
        adapter_sha256=None if adapter is None else adapter.sha256,
        tokenizer_sha256=record.tokenizer_sha256,
    )
    check_fingerprint(location, recorded, fingerprint(loaded.module, tokenizer))
    if isinstance(objective, TextObjective):
        context = manifest.objective.options.get("context")
        objective = objective.bind(
            loaded.module, tokenizer, context=context if isinstance(context, int) else None
        )
    _check_options(location, manifest, objective)
    layers = _layers(location, manifest, loaded.module)
    extractor = GradientExtractor(loaded.module, objective, layers)
    encoder = load_encoder(
        _checked(location.folder(manifest) / ENCODER_FILE, manifest.encoder.file_sha256),
        layers,
        kind=manifest.curvature.kind,
        damping=manifest.curvature.damping,
        documents=manifest.curvature.fit_documents,
        report=manifest.curvature.report,
        stages=Stages.of(manifest.encoder),
        device=extractor.device,
    )
    return Asker(extractor, encoder)


def _checked(file: Path, sha256: str) -> Path:
    """The path of a file, if its digest is the recorded one."""
    if not file.is_file():
        raise IntegrityError(f"{file} is missing; build the index again")
    if file_sha256(file) != sha256:
        raise IntegrityError(f"{file} differs from the manifest's SHA-256; build the index again")
    return file


def _tokenizer(
    loaded: LoadedModel, objective: Objective, record: ModelRecord
) -> PreTrainedTokenizerBase | None:
    """The objective's own, that of the model as loaded, or the one saved where it was then."""
    own = objective.tokenizer if isinstance(objective, TextObjective) else None
    if own is not None or loaded.tokenizer is not None:
        return loaded.tokenizer if own is None else own
    if record.source is None:
        return None
    return load_tokenizer(record.source, None if record.adapter is None else record.adapter.source)


def _check_options(location: Location, manifest: Manifest, objective: Objective) -> None:
    """Refuse the right kind of objective with other settings."""
    found = dict(objective.options())
    for name, recorded in manifest.objective.options.items():
        if found.get(name) != recorded:
            raise MismatchError(
                f"{location} was built for {objective.kind} with {name}={recorded!r}, not "
                f"{found.get(name)!r}; open it with the objective it was built with"
            )


def _layers(location: Location, manifest: Manifest, module: nn.Module) -> tuple[Layer, ...]:
    """The recorded layers, found in a model whose weights are the recorded ones."""
    try:
        return select_layers(module, [layer.name for layer in manifest.layers])
    except ModelError as error:
        raise MismatchError(
            f"{location} was built over layers that this model has not ({error}); open it with "
            "the module it was built with: an adapter's name is part of its layers' names"
        ) from error
