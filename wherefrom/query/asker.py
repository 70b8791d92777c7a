"""The model side of an open index: loaded, checked against the manifest, ready to be asked."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.persistence import ENCODER_FILE, load_encoder
from wherefrom.errors import MismatchError, ModelError
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.layers import Layer, select_layers
from wherefrom.gradients.models import load_model, load_tokenizer, tokenizer_sha256, weights_sha256
from wherefrom.gradients.objectives import CausalLM, Classification, Objective
from wherefrom.store import Manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Asker", "load_asker"]


@dataclass(frozen=True, slots=True)
class Asker:
    """What turns questions into vectors.

    Attributes:
        extractor: Model, objective and layers.
        encoder: The index's own.
        tokenizer: For text.
    """

    extractor: GradientExtractor
    encoder: Encoder
    tokenizer: PreTrainedTokenizerBase | None


def load_asker(
    path: Path,
    manifest: Manifest,
    model: nn.Module | str | os.PathLike[str],
    objective: Objective | None,
    device: str,
) -> Asker:
    """Load a model for an index and make sure that it is the one the index was built with.

    Raises:
        MismatchError: Weights, tokenizer, architecture or objective differ; the message says which.
        ModelError: The model cannot be loaded.
        IntegrityError: The encoder's file is missing or damaged.
    """
    loaded = load_model(model, device)
    if objective is None:
        objective = _objective_of(manifest)
    if objective.kind != manifest.objective.kind:
        raise MismatchError(
            f"{path} was built for objective {manifest.objective.kind!r}, not {objective.kind!r}; "
            "open it with the objective it was built with"
        )
    tokenizer = getattr(objective, "tokenizer", None) or loaded.tokenizer
    if tokenizer is None and manifest.model.tokenizer_sha256 and manifest.model.source:
        tokenizer = load_tokenizer(manifest.model.source)
    _check(path, manifest, loaded.module, tokenizer)
    layers = tuple(_layer(loaded.module, record.name) for record in manifest.layers)
    extractor = GradientExtractor(loaded.module, objective, layers)
    encoder = load_encoder(
        path / ENCODER_FILE,
        manifest.encoder.file_sha256,
        layers,
        damping=manifest.curvature.damping,
        documents=manifest.curvature.fit_documents,
        reduction=manifest.encoder.kind,
        dimension=manifest.encoder.dimension,
        seed=manifest.encoder.seed,
        device=extractor.device,
    )
    return Asker(extractor, encoder, tokenizer)


def _objective_of(manifest: Manifest) -> Objective:
    if manifest.objective.kind == CausalLM.kind:
        return CausalLM(context=manifest.objective.context)
    if manifest.objective.kind == Classification.kind:
        return Classification()
    raise ModelError(
        f"the index was built with an objective of your own, {manifest.objective.kind!r}; open it "
        "with objective=..."
    )


def _layer(module: nn.Module, name: str) -> Layer:
    (layer,) = select_layers(module, [name])
    return layer


def _check(
    path: Path,
    manifest: Manifest,
    module: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
) -> None:
    """Refuse any model or tokenizer but the index's own, saying what differs."""
    record = manifest.model
    if type(module).__name__ != record.architecture:
        raise MismatchError(
            f"{path} was built with a {record.architecture}, this model is a "
            f"{type(module).__name__}; open it with the model it was built with"
        )
    weights = weights_sha256(module)
    if weights != record.weights_sha256:
        raise MismatchError(
            f"the model's weights (SHA-256 {weights[:12]}...) are not those that {path} was built "
            f"with ({record.weights_sha256[:12]}...); open it with that checkpoint or build again"
        )
    if tokenizer is None and record.tokenizer_sha256 is not None:
        raise MismatchError(
            f"{path} holds text, and a model in memory brings no tokenizer; give "
            "objective=wf.CausalLM(tokenizer)"
        )
    found = None if tokenizer is None else tokenizer_sha256(tokenizer)
    if found != record.tokenizer_sha256:
        raise MismatchError(
            f"the tokenizer (SHA-256 {str(found)[:12]}...) is not the one that {path} was built "
            f"with ({str(record.tokenizer_sha256)[:12]}...); open it with that one or build again"
        )
