"""LoRA adapters that have learnt nothing yet: their first weights are chance, too."""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

from torch import nn

__all__ = ["fresh", "redraw"]


def fresh(module: nn.Module) -> bool:
    """Whether :func:`redraw` changes anything."""
    return bool(_untrained(module))


def redraw(module: nn.Module) -> None:
    """Draw the adapters in use anew, as far as they have learnt nothing, with torch's own state.

    PEFT draws A at random and sets B to zero, so that the model computes what it did. An adapter
    of which any B is not zero has learnt, and stays; so does one whose A was not drawn but
    computed, from weights or data.

    Args:
        module: Changed in place; without adapters it stays as it is.
    """
    for layer, adapter, how in _untrained(module):
        layer.reset_lora_parameters(adapter, how)


def _untrained(module: nn.Module) -> list[tuple[Any, str, bool | str]]:
    """Layer, adapter and way of drawing for all LoRA layers of adapters that are new."""
    if sys.modules.get("peft") is None:  # Then no adapter can have come from it.
        return []
    from peft.tuners.lora import LoraLayer

    configs = getattr(module, "peft_config", {})
    layers: dict[str, list[Any]] = defaultdict(list)
    for part in module.modules():
        if isinstance(part, LoraLayer) and not part.disable_adapters:
            for adapter in part.active_adapters:
                if adapter in part.lora_A or adapter in part.lora_embedding_A:
                    layers[adapter].append(part)
    found = []
    for adapter, parts in layers.items():
        how = configs[adapter].init_lora_weights if adapter in configs else False
        drawn = how is True or (isinstance(how, str) and how.lower() == "gaussian")
        if drawn and all(_is_zero(part, adapter) for part in parts):
            found += [(part, adapter, how) for part in parts]
    return found


def _is_zero(layer: Any, adapter: str) -> bool:
    if adapter in layer.lora_A:
        return not bool(layer.lora_B[adapter].weight.any())
    # Of an embedding it is A that begins at zero.
    return not bool(layer.lora_embedding_A[adapter].any())
