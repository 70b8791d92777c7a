"""Independent dense references, float64: slow, explicit, by other machinery than the package.

Gradients come from ``torch.func`` on one unpadded document at a time; output gradients from leaves
added to the layers' outputs; curvature as explicit Kronecker matrices and linear solves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad

Score = Callable[[nn.Module], Tensor]
"""The scalar to differentiate, as a function of a model-like callable."""


class _Functional(nn.Module):
    def __init__(self, model: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = lambda *a, **k: functional_call(model, parameters, a, k)

    def forward(self, *args: object, **kwargs: object) -> object:
        return self._call(*args, **kwargs)


def weight_gradient(model: nn.Module, module: str, score: Score) -> Tensor:
    """``[d_out, d_in (+1)]`` gradient of ``score`` for one module's weight and bias.

    Tied parameters are replaced everywhere, so contributions of all their uses are in it.
    """
    target = model.get_submodule(module)
    weight, bias = target.weight, target.bias
    names = {
        "w": [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight],
        "b": [
            n
            for n, p in model.named_parameters(remove_duplicate=False)
            if bias is not None and p is bias
        ],
    }
    values = {"w": weight.detach()} | ({} if bias is None else {"b": bias.detach()})

    def scalar(given: dict[str, Tensor]) -> Tensor:
        replaced = {n: given[k] for k in given for n in names[k]}
        return score(_Functional(model, replaced))

    gradients = grad(scalar)(values)
    matrix = gradients["w"]
    if type(target).__name__ == "Conv1D":
        matrix = matrix.T
    if bias is not None:
        matrix = torch.cat([matrix, gradients["b"][:, None]], 1)
    return matrix.detach().double()


def tokens_of(model: nn.Module, modules: Sequence[str], score: Score) -> tuple[Tensor, Tensor]:
    """``a [token, d_in (+1)]`` and ``delta [token, d_out]`` of one document, over all uses."""
    inputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = torch.zeros_like(output, requires_grad=True)
        flat = args[0].detach().reshape(-1, args[0].shape[-1])
        if module.bias is not None:
            flat = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
        inputs.append(flat)
        leaves.append(leaf)
        return output + leaf

    handles = [model.get_submodule(m).register_forward_hook(hook) for m in modules]
    try:
        deltas = torch.autograd.grad(score(model), leaves, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    flat_deltas = [
        torch.zeros_like(leaf).reshape(-1, leaf.shape[-1])
        if d is None
        else d.reshape(-1, d.shape[-1])
        for d, leaf in zip(deltas, leaves, strict=True)
    ]
    return torch.cat(inputs).double(), torch.cat(flat_deltas).detach().double()


def ekfac_matrix(
    activations: Sequence[Tensor], deltas: Sequence[Tensor], pseudo: Sequence[Sequence[Tensor]]
) -> tuple[Tensor, Tensor]:
    """The dense EK-FAC block over ``vec`` by rows, and its mean eigenvalue.

    Args:
        activations: For each document ``[token, d_in]``.
        deltas: For each document (and each class) ``[token, d_out]``.
        pseudo: For each document its pseudo-gradients ``[d_out, d_in]`` (one, or one a class).
    """
    a = sum(x.T @ x for x in activations)
    s = sum(x.T @ x for x in deltas)
    q_a, q_s = torch.linalg.eigh(a).eigenvectors, torch.linalg.eigh(s).eigenvectors
    basis = torch.kron(q_s, q_a)
    squares = torch.zeros(basis.shape[0], dtype=torch.float64)
    for gradients in pseudo:
        for gradient in gradients:
            squares += (basis.T @ gradient.reshape(-1)) ** 2
    squares /= len(pseudo)
    return basis @ torch.diag(squares) @ basis.T, squares.mean()


def gauss_newton(pseudo: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over documents of ``sum_c vec(g) vec(g)^T``."""
    flat = [[g.reshape(-1) for g in gradients] for gradients in pseudo]
    total = sum(torch.outer(g, g) for gradients in flat for g in gradients)
    return total / len(pseudo)


def influence(
    blocks: Sequence[Tensor],
    queries: Sequence[Tensor],
    documents: Sequence[Tensor],
    damping: Sequence[float],
) -> Tensor:
    """``(1/N) sum_l q_l^T (G_l + lambda_l I)^-1 g_l``: ``[query, document]``.

    Args:
        blocks: ``[D_l, D_l]`` of each layer.
        queries: ``[query, D_l]`` of each layer.
        documents: ``[document, D_l]`` of each layer.
        damping: ``lambda_l`` of each layer.
    """
    total = torch.zeros(len(queries[0]), len(documents[0]), dtype=torch.float64)
    for block, q, g, lam in zip(blocks, queries, documents, damping, strict=True):
        damped = block + lam * torch.eye(len(block), dtype=torch.float64)
        total += q @ torch.linalg.solve(damped, g.T)
    return total / len(documents[0])
