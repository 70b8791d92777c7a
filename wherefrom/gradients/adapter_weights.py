"""Which of a model's weights are its own and which are an adapter's.

PEFT puts an adapter into a model by wrapping its modules: a LoRA layer keeps the wrapped module as
``base_layer`` and its own weights under the adapter's name, and a module that was trained in full
(``modules_to_save``) keeps the wrapped one as ``original_module``. Taking those parts out of the
names gives the weights of the plain model and of each adapter back.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from wherefrom.errors import ModelError

__all__ = ["WeightParts", "has_adapters", "plain_model", "weight_parts"]


@dataclass(frozen=True, slots=True)
class WeightParts:
    """The weights that decide what a model computes, by where they come from.

    Attributes:
        base: Parameters and buffers of the plain model, by their names there. Modules that an
            adapter's own copy stands in for are left out: they take no part, and under an adapter
            that brings the head they are random.
        adapters: For each adapter in use, its weights by name, the adapter's own name taken out
            (``layers.0.q_proj.lora_A.weight``; ``classifier.weight`` for a module trained in full).
        settings: For each adapter in use and each of its LoRA layers, what else decides the
            layer's output: scaling, variant, and whether it is merged into the base.
    """

    base: Mapping[str, Tensor]
    adapters: Mapping[str, Mapping[str, Tensor]]
    settings: Mapping[str, Mapping[str, str]]


def plain_model(model: nn.Module) -> nn.Module:
    """The model inside a ``PeftModel``, or the model itself.

    Raises:
        ModelError: It holds an adapter of another kind than LoRA.
    """
    if sys.modules.get("peft") is None:
        return model
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        return model
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind != "LORA":
            raise ModelError(
                f"adapter {name!r} of the model is of type {kind}; only LORA adapters are "
                "supported: merge it into the model, or index the base"
            )
    base: nn.Module = model.get_base_model()
    return base


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT has put anything into the model."""
    if sys.modules.get("peft") is None:  # Then nothing can have come from it.
        return False
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    kinds = (PeftModel, BaseTunerLayer, AuxiliaryTrainingWrapper)
    return any(isinstance(module, kinds) for module in model.modules())


def weight_parts(model: nn.Module) -> WeightParts:
    """Divide a model's weights into those of the plain model and those of its adapters in use.

    A merged adapter's share stands in the base's weights; they are taken as they are.

    Raises:
        ModelError: It holds an adapter of another kind than LoRA.
    """
    plain = plain_model(model)
    weights = {k: v for k, v in plain.state_dict().items() if isinstance(v, Tensor)}
    if not has_adapters(plain):
        return WeightParts(weights, {}, {})
    base: dict[str, Tensor] = {}
    adapters: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in weights.items():
        place = _place(plain, key)
        if not place.in_use:
            continue
        (base if place.adapter is None else adapters[place.adapter])[place.name] = tensor
    return WeightParts(base, dict(adapters), _settings(plain))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a weight belongs; ``adapter`` is ``None`` for the plain model."""

    adapter: str | None
    name: str
    in_use: bool


def _place(model: nn.Module, key: str) -> _Place:
    """Follow a weight's name through the modules, leaving out the parts that PEFT put in."""
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper
    from peft.utils.other import AuxiliaryTrainingWrapper

    module: Any = model  # Of whatever class PEFT made it.
    name: list[str] = []
    parts = key.split(".")
    in_use = True
    for position, part in enumerate(parts):
        if isinstance(module, LoraLayer):
            if part != "base_layer":
                adapter = parts[position + 1]
                name += [part, *parts[position + 2 :]]
                return _Place(adapter, ".".join(name), adapter in _in_use(module))
        elif isinstance(module, ModulesToSaveWrapper):
            active = _in_use(module) & set(module.modules_to_save)
            if part != "original_module":
                adapter = parts[position + 1]
                name += parts[position + 2 :]
                return _Place(adapter, ".".join(name), adapter in active)
            in_use = in_use and not active
        elif isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            raise ModelError(
                f"module {'.'.join(parts[:position])!r} is a {type(module).__name__} of peft; "
                "supported are LoRA layers and modules_to_save: merge the adapter, or index the "
                "base"
            )
        else:
            name.append(part)
        # None at the last part, which names a parameter or a buffer.
        module = module._modules.get(part) if module is not None else None
    return _Place(None, ".".join(name), in_use)


def _settings(model: nn.Module) -> dict[str, dict[str, str]]:
    from peft.tuners.lora import LoraLayer

    settings: dict[str, dict[str, str]] = defaultdict(dict)
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, LoraLayer):
            continue
        plain = _place(model, f"{name}.base_layer" if name else "base_layer").name
        for adapter in _in_use(module) & set(module.scaling):
            variant = type(module.lora_variant.get(adapter)).__name__
            settings[adapter][plain] = (
                f"{type(module).__name__}|scaling {float(module.scaling[adapter])!r}|"
                f"variant {variant}|merged {adapter in module.merged_adapters}"
            )
    return dict(settings)


def _in_use(module: Any) -> set[str]:
    """Names of the adapters that a wrapped module computes with."""
    if module.disable_adapters:
        return set()
    return set(module.active_adapters)
