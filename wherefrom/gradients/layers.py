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

_GROUPS = ("mlp", "attention", "linear")
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


def _group(model: nn.Module, hidden: Sequence[str], group: str) -> list[str]:
    """Names of a group of layers; an empty group is an error."""
    if group == "linear":
        chosen = list(hidden)
    else:
        chosen = [name for name in hidden if _in_group(name, group)]
    if not chosen:
        advice = (
            "it has no nn.Linear or Conv1D layer to compute influence for"
            if not hidden
            else f"give layers='linear' for every linear layer, or patterns of {_some(hidden)}"
        )
        raise ModelError(f"layers={group!r} matches no module of {type(model).__name__}; {advice}")
    return chosen


def _matching(model: nn.Module, candidates: Sequence[str], pattern: str) -> list[str]:
    """Names matched by a glob pattern; a pattern that selects nothing is an error."""
    matched = [name for name in candidates if fnmatchcase(name, pattern)]
    if matched:
        return matched
    for name, module in model.named_modules():
        if name and fnmatchcase(name, pattern):
            raise ModelError(
                f"layer pattern {pattern!r} matches {name!r}, a {type(module).__name__}; supported "
                f"are nn.Linear and transformers' Conv1D: choose among {_some(candidates)}"
            )
    raise ModelError(
        f"layer pattern {pattern!r} matches no module of {type(model).__name__}; "
        f"its linear layers are {_some(candidates)}"
    )


def _some(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def select_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Choose the layers that influence is computed for.

    Args:
        model: Any module.
        layers: ``"mlp"``, ``"attention"``, ``"linear"`` (every linear layer but the output head),
            a glob pattern of module names, or several of these; ``None`` is ``"mlp"`` for
            transformers models and ``"linear"`` for others.

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
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise ModelError("layers=[] selects nothing; give 'mlp', 'linear' or module patterns")
    chosen = {
        name
        for item in wanted
        for name in (
            _group(model, hidden, item) if item in _GROUPS else _matching(model, candidates, item)
        )
    }
    return _merge_shared(model, named, [name for name in candidates if name in chosen])


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
