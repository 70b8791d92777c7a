"""What a manifest says of a build: its model, layers, curvature, encoder and software."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.gradients.fingerprints import fingerprint
from wherefrom.gradients.fisher import Fisher
from wherefrom.gradients.layers import Layer
from wherefrom.gradients.models import LoadedModel
from wherefrom.gradients.objectives import Objective, TextObjective
from wherefrom.indexer.choice import Chosen
from wherefrom.store import (
    AdapterRecord,
    CurvatureRecord,
    EncoderRecord,
    LayerRecord,
    ModelRecord,
)

__all__ = [
    "curvature_record",
    "encoder_record",
    "layer_records",
    "model_record",
    "now",
    "versions",
]

_LIBRARIES = ("wherefrom", "torch", "transformers", "lancedb", "pyarrow", "numpy", "safetensors")


def model_record(loaded: LoadedModel, objective: Objective) -> ModelRecord:
    """Where the model is from, and fingerprints of its weights and tokenizer."""
    tokenizer = objective.bound_tokenizer if isinstance(objective, TextObjective) else None
    found = fingerprint(loaded.module, tokenizer)
    adapter = None
    if found.adapter_sha256 is not None:
        adapter = AdapterRecord(source=loaded.adapter_source, sha256=found.adapter_sha256)
    return ModelRecord(
        kind=loaded.kind,
        source=loaded.source,
        task=loaded.task,
        dtype=found.dtype,
        weights_sha256=found.weights_sha256,
        tokenizer_sha256=found.tokenizer_sha256,
        architecture=found.architecture,
        adapter=adapter,
    )


def layer_records(layers: Sequence[Layer]) -> tuple[LayerRecord, ...]:
    """Names, kinds and shapes."""
    return tuple(
        LayerRecord(
            name=layer.name, kind=layer.kind, d_in=layer.d_in, d_out=layer.d_out, bias=layer.bias
        )
        for layer in layers
    )


def curvature_record(
    curvature: FittedCurvature, fisher: Fisher | None, seed: int
) -> CurvatureRecord:
    """The curvature, and how it was fitted."""
    return CurvatureRecord(
        kind=curvature.kind,
        damping=curvature.damping,
        whitened=all(map(curvature.whitens, range(len(curvature.layers)))),
        fisher=fisher,
        fit_documents=curvature.documents,
        seed=seed,
        report=dict(curvature.report),
    )


def encoder_record(chosen: Chosen, sha256: str) -> EncoderRecord:
    """The encoder's stages, its file, and how it was chosen."""
    stages = chosen.stages
    return EncoderRecord(
        name=stages.describe(),
        reduce=stages.reduce,
        reduced=stages.reduced,
        sketched=stages.sketched,
        pca=stages.pca,
        rotate=stages.rotate,
        bits=stages.bits,
        dimension=stages.dimension,
        seed=stages.seed,
        bytes_per_document=chosen.bytes_per_document,
        file_sha256=sha256,
        fidelity=chosen.fidelity,
        choice=chosen.choice,
    )


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def now() -> str:
    """ISO 8601, UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")
