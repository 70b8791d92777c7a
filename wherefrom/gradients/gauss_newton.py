"""Products with the Gauss-Newton matrix of all layers at once, without ever forming it.

For documents z with outputs ``f(z)`` and ``J_z = d f(z) / d weights``,

    G v = mean over z of J_z^T H_z J_z v,

with ``H_z`` the Fisher matrix of the outputs (Martens 2020, section 8): the matrix whose blocks the
curvatures estimate, here with what lies off the blocks and no estimate. ``J v`` comes from one pass
in forward mode, in which every module that uses a selected weight adds ``V a`` to the tangent of
its output; ``J^T`` from the pairs of one backward pass (Schraudolph 2002, section 3).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from wherefrom.errors import CurvatureError, ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.kinds import Kind
from wherefrom.gradients.layers import Layer, tapped_modules
from wherefrom.gradients.objectives import Probabilistic

__all__ = ["GaussNewton"]


class GaussNewton:
    """The Gauss-Newton matrix of a model's selected layers over a set of documents.

    Args:
        extractor: Model, objective and layers.
        batches: Called once a product; gives the documents in batches, each time the same.

    Raises:
        CurvatureError: The objective knows no distribution of its outputs.
    """

    def __init__(
        self, extractor: GradientExtractor, batches: Callable[[], Iterable[Batch]]
    ) -> None:
        objective = extractor.objective
        if not isinstance(objective, Probabilistic):
            raise CurvatureError(
                f"the Gauss-Newton matrix needs an objective with a known distribution; "
                f"{type(objective).__name__} has none: derive it from Categorical or Gaussian, or "
                "ask with refine=0"
            )
        self._extractor = extractor
        self._objective = objective
        self._batches = batches
        # The same model with no layer tapped: taps have no forward mode.
        self._untapped = GradientExtractor(extractor.model, objective, ())

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers, in the order of :meth:`product`'s vectors."""
        return self._extractor.layers

    def product(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """``G v``. Runs outside of ``extractor.session()``.

        Args:
            vectors: Of each layer ``[d_out, d_in]``, in the order of the weight, the bias last.

        Returns:
            Of each layer float64 ``[d_out, d_in]``; passes run in the model's own precision, and
            batches are added in float64.

        Raises:
            ModelError: The model cannot be run in forward mode, its outputs are not finite, or no
                selected layer takes part in them.
            CurvatureError: There are no documents.
        """
        totals = [torch.zeros_like(vector, dtype=torch.float64) for vector in vectors]
        documents = 0

        def add(pair: LayerPair) -> None:
            totals[pair.layer] += _summed_gradient(pair)

        with self._untapped.session():
            for batch in self._batches():
                moved = self._output_tangent(batch.to(self._extractor.device), vectors)
                with self._extractor.session():
                    forward = self._extractor.forward(batch)
                    gradient = self._objective.fisher_product(forward.outputs, moved, forward.batch)
                    forward.backward(gradient, add)
                documents += len(batch)
        if documents == 0:
            raise CurvatureError("the Gauss-Newton matrix needs at least one document; give some")
        return [total / documents for total in totals]

    def _output_tangent(self, batch: Batch, vectors: Sequence[Tensor]) -> Tensor:
        """``J v``, of the shape of the outputs."""
        model = self._extractor.model
        try:
            # Of the attention kernels only the plain one has a forward mode.
            with (
                _first_use(),
                torch.no_grad(),
                sdpa_kernel(SDPBackend.MATH),
                forward_ad.dual_level(),
                _pushed(model, self.layers, vectors),
            ):
                outputs = self._objective.outputs(model, batch)
                _, tangent = _unpacked(outputs)
        except (RuntimeError, NotImplementedError) as error:
            raise ModelError(
                f"{type(model).__name__} cannot be run in forward mode, which Gauss-Newton "
                f"products need: {str(error).splitlines()[0]}; ask with refine=0"
            ) from error
        if tangent is None:
            raise ModelError(
                "no selected layer takes part in the model's output; choose others with layers="
            )
        return tangent


def _summed_gradient(pair: LayerPair) -> Tensor:
    """``sum delta a^T`` over documents and positions, float64 ``[d_out, d_in]``."""
    dtype = torch.promote_types(pair.activations.dtype, torch.float32)
    deltas = pair.deltas.to(dtype).flatten(0, 1)
    return (deltas.T @ pair.activations.to(dtype).flatten(0, 1)).double()


@contextmanager
def _first_use() -> Iterator[None]:
    """Torch sets up its forward mode with its own jit, and warns that this is deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit", DeprecationWarning)
        yield


@contextmanager
def _pushed(model: nn.Module, layers: Sequence[Layer], vectors: Sequence[Tensor]) -> Iterator[None]:
    """Inside a dual level, let the selected weights move along ``vectors``."""
    handles = [
        module.register_forward_hook(
            _push(kind, vectors[position], bias=layers[position].bias), with_kwargs=True
        )
        for position, module, kind in tapped_modules(model, layers)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _push(kind: Kind, vector: Tensor, *, bias: bool) -> Callable[..., Tensor]:
    """The hook that adds a weight's motion to the tangent of its module's output."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: Any, output: Tensor) -> Tensor:
        given, _ = _unpacked(inputs[0] if inputs else next(iter(named.values())))
        primal, tangent = _unpacked(output)
        activations = kind.activations(given)
        moving = vector.to(activations.device, activations.dtype)
        moved = activations @ moving[:, : kind.d_in].T
        if bias:
            moved = moved + moving[:, -1]
        push = _adjoint(kind, primal, moved)
        dual: Tensor = forward_ad.make_dual(  # type: ignore[no-untyped-call]
            primal, push if tangent is None else tangent + push
        )
        return dual

    return hook


def _unpacked(dual: Tensor) -> tuple[Tensor, Tensor | None]:
    """Value and tangent; ``None`` where there is none."""
    primal, tangent = forward_ad.unpack_dual(dual)  # type: ignore[no-untyped-call]
    return primal, tangent


def _adjoint(kind: Kind, output: Tensor, moved: Tensor) -> Tensor:
    """``[row, position, d_out]`` as a change of the module's output: ``kind.deltas`` transposed."""
    # Made anew and not zeros_like(output): what runs here must not see the tangent of anything.
    flat = torch.zeros(output.shape, dtype=output.dtype, device=output.device, requires_grad=True)
    with torch.enable_grad():
        deltas = kind.deltas(flat)
    (push,) = torch.autograd.grad(deltas, flat, moved.to(deltas.dtype))
    return push
