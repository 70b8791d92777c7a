"""Fingerprints: only the model an index was built with may answer for it.

Base and adapter have a digest each, so that an index over an adapter and one over its base name
the same base. The digests are of the weights in memory, in their types: the same checkpoint in
another precision is another function.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from wherefrom.errors import MismatchError, ModelError
from wherefrom.gradients.adapter_weights import plain_model, weight_parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "DTYPES",
    "DType",
    "Fingerprint",
    "adapter_sha256",
    "check_fingerprint",
    "fingerprint",
    "tokenizer_sha256",
    "weights_dtype",
    "weights_sha256",
]

DType = Literal["float32", "bfloat16", "float16", "float64"]
"""A precision in which a model can run here."""

DTYPES: Mapping[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
"""The same as torch has them."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells one model from another.

    Attributes:
        architecture: Name of the class of the plain model.
        dtype: Precision of most of its weights.
        weights_sha256: See :func:`weights_sha256`.
        adapter_sha256: See :func:`adapter_sha256`.
        tokenizer_sha256: See :func:`tokenizer_sha256`; ``None`` where none is used.
    """

    architecture: str
    dtype: DType
    weights_sha256: str
    adapter_sha256: str | None
    tokenizer_sha256: str | None


def fingerprint(model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> Fingerprint:
    """Take the fingerprint of a model and of the tokenizer it is used with.

    Raises:
        ModelError: The weights are in no supported precision, the adapter is no LoRA adapter, or
            the tokenizer is not a fast one.
    """
    return Fingerprint(
        architecture=type(plain_model(model)).__name__,
        dtype=weights_dtype(model),
        weights_sha256=weights_sha256(model),
        adapter_sha256=adapter_sha256(model),
        tokenizer_sha256=None if tokenizer is None else tokenizer_sha256(tokenizer),
    )


def check_fingerprint(
    index: str | os.PathLike[str], recorded: Fingerprint, found: Fingerprint
) -> None:
    """Refuse any model or tokenizer but the index's own.

    Args:
        index: The index's path, for the message.
        recorded: What the index was built with.
        found: What it is to be opened with.

    Raises:
        MismatchError: They differ; the message says in what.
    """
    if found.architecture != recorded.architecture:
        raise MismatchError(
            f"{index} was built with a {recorded.architecture}, this model is a "
            f"{found.architecture}; open it with the model it was built with"
        )
    if found.dtype != recorded.dtype:
        raise MismatchError(
            f"{index} was built in {recorded.dtype}, this model is in {found.dtype}; give the "
            f"model's path instead, or module.to(torch.{recorded.dtype}) if it was loaded from "
            f"{recorded.dtype} weights"
        )
    _check_adapter(index, recorded.adapter_sha256, found.adapter_sha256)
    if found.weights_sha256 != recorded.weights_sha256:
        part = "model's" if recorded.adapter_sha256 is None else "base model's"
        raise MismatchError(
            f"the {part} weights (SHA-256 {found.weights_sha256[:12]}...) are not those that "
            f"{index} was built with ({recorded.weights_sha256[:12]}...); open it with that "
            "checkpoint or build again"
        )
    if recorded.tokenizer_sha256 is None:
        return  # Built over tensors: whatever tokenizer the model brings takes no part.
    if found.tokenizer_sha256 is None:
        raise MismatchError(
            f"{index} holds text, and a model in memory brings no tokenizer; give the objective it "
            "was built with and the tokenizer, as objective=wf.CausalLM(tokenizer)"
        )
    if found.tokenizer_sha256 != recorded.tokenizer_sha256:
        raise MismatchError(
            f"the tokenizer (SHA-256 {found.tokenizer_sha256[:12]}...) is not the one that {index} "
            f"was built with ({recorded.tokenizer_sha256[:12]}...); open it with that one or build "
            "again"
        )


def _check_adapter(index: str | os.PathLike[str], recorded: str | None, found: str | None) -> None:
    if found == recorded:
        return
    if found is None:
        raise MismatchError(
            f"{index} was built with a LoRA adapter (SHA-256 {str(recorded)[:12]}...), this model "
            "has none in use; open it with the adapter on its base"
        )
    if recorded is None:
        raise MismatchError(
            f"{index} was built without an adapter, this model has one in use (SHA-256 "
            f"{found[:12]}...); open it with the plain model"
        )
    raise MismatchError(
        f"the adapter (SHA-256 {found[:12]}...) is not the one that {index} was built with "
        f"({recorded[:12]}...); open it with that adapter or build again"
    )


def weights_dtype(model: nn.Module) -> DType:
    """Precision of most of the plain model's weights.

    Some architectures keep a few weights in float32 whatever they are loaded in, so that only
    most of them have the model's own precision.

    Raises:
        ModelError: It has no weights, or weights in no supported precision.
    """
    entries: Counter[torch.dtype] = Counter()
    for tensor in weight_parts(model).base.values():
        if tensor.is_floating_point():
            entries[tensor.dtype] += tensor.numel()
    common = entries.most_common(1)
    for name, dtype in DTYPES.items():
        if common and common[0][0] == dtype:
            return name
    found = str(common[0][0]).removeprefix("torch.") if common else "no floating-point type"
    raise ModelError(
        f"the weights of this {type(model).__name__} have {found}; give a model in "
        f"{', '.join(DTYPES)}"
    )


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of the plain model's parameters and buffers, without its adapters.

    Names, types, shapes and bytes count, by sorted name. A model with a LoRA adapter on has the
    digest of the model without it, but where the adapter replaces a module (``modules_to_save``)
    or was merged: a replaced module does not count, and merged weights count as they are.

    Raises:
        ModelError: It holds an adapter of another kind than LoRA.
    """
    return _digest(weight_parts(model).base)


def adapter_sha256(model: nn.Module) -> str | None:
    """SHA-256 of the LoRA adapters in use: weights, scaling, variant, merged or not.

    What an adapter is called does not count, nor the order of several.

    Returns:
        The digest; ``None`` where no adapter is in use.

    Raises:
        ModelError: It holds an adapter of another kind than LoRA.
    """
    parts = weight_parts(model)
    names = parts.adapters.keys() | parts.settings.keys()
    if not names:
        return None
    digests = sorted(
        _digest(parts.adapters.get(name, {}), parts.settings.get(name, {})) for name in names
    )
    return hashlib.sha256("|".join(digests).encode()).hexdigest()


def _digest(weights: Mapping[str, Tensor], settings: Mapping[str, str] | None = None) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    for name, setting in sorted((settings or {}).items()):
        digest.update(f"{name}|{setting}|".encode())
    return digest.hexdigest()


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of what decides a text's tokens: the fast tokenizer itself and its chat template.

    Raises:
        ModelError: It is not a fast tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ModelError(
            f"{type(tokenizer).__name__} is not a fast tokenizer; wherefrom needs its character "
            "offsets: load it with use_fast=True"
        )
    template = getattr(tokenizer, "chat_template", None) or ""
    # Truncation and padding are settings of the last call, not of the tokenizer.
    copy = type(backend).from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return hashlib.sha256(f"{copy.to_str()}|{template}".encode()).hexdigest()
