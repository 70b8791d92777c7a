"""The Gauss-Newton matrix written out, float64: Jacobians and Hessians of ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from dense import unmerged
from small_models import Case
from wherefrom.gradients.batches import Batch

Loss = Callable[[Tensor], Tensor]
"""Negative log-likelihood of one prediction, ``[class]`` or ``[entry]`` -> scalar."""


def surprise(logits: Tensor) -> Tensor:
    """That of some class; its Hessian is the same for all of them."""
    return -torch.log_softmax(logits, -1)[0]


def jacobian(
    model: nn.Module, modules: Sequence[str], outputs: Callable[[Callable[..., object]], Tensor]
) -> Tensor:
    """``[entry of outputs, weight]`` of one document, over all layers by rows, bias last."""
    targets = [model.get_submodule(name) for name in modules]
    everywhere = list(model.named_parameters(remove_duplicate=False))
    own = {
        f"{i}.{part}": parameter.detach()
        for i, target in enumerate(targets)
        for part, parameter in (("weight", target.weight), ("bias", target.bias))
        if parameter is not None
    }
    places = {
        name: key
        for key in own
        for name, parameter in everywhere
        if parameter is getattr(targets[int(key.split(".")[0])], key.split(".")[1])
    }

    def run(given: dict[str, Tensor]) -> Tensor:
        replaced = {name: given[key] for name, key in places.items()}
        return outputs(lambda *a, **k: functional_call(model, replaced, a, k)).reshape(-1)

    with sdpa_kernel(SDPBackend.MATH):  # the others have no batching rule
        found = jacrev(run)(own)
    columns = []
    for i, target in enumerate(targets):
        matrix = found[f"{i}.weight"].flatten(2)
        if type(target).__name__ == "Conv1D":
            matrix = matrix.transpose(1, 2)
        if target.bias is not None:
            matrix = torch.cat([matrix, found[f"{i}.bias"][..., None]], 2)
        columns.append(matrix.flatten(1))
    return torch.cat(columns, 1).detach().double()


def gauss_newton(
    case: Case, modules: Sequence[str], rows: Sequence[int], loss: Loss = surprise
) -> Tensor:
    """Mean over documents of ``J^T H J``, each document by itself and unpadded."""
    model = unmerged(case.model)
    total: Tensor | float = 0.0
    for row in rows:
        single = case.batch([row])
        counts = torch.ones(1, dtype=torch.bool) if single.scored is None else single.scored[0]

        def predictions(
            run: Callable[..., object], single: Batch = single, counts: Tensor = counts
        ) -> Tensor:
            values = case.objective.outputs(run, single)[0]  # type: ignore[arg-type]
            values = values.reshape(-1, values.shape[-1])
            return values[counts] if len(counts) == len(values) else values

        values = predictions(model).detach()
        parts = jacobian(model, modules, predictions).split(values.shape[1])
        for part, prediction in zip(parts, values, strict=True):
            total = total + part.T @ jacrev(jacrev(loss))(prediction).double() @ part
    assert isinstance(total, Tensor)
    return total / len(rows)
