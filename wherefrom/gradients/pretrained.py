"""Checkpoints of transformers: found on disk, opened as the task they were trained for.

Nothing is fetched: an id must already be in the local cache. Remote code is never run, and only
safetensors weights are read, never pickles. A checkpoint that lacks some of the model's weights is
refused, since transformers would draw those at random and go on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from wherefrom.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

__all__ = [
    "TASKS",
    "Task",
    "config_of",
    "folder_of",
    "labels_brought",
    "load_pretrained",
    "load_tokenizer",
    "one_line",
    "task_of",
]

Task = Literal["causal_lm", "sequence_classification", "masked_lm"]
"""What a model was trained to do, as far as it is supported."""

TASKS: Mapping[Task, str] = {
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
    "masked_lm": "AutoModelForMaskedLM",
}
"""The transformers class that opens a checkpoint of each task."""


def folder_of(name: str | os.PathLike[str]) -> tuple[Path, str]:
    """The folder of a model or an adapter, and what to call it in a manifest.

    Args:
        name: Path of a folder, or an id in the local cache.

    Returns:
        The folder, and its absolute path or the id.

    Raises:
        ModelError: It is neither a folder nor a cached id.
    """
    from huggingface_hub import snapshot_download

    given = os.fspath(name)
    path = Path(given)
    if path.is_file():
        raise ModelError(f"{given} is a file; give the folder of a saved Hugging Face model")
    if path.is_dir():
        return path.resolve(), str(path.resolve())
    try:
        return Path(snapshot_download(given, local_files_only=True)), given
    except (OSError, ValueError) as error:
        raise ModelError(
            f"cannot load {given!r}: it is no folder here and no id in the local cache (nothing "
            "is downloaded: give the folder of a model saved with save_pretrained)"
        ) from error


def config_of(folder: Path) -> PretrainedConfig:
    """The configuration of a saved model.

    Raises:
        ModelError: There is none, or it cannot be read without running code or fetching any.
    """
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(f"{folder} holds no config.json; give the folder of a saved model")
    _require_no_fetching(file)
    with one_line(str(folder), "model"):
        config: PretrainedConfig = AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    return config


def _require_no_fetching(file: Path) -> None:
    """Refuse a configuration that has transformers fetch compiled code: kernels of the hub.

    Such a name holds a slash (``owner/kernel``); quantised weights bring kernels of their own.
    """
    try:
        fields = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read ({error}); save the model again") from error
    open_parts = [fields]
    while open_parts:
        part = open_parts.pop()
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            if key == "quantization_config" and value:
                raise ModelError(
                    f"{file} is of quantised weights, through which gradients are not taken; give "
                    "the model before it was quantised"
                )
            if "_implementation" in key and "/" in json.dumps(value):
                raise ModelError(
                    f"{file} names code of the hub ({key}: {json.dumps(value)[:80]}), which is "
                    "never fetched; remove that line"
                )
            open_parts.append(value)


def task_of(architecture: str) -> Task | None:
    """The task of a transformers class by its name; ``None`` for any other class."""
    from transformers.models.auto import modeling_auto

    known: Mapping[Task, Mapping[str, str]] = {
        "causal_lm": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        "sequence_classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        "masked_lm": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    for task, names in known.items():
        if architecture in names.values():
            return task
    return None


def labels_brought(
    config: PretrainedConfig, task: Task, brought: Mapping[str, Tensor]
) -> int | None:
    """How many labels the head among some weights has.

    Args:
        config: Of the model that the weights are for.
        task: What the model is opened as.
        brought: Weights by their names in the model.

    Returns:
        The number; ``None`` where the weights hold no head, or the task has none with labels.
    """
    if task != "sequence_classification":
        return None
    # The head is whatever changes its shape with the number of labels.
    fewer, more = (_weight_shapes(config, labels) for labels in (5, 6))
    for name, shape in fewer.items():
        if shape != more[name] and name in brought:
            return int(brought[name].shape[0])
    return None


def _weight_shapes(config: PretrainedConfig, labels: int) -> dict[str, torch.Size]:
    import copy

    from transformers import AutoModelForSequenceClassification

    sized = copy.deepcopy(config)
    sized.num_labels = labels
    build: Callable[[PretrainedConfig], nn.Module] = AutoModelForSequenceClassification.from_config
    with one_line(str(config.name_or_path), "sequence classifier"), torch.device("meta"):
        model = build(sized)
    return {name: weight.shape for name, weight in model.state_dict().items()}


def load_pretrained(
    folder: Path,
    task: Task,
    dtype: torch.dtype,
    *,
    labels: int | None = None,
    brought: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Open a checkpoint as the model of a task.

    Args:
        folder: Where it is.
        task: What to open it as.
        dtype: Precision of its weights in memory.
        labels: Number of a classifier's labels, if not as configured.
        brought: Weights that an adapter replaces, by name: the checkpoint need not hold them.

    Raises:
        ModelError: It cannot be loaded without running code or unpickling, or lacks weights.
    """
    import transformers

    config = config_of(folder)
    if labels is not None:
        config.num_labels = labels
    with one_line(str(folder), task.replace("_", " ")):
        model, report = getattr(transformers, TASKS[task]).from_pretrained(
            str(folder),
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    given = brought or {}
    other_shape = {name: shapes for name, *shapes in report["mismatched_keys"]}
    lacking = sorted(name for name in {*report["missing_keys"], *other_shape} if name not in given)
    if lacking:
        first = lacking[0]
        why = "is not there"
        if first in other_shape:
            saved, wanted = (tuple(shape) for shape in other_shape[first])
            why = f"has the shape {saved} for {wanted}"
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise ModelError(
            f"the weights in {folder} do not make a {type(model).__name__}: {first}{more} {why} "
            "and would be random numbers; give a checkpoint trained for that task, or the folder "
            "of an adapter that brings them"
        )
    module: nn.Module = model
    return module


def load_tokenizer(source: str, adapter: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a model, or with its adapter if there is one.

    Args:
        source: Folder or cached id of the model.
        adapter: Folder or cached id of the adapter; its tokenizer comes first.

    Raises:
        ModelError: There is none that can be loaded without running code.
    """
    from transformers import AutoTokenizer

    folder = folder_of(source if adapter is None else adapter)[0]
    if adapter is not None and not (folder / "tokenizer_config.json").is_file():
        folder = folder_of(source)[0]
    with one_line(str(folder), "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    return tokenizer


@contextmanager
def one_line(source: str, what: str) -> Iterator[None]:
    """Loads quietly, and turns what transformers raises into one line.

    Raises:
        ModelError: Loading failed.
    """
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # Its report of missing weights is many lines; they are an error of one line here.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    except Exception as error:  # A broken folder makes transformers fail in every way there is.
        first = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        raise ModelError(
            f"cannot load {source!r} as a {what}: {first} (nothing is downloaded: give the folder "
            "of a model saved with save_pretrained, safetensors weights and tokenizer included)"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
