"""LoRA adapters saved by PEFT: read, checked against their base, and put on it.

PEFT goes on where an adapter does not fit (it only warns of weights that are missing, and drops
those it has no place for); the model would then be another one than was trained. Here every
weight of the adapter must find its place, and every place its weight.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from wherefrom.errors import MissingExtraError, ModelError
from wherefrom.gradients.adapter_weights import weight_parts
from wherefrom.gradients.pretrained import Task

__all__ = ["Adapter", "attach_adapter", "is_adapter", "read_adapter"]

_CONFIG_FILE = "adapter_config.json"
_WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_NAME = "default"

_ADAPTED_TASKS: Mapping[str, Task] = {
    "CAUSAL_LM": "causal_lm",
    "SEQ_CLS": "sequence_classification",
}
_PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base's own weights alone when an adapter is loaded."""

_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
    # PEFT imports a module of the adapter's choice for it.
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """A saved adapter.

    Attributes:
        folder: Where it is.
        base: The base it names: a path or an id; ``None`` if it names none.
        task: What it was trained for; ``None`` if it does not say.
        weights: Its tensors, named as the base's modules are.
    """

    folder: Path
    base: str | None
    task: Task | None
    weights: Mapping[str, Tensor]


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a saved adapter."""
    return (folder / _CONFIG_FILE).is_file()


def read_adapter(folder: Path) -> Adapter:
    """Read a saved LoRA adapter.

    Raises:
        ModelError: It is of another kind, was trained for another task, is saved as a pickle, or
            its files are broken; the message says which.
    """
    config = _config(folder)
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"{folder} is an adapter of type {kind}; only LORA adapters are supported: merge it "
            "into its base and index the merged model"
        )
    for option in _UNSUPPORTED:
        if config.get(option):
            raise ModelError(
                f"the adapter {folder} uses {option}, which is not supported; merge it into its "
                "base and index the merged model"
            )
    start = config.get("init_lora_weights")
    if start not in _PLAIN_STARTS:
        raise ModelError(
            f"the adapter {folder} was started with init_lora_weights={start!r}, which rewrites "
            "the base's weights on loading; save it as a plain LoRA "
            "(save_pretrained(path_initial_model_for_weight_conversion=...)) or merge it"
        )
    task = config.get("task_type")
    if task is not None and task not in _ADAPTED_TASKS:
        raise ModelError(
            f"the adapter {folder} was trained for {task}; supported are "
            f"{', '.join(_ADAPTED_TASKS)} and none: give an adapter of one of these"
        )
    return Adapter(
        folder=folder,
        base=config.get("base_model_name_or_path") or None,
        task=None if task is None else _ADAPTED_TASKS[task],
        weights=_weights(folder),
    )


def attach_adapter(base: nn.Module, adapter: Adapter, name: str) -> nn.Module:
    """Put an adapter on its base.

    Args:
        base: The model; it is changed in place.
        adapter: A LoRA adapter.
        name: What to call the base in messages.

    Returns:
        The ``peft.PeftModel``, for evaluation.

    Raises:
        ModelError: They do not fit; the message names both and the first thing that does not fit.
        MissingExtraError: PEFT is not installed.
    """
    peft = _peft()
    kinds = {
        "causal_lm": peft.PeftModelForCausalLM,
        "sequence_classification": peft.PeftModelForSequenceClassification,
        None: peft.PeftModel,
    }

    def misfit(what: str) -> ModelError:
        return ModelError(
            f"the adapter {adapter.folder} does not fit its base {name}: {what}; give the base "
            "that it was trained on as base_model=..."
        )

    weights = {_PREFIX + key: weight for key, weight in adapter.weights.items()}
    with warnings.catch_warnings():
        # Of one library to the other, about names to come.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            config = peft.LoraConfig.from_pretrained(str(adapter.folder))
            config.inference_mode = True
            model: nn.Module = kinds[adapter.task](base, config, _NAME)
        except (ValueError, TypeError, AttributeError, RuntimeError) as error:
            raise misfit(_first_sentence(error)) from error
        places = weight_parts(model).adapters.get(_NAME, {})
        for key in sorted(places.keys() & adapter.weights.keys()):
            place, weight = tuple(places[key].shape), tuple(adapter.weights[key].shape)
            if place != weight:
                raise misfit(f"{key} has the shape {weight}, the base takes {place}")
        try:
            report = peft.set_peft_model_state_dict(model, weights, adapter_name=_NAME)
        except KeyError as error:
            raise misfit(f"{_short(str(error.args[0]))} is not among its weights") from error
        except (ValueError, RuntimeError) as error:
            raise misfit(_first_sentence(error)) from error
    missing = sorted(
        key for key in report.missing_keys if ".lora_" in key or ".modules_to_save." in key
    )
    if missing:
        raise misfit(f"{_short(missing[0])} is not among its weights")
    if report.unexpected_keys:
        raise misfit(f"the base has no place for {_short(min(report.unexpected_keys))}")
    return model.eval()


def _short(key: str) -> str:
    """A weight's name in an adapter's file, as it would be called in the base."""
    return key.removeprefix(_PREFIX).replace(f".{_NAME}", "").replace(".modules_to_save", "")


def _first_sentence(error: Exception) -> str:
    return " ".join(str(error).split()).split(". ")[0].rstrip(".") or type(error).__name__


def _config(folder: Path) -> dict[str, Any]:
    file = folder / _CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); save the adapter again") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} is broken (not a JSON object); save the adapter again")
    return config


def _weights(folder: Path) -> dict[str, Tensor]:
    file = folder / _WEIGHTS_FILE
    if not file.is_file():
        raise ModelError(
            f"the adapter {folder} has no {_WEIGHTS_FILE}; pickles (.bin) are never opened: save "
            "it with save_pretrained(..., safe_serialization=True)"
        )
    try:
        weights = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({error}); save the adapter again") from error
    return {key.removeprefix(_PREFIX): weight for key, weight in weights.items()}


def _peft() -> ModuleType:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "adapters need peft, which is not installed; pip install 'wherefrom[peft]'"
        ) from error
    module: ModuleType = peft
    return module
