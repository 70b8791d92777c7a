"""Which weight matrices influence is computed for.

A *layer* is one weight matrix (with its bias, if any) seen as a map ``y = W a + b``. Modules that
share a weight are one layer: their contributions are summed. Internally every layer kind speaks
one format: activations ``a [doc, token, d_in]`` and output gradients ``delta [doc, token, d_out]``,
so that the gradient of a document is ``sum_t delta_t a_t^T``, of shape ``[d_out, d_in]``, whatever
the memory layout of the weight (``transformers``' ``Conv1D`` stores its transpose).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from wherefrom.errors import ModelError

__all__ = ["Layer", "select_layers"]

_MLP_PARTS = ("mlp", "ffn", "feed_forward", "feedforward", "intermediate", "fc1", "fc2")
_ATTENTION_PARTS = ("attn", "attention", "self_attn", "self_attention", "crossattention")


@dataclass(frozen=True, slots=True)
class Layer:
    """One weight matrix and the modules that use it.

    Attributes:
        name: Name of the first module that holds the weight.
        modules: Names of all modules that share it.
        kind: Class name of the module.
        d_in: Input width, without the bias.
        d_out: Output width.
        bias: Whether a bias is part of the block.
    """

    name: str
    modules: tuple[str, ...]
    kind: str
    d_in: int
    d_out: int
    bias: bool

    @property
    def shape(self) -> tuple[int, int]:
        """``(d_out, d_in)``, with one more input when there is a bias (a 1 is appended to a)."""
        return self.d_out, self.d_in + int(self.bias)

    @property
    def size(self) -> int:
        """Number of weights, bias included."""
        return self.shape[0] * self.shape[1]


def _dimensions(module: nn.Module) -> tuple[int, int] | None:
    """``(d_in, d_out)`` of a supported module, ``None`` for any other."""
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, torch.Tensor) and weight.ndim == 2:
        return weight.shape[0], weight.shape[1]
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return None


def _in_group(name: str, group: str) -> bool:
    """Whether a module's dotted name belongs to ``mlp`` or ``attention``."""
    parts = name.lower().split(".")
    if group == "attention":
        return any(part in _ATTENTION_PARTS for part in parts)
    return any(part in _MLP_PARTS for part in parts) and not _in_group(name, "attention")


def _output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into vocabulary logits, for transformers models."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def _shared_with_unsupported(model: nn.Module, module: nn.Module) -> str | None:
    """Name of an unsupported module (an embedding, say) that shares the module's weight."""
    for name, other in model.named_modules():
        if other is module or _dimensions(other) is not None:
            continue
        if any(p is module.weight for p in other.parameters(recurse=False)):
            return str(name)
    return None


def _wanted(model: nn.Module, candidates: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names selected by glob patterns; a pattern that selects nothing is an error."""
    modules = dict(model.named_modules())
    wanted: list[str] = []
    for pattern in patterns:
        matched = [name for name in candidates if fnmatchcase(name, pattern)]
        if not matched:
            others = [name for name in modules if name and fnmatchcase(name, pattern)]
            if others:
                kind = type(modules[others[0]]).__name__
                raise ModelError(
                    f"layer pattern {pattern!r} matches {others[0]!r}, a {kind}; supported are "
                    "nn.Linear and transformers' Conv1D: choose among "
                    f"{_some(candidates)}"
                )
            raise ModelError(
                f"layer pattern {pattern!r} matches no module of {type(model).__name__}; "
                f"its linear layers are {_some(candidates)}"
            )
        wanted += matched
    return [name for name in candidates if name in set(wanted)]


def _some(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def select_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Choose the layers that influence is computed for.

    Args:
        model: Any module.
        layers: ``"mlp"``, ``"attention"``, ``"linear"`` (every linear layer but the output head),
            a glob pattern of module names or several; ``None`` is ``"mlp"`` for transformers
            models and ``"linear"`` for others.

    Returns:
        The layers in the order of ``model.named_modules()``, modules sharing a weight as one.

    Raises:
        ModelError: A pattern matches nothing or an unsupported module, or a chosen weight is tied
            to a module through which its gradient would be missed.
    """
    named = dict(model.named_modules(remove_duplicate=True))
    candidates = [name for name, module in named.items() if _dimensions(module) is not None]
    head = _output_head(model)
    hidden = [name for name in candidates if head is None or named[name] is not head]
    if layers is None:
        layers = "linear" if head is None else "mlp"
    if layers in ("mlp", "attention"):
        chosen = [name for name in hidden if _in_group(name, str(layers))]
        if not chosen:
            raise ModelError(
                f"layers={layers!r} matches no module of {type(model).__name__}; give layers="
                f"'linear' for every linear layer, or patterns of {_some(hidden)}"
            )
    elif layers == "linear":
        chosen = hidden
        if not chosen:
            raise ModelError(
                f"{type(model).__name__} has no nn.Linear or Conv1D layer to compute influence for"
            )
    else:
        patterns = [layers] if isinstance(layers, str) else list(layers)
        if not patterns:
            raise ModelError("layers=[] selects nothing; give 'mlp', 'linear' or module patterns")
        chosen = _wanted(model, candidates, patterns)
    return _merge_shared(model, named, chosen)


def _merge_shared(
    model: nn.Module, named: dict[str, nn.Module], chosen: Sequence[str]
) -> tuple[Layer, ...]:
    """One layer per distinct weight; every module that uses a chosen weight takes part."""
    by_weight: dict[int, list[str]] = {}
    for name, module in named.items():
        if _dimensions(module) is not None:
            by_weight.setdefault(id(module.weight), []).append(name)
    done: set[int] = set()
    result = []
    for name in chosen:
        module = named[name]
        if id(module.weight) in done:
            continue
        done.add(id(module.weight))
        other = _shared_with_unsupported(model, module)
        if other is not None:
            raise ModelError(
                f"layer {name!r} shares its weight with {other!r} "
                f"({type(named[other]).__name__}), whose part of the gradient is not computed; "
                "leave it out of layers"
            )
        names = by_weight[id(module.weight)]
        biases = {id(named[n].bias) if named[n].bias is not None else None for n in names}
        if len(biases) > 1:
            raise ModelError(
                f"layers {_some(names)} share a weight but not a bias; they cannot form one block: "
                "leave them out of layers"
            )
        d_in, d_out = _dimensions(module) or (0, 0)
        bias = module.bias is not None
        result.append(Layer(name, tuple(names), type(module).__name__, d_in, d_out, bias))
    return tuple(result)
