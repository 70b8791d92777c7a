"""Models from a path, a hub id or memory, and their fingerprints.

Nothing is fetched: a hub id must already be in the local cache. Remote code is never run, and only
safetensors weights are read, never pickles.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import nn

from wherefrom.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "LoadedModel",
    "load_model",
    "load_tokenizer",
    "resolve_device",
    "tokenizer_sha256",
    "weights_sha256",
]

LONGEST_CONTEXT = 1024
"""Longest passage in tokens, unless the objective says otherwise."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be differentiated.

    Attributes:
        module: On its device, in float32 when it was loaded here.
        tokenizer: The tokenizer saved with it, if it was loaded here.
        source: Where it was loaded from (absolute path or hub id); ``None`` if it was handed over.
    """

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    source: str | None

    @property
    def context(self) -> int:
        """Longest passage in tokens that the model takes, at most 1024."""
        config = getattr(self.module, "config", None)
        limit = getattr(config, "max_position_embeddings", None)
        return min(int(limit), LONGEST_CONTEXT) if limit else LONGEST_CONTEXT


def resolve_device(device: str) -> torch.device:
    """``auto`` is a GPU when there is one.

    Raises:
        ModelError: The device does not exist here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {device!r} is not available here; give 'auto', 'cpu' or 'cuda'"
        ) from error
    return chosen


def load_model(model: nn.Module | str | os.PathLike[str], device: str = "auto") -> LoadedModel:
    """A module as it is, or a Hugging Face causal language model from a path or the local cache.

    Raises:
        ModelError: There is none, or it cannot be loaded without running code or unpickling.
    """
    place = resolve_device(device)
    if isinstance(model, nn.Module):
        source = getattr(model, "name_or_path", "") or ""
        # What is loaded from a folder is float32; a module in another precision is not what a
        # later session would load.
        same = all(p.dtype == torch.float32 for p in model.parameters())
        kept = str(Path(source).resolve()) if source and Path(source).is_dir() and same else None
        return LoadedModel(model.to(place), None, kept)
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(
            f"model is a {type(model).__name__}; give a torch.nn.Module or the path of a Hugging "
            "Face model"
        )
    return _load_pretrained(os.fspath(model), place)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model.

    Raises:
        ModelError: There is none that can be loaded without running code.
    """
    from transformers import AutoTokenizer

    with _explained(source, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, local_files_only=True, trust_remote_code=False
        )
    return tokenizer


def _load_pretrained(name: str, place: torch.device) -> LoadedModel:
    from transformers import AutoModelForCausalLM

    folder = Path(name)
    if folder.is_file():
        raise ModelError(f"{name} is a file; give the folder of a saved Hugging Face model")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(f"{name} holds no config.json; give the folder of a saved model")
    source = str(folder.resolve()) if folder.is_dir() else name
    with _explained(source, "causal language model"):
        module: nn.Module = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    return LoadedModel(module.to(place), load_tokenizer(source), source)


@contextmanager
def _explained(source: str, what: str) -> Iterator[None]:
    """Loads without progress bars, and turns what transformers raises into one line."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load {source!r} as a {what}: {first} (nothing is downloaded: give the folder "
            "of a model saved with save_pretrained, safetensors weights and tokenizer included)"
        ) from error
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers: names, types, shapes and bytes, by sorted name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
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
