"""Which weight matrices influence is computed for.

A *layer* is one weight matrix (with its bias, if any) seen as a map ``y = W a + b``. Modules that
share a weight are one layer: their contributions are summed. Internally every layer kind speaks
one format: activations ``a [doc, position, d_in]`` and output gradients ``delta [doc, position,
d_out]``, so that the gradient of a document is ``sum_t delta_t a_t^T``, of shape ``[d_out, d_in]``,
whatever the memory layout of the weight (:mod:`wherefrom.gradients.kinds`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from wherefrom.errors import ModelError
from wherefrom.gradients.kinds import SUPPORTED, Kind, kind_of
from wherefrom.gradients.lora import Adapters

__all__ = ["Layer", "select_layers", "tapped_modules"]

_GROUPS = ("mlp", "attention", "linear", "lora")
_MLP_PARTS = ("mlp", "ffn", "ff", "feed_forward", "feedforward", "densereludense", "intermediate")
_MLP_LAYERS = ("fc1", "fc2", "ffn_output")
_ATTENTION_PARTS = (
    *("attn", "attn1", "attn2", "attention", "attentions", "self_attn", "self_attention"),
    *("selfattention", "encdecattention", "crossattention", "encoder_attn"),
)
_BERT_OUTPUT = re.compile(r"\.\d+\.output\.dense(\.|$)")


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


class _Candidates:
    """The modules of a model that can be layers.

    Args:
        model: Any module.

    Attributes:
        named: All modules by name, each once.
        kinds: Kinds of the supported ones, by name.
        adapters: The LoRA adapters that the model holds.
        plain: Names of the model's own supported modules.
        all: These and the A and B of adapters that take part, in the model's order.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.named = dict(model.named_modules())
        kinds = {name: kind_of(module) for name, module in self.named.items()}
        self.kinds = {name: kind for name, kind in kinds.items() if kind is not None}
        self.adapters = Adapters(model)
        apart = self.adapters.apart() | _projections_never_called(model)
        parts = self.adapters.parts
        self.plain = [name for name in self.kinds if id(self.named[name]) not in apart]
        plain = set(self.plain)
        self.all = [
            name
            for name in self.kinds
            if name in plain or (name in parts and parts[name].runs and not parts[name].refusal)
        ]

    def group(self, group: str) -> list[str]:
        """Names of a group of layers; an empty group is an error."""
        if group == "lora" and self.adapters:
            return self.adapters.running()
        hidden = self._hidden()
        chosen = {
            "linear": hidden,
            "lora": [],
            "mlp": [name for name in hidden if _part_of(name) == "mlp"],
            "attention": [name for name in hidden if _part_of(name) == "attention"],
        }[group]
        if chosen:
            return chosen
        if not hidden:
            advice = "it has no nn.Linear, nn.Conv2d or Conv1D layer to compute influence for"
        elif group == "lora":
            advice = "it holds no LoRA adapter: load one, or give 'mlp', 'linear' or patterns"
        else:
            advice = f"give layers='linear' for every linear layer, or patterns of {_some(hidden)}"
        raise ModelError(
            f"layers={group!r} matches no module of {type(self.model).__name__}; {advice}"
        )

    def matching(self, pattern: str) -> list[str]:
        """Names matched by a glob pattern; a pattern that selects nothing is an error."""
        matched = [name for name in self.all if fnmatchcase(name, pattern)]
        if matched:
            return matched
        for name, part in self.adapters.parts.items():
            if fnmatchcase(name, pattern):
                if part.runs:
                    raise ModelError(part.message())
                raise ModelError(
                    f"layer pattern {pattern!r} matches {name!r}, of an adapter that takes no part "
                    f"in the output; activate it with model.set_adapter({part.adapter!r})"
                )
        for name, module in self.named.items():
            if name and fnmatchcase(name, pattern):
                raise ModelError(
                    f"layer pattern {pattern!r} matches {name!r}, {_reason(module)}; supported are "
                    f"{SUPPORTED}: choose among {_some(self.all)}"
                )
        raise ModelError(
            f"layer pattern {pattern!r} matches no module of {type(self.model).__name__}; "
            f"its linear layers are {_some(self.all)}"
        )

    def default(self) -> str:
        """The group that is chosen when the user chooses nothing."""
        if self.adapters:
            return "lora"
        parts = {_part_of(name) for name in self._hidden()}
        if not hasattr(self.model, "get_output_embeddings"):
            return "linear"
        if "attention" in parts and "mlp" not in parts:
            raise ModelError(
                f"{type(self.model).__name__} has attention but no MLP of supported layers "
                "(experts may be held as one tensor); choose layers='attention' or patterns"
            )
        return "mlp" if "mlp" in parts else "linear"

    def _hidden(self) -> list[str]:
        """The model's own layers but its output head."""
        head = _output_head(self.model)
        inside = set() if head is None else {id(module) for module in head.modules()}
        return [name for name in self.plain if id(self.named[name]) not in inside]


def _part_of(name: str) -> str | None:
    """``mlp`` or ``attention``: which the innermost telling part of a dotted name speaks of."""
    if _BERT_OUTPUT.search(name):
        return "mlp"
    for part in reversed(name.lower().split(".")):
        if part in _ATTENTION_PARTS:
            return "attention"
        if part in _MLP_PARTS or part in _MLP_LAYERS:
            return "mlp"
    return None


def _output_head(model: nn.Module) -> nn.Module | None:
    """The module that turns hidden states into vocabulary logits, for transformers models."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head if isinstance(head, nn.Module) else None


def _projections_never_called(model: nn.Module) -> set[int]:
    """Ids of the output projections whose weights ``nn.MultiheadAttention`` uses by itself."""
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    return {id(module.out_proj) for module in attentions}


def _reason(module: nn.Module) -> str:
    """What an unsupported module is, and why it is not supported where the reason is special."""
    name = type(module).__name__
    if isinstance(module, nn.Embedding):
        size = module.num_embeddings
        return f"an {name}, whose inputs are one-hot: its curvature would be {size:,} x {size:,}"
    if type(module).__name__ == "NonDynamicallyQuantizableLinear":
        return "whose weight nn.MultiheadAttention uses without calling it"
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        return f"a {name} with a forward() or a weight that is not the plain one"
    return f"a module of type {name}"


def _shared_with_unsupported(candidates: _Candidates, module: nn.Module) -> str | None:
    """Name of an unsupported module (an embedding, say) that shares the module's weight."""
    for name, other in candidates.named.items():
        if other is module or name in candidates.kinds:
            continue
        if any(p is module.weight for p in other.parameters(recurse=False)):
            return str(name)
    return None


def _some(names: Sequence[str], limit: int = 6) -> str:
    shown = ", ".join(names[:limit]) or "none"
    return shown + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def select_layers(model: nn.Module, layers: str | Sequence[str] | None = None) -> tuple[Layer, ...]:
    """Choose the layers that influence is computed for.

    Args:
        model: Any module.
        layers: ``"mlp"``, ``"attention"``, ``"linear"`` (every linear layer and convolution but
            the output head), ``"lora"`` (the A and B of every active adapter), a glob pattern of
            module names, or several of these; ``None`` is ``"lora"`` for models that hold
            adapters, else ``"mlp"`` for models of transformers that have MLPs and ``"linear"`` for
            others.

    Returns:
        The layers in the order of ``model.named_modules()``, modules sharing a weight as one.

    Raises:
        ModelError: A pattern matches nothing or an unsupported module, an adapter is of an
            unsupported variant, or a chosen weight is tied to a module through which its gradient
            would be missed.
    """
    candidates = _Candidates(model)
    if layers is None:
        layers = candidates.default()
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise ModelError("layers=[] selects nothing; give 'mlp', 'linear' or module patterns")
    chosen = {
        name
        for item in wanted
        for name in (candidates.group(item) if item in _GROUPS else candidates.matching(item))
    }
    return _merge_shared(candidates, [name for name in candidates.all if name in chosen])


def _merge_shared(candidates: _Candidates, chosen: Sequence[str]) -> tuple[Layer, ...]:
    """One layer per distinct weight; every module that uses a chosen weight takes part."""
    named = candidates.named
    by_weight: dict[int, list[str]] = {}
    for name in candidates.kinds:
        by_weight.setdefault(id(named[name].weight), []).append(name)
    done: set[int] = set()
    result = []
    for name in chosen:
        module, kind = named[name], candidates.kinds[name]
        if id(module.weight) in done:
            continue
        done.add(id(module.weight))
        other = _shared_with_unsupported(candidates, module)
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
        result.append(
            Layer(name, tuple(names), type(module).__name__, kind.d_in, kind.d_out, kind.bias)
        )
    return tuple(result)


def tapped_modules(
    model: nn.Module, layers: Sequence[Layer]
) -> Iterator[tuple[int, nn.Module, Kind]]:
    """Where the pairs of layers are had, as the model is now.

    Yields:
        Position of the layer, the module whose input and output gradient to take, and what makes
        pairs of them: one for each module of a layer. It is the layer's own module, save for
        merged adapters, whose pairs come from the base layer.

    Raises:
        ModelError: A layer's module is of another kind by now, or of an adapter that no longer
            takes part.
    """
    parts = Adapters(model).parts
    for position, layer in enumerate(layers):
        for name in layer.modules:
            tap = parts[name].tap() if name in parts else None
            module = model.get_submodule(name)
            kind = kind_of(module)
            if kind is None:
                raise ModelError(
                    f"layer {name!r} is now a {type(module).__name__}; select the layers again"
                )
            yield position, *(tap or (module, kind))
