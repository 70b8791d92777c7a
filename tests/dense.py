"""Independent dense references, float64: slow, explicit, by other machinery than the package.

Gradients come from ``torch.func`` on one unpadded document at a time; output gradients from leaves
added to the layers' outputs; curvature as explicit Kronecker matrices and linear solves.
"""

from __future__ import annotations

import copy
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

    Tied parameters are replaced everywhere, so contributions of all their uses are in it. Merged
    adapters are unmerged in a copy of the model.
    """
    model = unmerged(model)
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
    matrix = gradients["w"].flatten(1)
    if type(target).__name__ == "Conv1D":
        matrix = matrix.T
    if bias is not None:
        matrix = torch.cat([matrix, gradients["b"][:, None]], 1)
    return matrix.detach().double()


def unmerged(model: nn.Module) -> nn.Module:
    """The model, or a copy in which its merged adapters are unmerged."""
    if not any(getattr(module, "merged_adapters", None) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if getattr(module, "merged_adapters", None):
            module.unmerge()
    return model


def _source(index: int, size: int, mode: str) -> int | None:
    """Which entry stands at a place of a padded row; ``None`` for a zero."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "circular":
        return index % size
    if mode == "replicate":
        return min(max(index, 0), size - 1)
    return -index if index < 0 else 2 * (size - 1) - index


def _visited(module: nn.Conv2d, axis: int, offset: int, size: int, count: int) -> list[int | None]:
    """Which rows (or columns) one row of the kernel meets as the kernel moves."""
    step, spread = module.stride[axis], module.dilation[axis]
    before = module.padding
    if before == "same":
        padding = spread * (module.kernel_size[axis] - 1) // 2
    else:
        padding = 0 if before == "valid" else before[axis]
    places = (step * t + spread * offset - padding for t in range(count))
    return [_source(place, size, module.padding_mode) for place in places]


def patches(module: nn.Conv2d, given: Tensor, output: Tensor) -> Tensor:
    """``[row, height, width, group, d_in]``: what the kernel sees, one kernel entry at a time."""
    rows, channels, height, width = given.shape
    (kernel_height, kernel_width), groups = module.kernel_size, module.groups
    shape = (rows, channels, kernel_height, kernel_width, *output.shape[2:])
    found = given.new_zeros(shape)
    for i in range(kernel_height):
        for j in range(kernel_width):
            ys = _visited(module, 0, i, height, output.shape[2])
            xs = _visited(module, 1, j, width, output.shape[3])
            inside = torch.tensor([[y is not None and x is not None for x in xs] for y in ys])
            y, x = torch.tensor([y or 0 for y in ys]), torch.tensor([x or 0 for x in xs])
            found[:, :, i, j] = given[:, :, y][..., x] * inside
    d_in = channels // groups * kernel_height * kernel_width
    return found.reshape(rows, groups, d_in, *output.shape[2:]).permute(0, 3, 4, 1, 2)


def _positions(module: nn.Module, given: Tensor, output: Tensor) -> Tensor:
    """``[position, d_in]`` activations of one call."""
    if isinstance(module, nn.Conv2d):
        return patches(module, given, output).reshape(-1, module.weight[0].numel())
    return given.reshape(-1, given.shape[-1])


def _output_positions(module: nn.Module, gradient: Tensor) -> Tensor:
    """``[position, d_out]`` output gradients of one call; each group of channels by itself."""
    if not isinstance(module, nn.Conv2d):
        return gradient.reshape(-1, gradient.shape[-1])
    channels = gradient.shape[1]
    each = channels // module.groups
    split = gradient.new_zeros(len(gradient), *gradient.shape[2:], module.groups, channels)
    for g in range(module.groups):
        own = slice(g * each, (g + 1) * each)
        split[..., g, own] = gradient[:, own].permute(0, 2, 3, 1)
    return split.reshape(-1, channels)


def tokens_of(model: nn.Module, modules: Sequence[str], score: Score) -> tuple[Tensor, Tensor]:
    """``a [token, d_in (+1)]`` and ``delta [token, d_out]`` of one document, over all uses.

    The tokens of a convolution are the places of its kernel, once for each group.
    """
    model = unmerged(model)
    uses: list[nn.Module] = []
    inputs: list[Tensor] = []
    leaves: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        leaf = torch.zeros_like(output, requires_grad=True)
        flat = _positions(module, args[0].detach(), output.detach())
        if module.bias is not None:
            flat = torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
        uses.append(module)
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
        _output_positions(module, torch.zeros_like(leaf) if d is None else d)
        for module, d, leaf in zip(uses, deltas, leaves, strict=True)
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
