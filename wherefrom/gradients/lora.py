"""LoRA adapters of ``peft``: which of their matrices take part, and their pairs once merged.

A LoRA layer adds ``scaling * B(A(x))`` to what its base layer gives (Hu et al. 2021, section 4.1).
``A`` and ``B`` are modules of a supported kind, and two layers each by themselves. Once an adapter
is merged into the base weight they no longer run, but they still decide the output, and their
pairs follow from the base layer's: with its activation ``a`` and output gradient ``delta``,

    A has  (a, scaling * B^T delta),        B has  (A a, scaling * delta).

That leaves the weights as they are, where unmerging and merging would round them.

Adapters are recognised by their attributes, so that ``peft`` is not imported.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from wherefrom.errors import ModelError
from wherefrom.gradients.kinds import Kind, kind_of

__all__ = ["Adapters", "LoraPart"]


@dataclass(frozen=True, eq=False)
class _Merged(Kind):
    """A matrix of a merged adapter, by the base layer's input and output gradient.

    Attributes:
        base: Kind of the base layer.
        other: The adapter's other matrix, ``[d_out, d_in]``.
        scaling: Factor of the adapter's part of the output.
    """

    base: Kind
    other: Tensor
    scaling: float


@dataclass(frozen=True, eq=False)
class _MergedA(_Merged):
    """The first matrix, ``[rank, d_in]``; ``other`` is ``B [d_out, rank]``."""

    @property
    def reading(self) -> Hashable:
        """As the base layer reads."""
        return self.base.reading

    def activations(self, given: Tensor) -> Tensor:
        """The base layer's."""
        return self.base.activations(given)

    def deltas(self, gradient: Tensor) -> Tensor:
        """``scaling * B^T delta``."""
        return _product(self.base.deltas(gradient), self.other) * self.scaling


@dataclass(frozen=True, eq=False)
class _MergedB(_Merged):
    """The second matrix, ``[d_out, rank]``; ``other`` is ``A [rank, d_in]``."""

    @property
    def reading(self) -> Hashable:
        """No two adapters have the same."""
        return id(self.other), self.base.reading

    def activations(self, given: Tensor) -> Tensor:
        """``A a``, without the scaling."""
        return _product(self.base.activations(given), self.other.T)

    def deltas(self, gradient: Tensor) -> Tensor:
        """``scaling * delta``."""
        return self.base.deltas(gradient) * self.scaling


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """In the finer of the two dtypes, as the base may be in half precision and adapters not."""
    dtype = torch.promote_types(rows.dtype, matrix.dtype)
    return rows.to(dtype) @ matrix.to(dtype)


@dataclass(frozen=True, slots=True)
class LoraPart:
    """The A or the B of an adapter.

    Attributes:
        owner: Name of the LoRA layer.
        layer: The LoRA layer.
        side: Which of the two.
        adapter: Name of the adapter.
    """

    owner: str
    layer: Any
    side: Literal["A", "B"]
    adapter: str

    @property
    def runs(self) -> bool:
        """Whether the adapter decides the output; once any is merged, only merged ones do."""
        if self.layer.disable_adapters:
            return False
        return self.adapter in (self.layer.merged_adapters or self.layer.active_adapters)

    @property
    def refusal(self) -> str | None:
        """Why the pairs of this part cannot be had; ``None`` when they can."""
        variant = getattr(self.layer, "lora_variant", {}).get(self.adapter)
        base = self.layer.get_base_layer()
        if variant is not None:
            return f"it is a variant of LoRA, {type(variant).__name__}"
        if isinstance(base, nn.MultiheadAttention) or hasattr(self.layer, "parameter_name"):
            return f"{type(self.layer).__name__} runs it by changing the base weight"
        sides = [getattr(self.layer, f"lora_{side}") for side in "AB"]
        matrices = [side[self.adapter] for side in sides if self.adapter in side]
        modules = [m for m in matrices if isinstance(m, nn.Module)]
        if len(modules) < 2 or any(kind_of(m) is None for m in modules):
            return f"it is of type {type(self.layer).__name__} over {type(base).__name__}"
        if self.layer.merged_adapters and kind_of(base) is None:
            return f"it is merged into a module of type {type(base).__name__}"
        return None

    def tap(self) -> tuple[nn.Module, Kind] | None:
        """Where its pairs are had: the base layer if it is merged, ``None`` if it runs by itself.

        Raises:
            ModelError: It takes no part in the output, or cannot be had since it was merged.
        """
        if not self.runs:
            raise ModelError(
                f"the LoRA adapter {self.adapter!r} of {self.owner!r} takes no part in the output "
                f"any more; activate it with model.set_adapter({self.adapter!r})"
            )
        if not self.layer.merged_adapters:
            return None
        base = self.layer.get_base_layer()
        inner = kind_of(base)
        own = kind_of(getattr(self.layer, f"lora_{self.side}")[self.adapter])
        if inner is None or own is None:
            raise ModelError(self.message())
        merged = _MergedA if self.side == "A" else _MergedB
        other = getattr(self.layer, "lora_B" if self.side == "A" else "lora_A")[self.adapter]
        scaling = float(self.layer.scaling[self.adapter])
        matrix = other.weight.detach().flatten(1)
        return base, merged(own.d_in, own.d_out, own.bias, inner, matrix, scaling)

    def message(self) -> str:
        """One line for a user who chose this part though it is refused."""
        return (
            f"the LoRA adapter {self.adapter!r} of {self.owner!r} is not supported: "
            f"{self.refusal}; merge it for good (merge_and_unload()) and index the merged model"
        )


class Adapters:
    """The adapters that a model holds.

    Args:
        model: Any module.

    Attributes:
        parts: The A and B of every adapter by module name, running or not, in the model's order.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_modules())
        self._layers = {name: module for name, module in named.items() if _is_lora(module)}
        self._kept = [module for module in named.values() if _keeps_copies(module)]
        self.parts = {
            part_name: part
            for name, layer in self._layers.items()
            for part_name, part in _parts(name, layer)
        }

    def __bool__(self) -> bool:
        """Whether the model holds LoRA adapters."""
        return bool(self._layers)

    def running(self) -> list[str]:
        """Names of the parts that take part in the output.

        Raises:
            ModelError: One of them is not supported, or none takes part.
        """
        names = [name for name, part in self.parts.items() if part.runs]
        for name in names:
            if self.parts[name].refusal is not None:
                raise ModelError(self.parts[name].message())
        if not names:
            raise ModelError(
                "no LoRA adapter of the model is active; activate one with "
                "model.set_adapter(name) or model.enable_adapter_layers()"
            )
        return names

    def apart(self) -> set[int]:
        """Ids of modules that are no layers of the model itself.

        These are what a LoRA layer holds beside its base layer, and those of the copies of a
        module that ``modules_to_save`` keeps which do not run.
        """
        found: set[int] = set()
        for layer in self._layers.values():
            inside = {id(m) for m in layer.modules()}
            found |= inside - {id(m) for m in layer.base_layer.modules()}
        for keeper in self._kept:
            copies = keeper.modules_to_save
            active = keeper.active_adapters
            original = keeper.disable_adapters or not active or active[0] not in copies
            running = keeper.original_module if original else copies[active[0]]
            found |= {id(m) for m in keeper.modules()} - {id(m) for m in running.modules()}
        return found


def _is_lora(module: Any) -> bool:
    """Whether a module is a LoRA layer of any type."""
    held = dict(module.named_children()).get("lora_A")
    known = hasattr(module, "get_base_layer") and hasattr(module, "merged_adapters")
    return isinstance(held, (nn.ModuleDict, nn.ParameterDict)) and known


def _keeps_copies(module: Any) -> bool:
    """Whether a module is peft's wrapper of a module that is trained and saved as a whole."""
    return {"modules_to_save", "original_module"} <= dict(module.named_children()).keys()


def _parts(name: str, layer: Any) -> Iterator[tuple[str, LoraPart]]:
    """Every A and B of a LoRA layer, with its module (or parameter) name."""
    for prefix in ("lora_", "lora_embedding_"):
        for side in ("A", "B"):
            for adapter in getattr(layer, prefix + side, {}):
                path = f"{prefix}{side}.{adapter}"
                part = LoraPart(name, layer, "A" if side == "A" else "B", adapter)
                yield (f"{name}.{path}" if name else path), part
