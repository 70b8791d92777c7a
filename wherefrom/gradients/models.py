"""Models from a path, a hub id or memory, with or without a LoRA adapter."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from wherefrom.errors import ModelError
from wherefrom.gradients.adapter_weights import has_adapters, plain_model
from wherefrom.gradients.adapters import Adapter, attach_adapter, is_adapter, read_adapter
from wherefrom.gradients.fingerprints import DTYPES
from wherefrom.gradients.pretrained import (
    TASKS,
    Task,
    config_of,
    folder_of,
    labels_brought,
    load_pretrained,
    load_tokenizer,
    task_of,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["LoadedModel", "ModelSource", "load_model", "load_recorded", "resolve_device"]

ModelSource = nn.Module | str | os.PathLike[str]
"""A model in memory, or the path or cached id of a saved one."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be differentiated.

    Attributes:
        module: On its device; a ``peft.PeftModel`` where it has an adapter.
        tokenizer: The tokenizer saved with it, if it was loaded here.
        source: Where it, or an adapter's base, was loaded from (absolute path or hub id); ``None``
            if it was handed over.
        task: What it was trained for; ``None`` for a module that is not of transformers.
        adapter_source: Where its adapter was loaded from; ``None`` without one, or where it was
            handed over.
    """

    module: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    source: str | None
    task: Task | None
    adapter_source: str | None = None

    @property
    def kind(self) -> Literal["huggingface", "adapter", "module"]:
        """How an index finds it again: a saved model, a saved adapter on its base, or not."""
        if self.adapter_source is not None:
            return "adapter"
        return "module" if self.source is None else "huggingface"


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


def load_model(
    model: ModelSource,
    device: str = "auto",
    *,
    base: ModelSource | None = None,
    dtype: str = "float32",
) -> LoadedModel:
    """Load a model, or take the one handed over.

    Args:
        model: A module (also a ``peft.PeftModel``), taken as it is; or the path or cached id of a
            saved causal language model, sequence classifier or masked language model, opened as
            what its configuration says it is; or that of a saved LoRA adapter.
        device: ``auto``, ``cpu``, ``cuda``, ...; a module that is spread over several devices
            stays there.
        base: The model that the adapter was trained on; by default the one it names. A module is
            copied, and keeps its precision.
        dtype: Precision of the weights that are loaded: ``float32``, ``bfloat16``, ``float16`` or
            ``float64``. A module keeps its own.

    Raises:
        ModelError: There is none, it cannot be loaded without running code or unpickling, it lacks
            weights, or adapter and base do not fit.
        MissingExtraError: It is an adapter, and PEFT is not installed.
    """
    place = resolve_device(device)
    precisions = {str(name): precision for name, precision in DTYPES.items()}
    if dtype not in precisions:
        raise ModelError(f"dtype is {dtype!r}; give one of {', '.join(DTYPES)}")
    for role, given in (("model", model), ("base_model", base)):
        if given is not None or role == "model":
            _check_type(role, given)
    if isinstance(model, nn.Module):
        if base is not None:
            raise ModelError(
                "base_model is for the path of an adapter, and the model is a module that holds "
                "all it needs; leave base_model out"
            )
        return _handed_over(model, place)
    folder, source = folder_of(model)
    if is_adapter(folder):
        return _load_adapter(folder, source, base, precisions[dtype], place)
    if base is not None:
        raise ModelError(
            f"base_model is for adapters, and {source} holds a whole model (no "
            "adapter_config.json); leave base_model out"
        )
    task = _task_of_folder(folder)
    module = load_pretrained(folder, task, precisions[dtype])
    return LoadedModel(module.to(place), load_tokenizer(source), source, task)


def load_recorded(
    *,
    source: str | None,
    adapter_source: str | None,
    dtype: str,
    device: str = "auto",
    model: ModelSource | None = None,
    base: ModelSource | None = None,
) -> LoadedModel:
    """Load the model that an index was built with, from where it was or where it is now.

    Args:
        source: Where the model, or the adapter's base, was then; ``None`` if it was handed over.
        adapter_source: Where the adapter was then, if it came from there.
        dtype: Precision that it was loaded in.
        device: Where to run it.
        model: The model or adapter now, if not as recorded.
        base: The adapter's base now, if not as recorded.

    Raises:
        ModelError: It was handed over in memory, is not there any more, or cannot be loaded; the
            message says what to give.
        MissingExtraError: It is an adapter, and PEFT is not installed.
    """
    if isinstance(model, nn.Module):
        return load_model(model, device, base=base)
    if model is None:
        model = adapter_source or source
        if model is None:
            raise ModelError(
                "the index is over a model from memory; open it with that model: "
                "wf.open(path, model=your_model)"
            )
        _check_is_there(os.fspath(model), "model")
    if base is None and is_adapter(folder_of(model)[0]):
        if adapter_source is not None and source is None:
            raise ModelError(
                "the adapter's base was a model from memory; open the index with it: "
                "wf.open(path, base_model=your_base)"
            )
        if source is not None:
            _check_is_there(source, "base_model")
        base = source
    return load_model(model, device, base=base, dtype=dtype)


def _check_is_there(source: str, argument: str) -> None:
    if Path(source).is_absolute() and not Path(source).is_dir():
        raise ModelError(
            f"the index was built with {source}, which is not there any more; name the folder of "
            f"a copy: --{argument.replace('_', '-')} DIR, wf.open(path, {argument}=...)"
        )


def _check_type(role: str, given: object) -> None:
    if not isinstance(given, (nn.Module, str, os.PathLike)):
        raise ModelError(
            f"{role} is a {type(given).__name__}; give a torch.nn.Module or the path of a Hugging "
            "Face model"
        )


def _handed_over(module: nn.Module, place: torch.device) -> LoadedModel:
    plain = plain_model(module)
    architecture = type(plain).__name__
    # A module that has no such attribute is not of transformers, which need not be imported then.
    name = getattr(plain, "name_or_path", None)
    source = None
    if name and (Path(name) / "config.json").is_file() and not has_adapters(module):
        # Only what a later session would load from there again: one precision, the same class.
        types = {p.dtype for p in module.parameters()}
        saved = config_of(Path(name)).architectures or []
        if len(types) == 1 and types <= set(DTYPES.values()) and architecture in saved[:1]:
            source = str(Path(name).resolve())
    task = None if name is None else task_of(architecture)
    return LoadedModel(_placed(module, place), None, source, task)


def _placed(module: nn.Module, place: torch.device) -> nn.Module:
    """The module on a device; one that is spread over several (``device_map``) stays where it is.

    Raises:
        ModelError: Some of its weights are on no device.
    """
    devices = {parameter.device for parameter in module.parameters()}
    if any(device.type == "meta" for device in devices):
        raise ModelError(
            "some weights of the model are not in memory: device_map left them on the disk, or "
            "they were never loaded, and gradients go through all of them; load the model where "
            "it fits whole, in bfloat16 if need be, on several GPUs (device_map='balanced') or "
            "the CPU (device_map='cpu')"
        )
    return module if len(devices) > 1 else module.to(place)


def _task_of_folder(folder: Path) -> Task:
    """What a saved model is to be opened as."""
    saved = config_of(folder).architectures or []
    task = task_of(saved[0]) if saved else None
    if task is None:
        raise ModelError(
            f"{folder} holds {f'a {saved[0]}' if saved else 'a model of no named architecture'}; "
            f"supported are the classes of {', '.join(TASKS.values())} (and adapters that "
            "bring the head): load another model yourself and give the module"
        )
    return task


def _load_adapter(
    folder: Path,
    source: str,
    base: ModelSource | None,
    dtype: torch.dtype,
    place: torch.device,
) -> LoadedModel:
    adapter = read_adapter(folder)
    task: Task | None
    base_source = tokenizer = None
    if isinstance(base, nn.Module):
        if has_adapters(base):
            raise ModelError(
                "base_model already holds an adapter; give the plain model (unload() takes "
                "adapters off)"
            )
        # PEFT changes the modules in place, and the base may serve its own index meanwhile.
        module = copy.deepcopy(base)
        name = f"(a {type(base).__name__} in memory)"
        task = adapter.task or task_of(type(base).__name__)
        if (folder / "tokenizer_config.json").is_file():
            tokenizer = load_tokenizer(source)
    else:
        base_folder, base_source = _base_of(adapter, base)
        name = base_source
        task = adapter.task or _task_of_folder(base_folder)
        module = load_pretrained(
            base_folder,
            task,
            dtype,
            labels=labels_brought(config_of(base_folder), task, adapter.weights),
            brought=adapter.weights,
        )
        tokenizer = load_tokenizer(base_source, source)
    adapted = attach_adapter(module, adapter, name)
    return LoadedModel(_placed(adapted, place), tokenizer, base_source, task, source)


def _base_of(adapter: Adapter, base: str | os.PathLike[str] | None) -> tuple[Path, str]:
    """Folder and name of an adapter's base: the one given, or the one the adapter names."""
    named = base if base is not None else adapter.base
    if named is None:
        raise ModelError(
            f"the adapter {adapter.folder} names no base; give the model it was trained on as "
            "base_model=..."
        )
    beside = adapter.folder / named
    if base is None and beside.is_dir():
        named = beside
    try:
        folder, source = folder_of(named)
    except ModelError as error:
        given = "" if base is not None else f", which the adapter {adapter.folder} names,"
        raise ModelError(
            f"the base {os.fspath(named)!r}{given} is no folder here and no id in the local cache "
            "(nothing is downloaded); give its folder as base_model=..."
        ) from error
    if is_adapter(folder):
        raise ModelError(
            f"the base {source} of the adapter {adapter.folder} is an adapter itself; merge it "
            "into its own base (merge_and_unload) and give the merged model as base_model=..."
        )
    return folder, source
