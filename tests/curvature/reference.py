"""Dense references for curvatures, float64: explicit matrices over all weights of a layer.

Gradients come from ``torch.func`` on one document at a time, pseudo-labels from the distribution's
Hessian (``expected``), from the targets (``empirical``) or by inversion of the model's own
distribution function (``sampled``); damped inverses from ``torch.linalg.inv``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

import dense
from small_models import CASES, Case
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.extractor import Consumer, GradientExtractor
from wherefrom.gradients.fisher import Fisher, PseudoGradients
from wherefrom.gradients.layers import Layer, select_layers
from wherefrom.gradients.objectives import Classification

SEED = 5


@dataclass(frozen=True)
class LayerTruth:
    """What one layer's blocks are made of; gradients are flat, by rows.

    Attributes:
        pseudo: For each document ``[pseudo-label, D]``.
        documents: ``[document, D]`` gradients of the documents' own log-likelihoods.
        queries: ``[query, D]`` gradients of the queries'.
        tokens: Gives, for each document and pseudo-label, ``a [position, d_in]`` and
            ``delta [position, d_out]``.
    """

    pseudo: list[Tensor]
    documents: Tensor
    queries: Tensor
    tokens: Callable[[], list[list[tuple[Tensor, Tensor]]]]

    @cached_property
    def factors(self) -> tuple[Tensor, Tensor, int]:
        """Sums of ``a a^T`` and ``delta delta^T`` over positions, and their number."""
        found = self.tokens()
        activations = [terms[0][0] for terms in found]
        a = sum(x.T @ x for x in activations)
        s = sum(d.T @ d for terms in found for _, d in terms)
        return a, s, sum(map(len, activations))


@cache
def case_of(name: str) -> Case:
    """One model a name for the whole run."""
    return CASES[name]()


def fishers(name: str, kind: str = "ekfac") -> list[Fisher]:
    """The kinds of Fisher matrix that a curvature of a case is tried with, its default first."""
    if kind in ("datainf", "identity"):
        return ["empirical"]
    several = case_of(name).batch([0]).targets.ndim > 1
    kinds: list[Fisher] = ["sampled"] if several else ["expected"]
    if name == "mlp-bias":
        kinds.append("sampled")
    if name in ("mlp-bias", "llama-mlp"):
        kinds.append("empirical")
    return kinds


def shifted(case: Case, rows: Sequence[int]) -> Batch:
    """Queries: the documents with other targets, so that they are no documents."""
    batch = case.batch(list(rows))
    with torch.no_grad():
        outputs = case.objective.outputs(case.model, batch)
    return replace(batch, targets=(batch.targets + 1) % outputs.shape[-1])


def expected_labels(case: Case, row: int) -> list[dense.Score]:
    """Scalars whose gradients are ``J^T r_c``, for a root ``R R^T = H`` of the Hessian.

    ``H`` is minus the Hessian of the log-likelihood with respect to the model's outputs, which for
    exponential families does not depend on the target.
    """
    single = case.batch([row])
    with torch.no_grad():
        outputs = case.objective.outputs(case.model, single)

    def nats(at: Tensor) -> Tensor:
        return case.objective.log_likelihood(at, single.targets, single).sum()

    hessian = -torch.func.jacrev(torch.func.grad(nats))(outputs).reshape(
        outputs.numel(), outputs.numel()
    )
    values, vectors = torch.linalg.eigh(hessian)
    root = vectors * values.clamp(min=0).sqrt()
    return [
        lambda model, r=r: case.objective.outputs(model, single).reshape(-1) @ r for r in root.T
    ]


def sampled_label(case: Case, row: int) -> dense.Score:
    """The log-likelihood of targets drawn by inversion of the distribution function."""
    single = case.batch([row])
    with torch.no_grad():
        outputs = case.objective.outputs(case.model, single)
    steps = torch.softmax(outputs, -1).reshape(-1, outputs.shape[-1]).cumsum(-1).numpy()
    level = uniforms(key_of(SEED, 0), single.keys, single.targets[0].numel())[0]
    drawn = [int(np.searchsorted(c, u, side="right")) for c, u in zip(steps, level, strict=True)]
    return case.score(row, torch.tensor(drawn).reshape(single.targets.shape))


def labels(case: Case, row: int, fisher: Fisher) -> list[dense.Score]:
    """The scalars whose gradients are the pseudo-gradients of a document."""
    if fisher == "empirical":
        return [case.score(row)]
    return expected_labels(case, row) if fisher == "expected" else [sampled_label(case, row)]


@cache
def truth(name: str, fisher: Fisher) -> list[LayerTruth]:
    """All layers of a case."""
    return truth_of(case_of(name), fisher)


def truth_of(case: Case, fisher: Fisher) -> list[LayerTruth]:
    """All layers of a case."""
    case = replace(case, model=dense.unmerged(case.model))
    layers = select_layers(case.model, case.layers)
    rows = range(case.count)
    asked = shifted(case, rows).targets
    own = [case.score(row) for row in rows]
    other = [case.score(row, asked[row, None][..., : _width(case, row)]) for row in rows]
    pseudo = [labels(case, row, fisher) for row in rows]

    def tokens(layer: Layer) -> list[list[tuple[Tensor, Tensor]]]:
        return [[dense.tokens_of(case.model, layer.modules, s) for s in terms] for terms in pseudo]

    documents, queries = (
        [weight_gradients(case.model, layers, score) for score in scores] for scores in (own, other)
    )
    labelled = documents if fisher == "empirical" else None
    drawn = [
        [labelled[row]] if labelled else [weight_gradients(case.model, layers, s) for s in terms]
        for row, terms in enumerate(pseudo)
    ]
    return [
        LayerTruth(
            [torch.stack([g[i] for g in terms]) for terms in drawn],
            torch.stack([g[i] for g in documents]),
            torch.stack([g[i] for g in queries]),
            partial(tokens, layer),
        )
        for i, layer in enumerate(layers)
    ]


def weight_gradients(model: nn.Module, layers: Sequence[Layer], score: dense.Score) -> list[Tensor]:
    """``[D]`` gradient of a score for each layer, by one ``torch.func.grad`` over all of them."""
    named = dict(model.named_parameters(remove_duplicate=False))
    owned: dict[str, list[str]] = {}
    for layer in layers:
        for part in ("weight", "bias"):
            own = named.get(f"{layer.name}.{part}")
            if own is not None:
                owned[f"{layer.name}.{part}"] = [n for n, p in named.items() if p is own]

    def scalar(values: dict[str, Tensor]) -> Tensor:
        replaced = {n: values[key] for key, names in owned.items() for n in names}
        return score(lambda *a, **k: torch.func.functional_call(model, replaced, a, k))

    found = torch.func.grad(scalar)({key: named[key].detach() for key in owned})
    result = []
    for layer in layers:
        matrix = found[f"{layer.name}.weight"].flatten(1)
        if type(model.get_submodule(layer.name)).__name__ == "Conv1D":
            matrix = matrix.T
        bias = found.get(f"{layer.name}.bias")
        if bias is not None:
            matrix = torch.cat([matrix, bias[:, None]], 1)
        result.append(matrix.detach().double().reshape(-1))
    return result


def _width(case: Case, row: int) -> int:
    """Positions of a document run alone, without padding."""
    targets = case.batch([row]).targets
    return targets.shape[1] if targets.ndim > 1 else 1


def exact_block(layer: LayerTruth) -> Tensor:
    """``E over documents of sum_c g_c g_c^T``."""
    return sum(g.T @ g for g in layer.pseudo) / len(layer.pseudo)


def kfac_block(layer: LayerTruth) -> Tensor:
    """``T E[delta delta^T] (x) E[a a^T]``, means over positions, ``T`` positions a document."""
    a, s, positions = layer.factors
    return positions / len(layer.pseudo) * torch.kron(s / positions, a / positions)


def ekfac_block(layer: LayerTruth) -> Tensor:
    """The best diagonal in the eigenbasis of the Kronecker factors."""
    a, s, _ = layer.factors
    basis = torch.kron(torch.linalg.eigh(s).eigenvectors, torch.linalg.eigh(a).eigenvectors)
    squares = sum((g @ basis).square().sum(0) for g in layer.pseudo) / len(layer.pseudo)
    return basis @ torch.diag(squares) @ basis.T


def diagonal_block(layer: LayerTruth) -> Tensor:
    """The diagonal of the exact block."""
    return torch.diag(exact_block(layer).diagonal())


def identity_block(layer: LayerTruth) -> Tensor:
    """One."""
    return torch.eye(layer.documents.shape[1], dtype=torch.float64)


def damped_inverse(block: Tensor, damping: float) -> Tensor:
    """``(G + damping x mean eigenvalue)^-1``."""
    lam = damping * block.diagonal().mean()
    return torch.linalg.inv(block + lam * torch.eye(len(block), dtype=torch.float64))


def datainf_inverse(layer: LayerTruth, damping: float) -> Tensor:
    """The mean of explicit inverses of single documents' damped blocks."""
    gradients = layer.documents
    size = gradients.shape[1]
    lam = damping * gradients.square().sum(1).mean() / size
    eye = lam * torch.eye(size, dtype=torch.float64)
    return sum(torch.linalg.inv(torch.outer(g, g) + eye) for g in gradients) / len(gradients)


@dataclass(frozen=True)
class Applied:
    """A layer's explicit ``(G_l + lambda_l)^-1``, applied.

    Attributes:
        solved: ``[query, D]``, of queries.
        scores: ``q^T (G_l + lambda_l)^-1 g / N``, ``[query, document]``.
        energies: ``g^T (G_l + lambda_l)^-1 g`` of documents.
        mean: Mean eigenvalue of the inverse.
    """

    solved: Tensor
    scores: Tensor
    energies: Tensor
    mean: float

    @classmethod
    def of(cls, inverse: Tensor, layer: LayerTruth) -> Applied:
        """Apply an inverse ``[D, D]`` to a layer's gradients."""
        solved = layer.queries @ inverse
        known = layer.documents
        return cls(
            solved,
            solved @ known.T / len(known),
            (known @ inverse * known).sum(1),
            float(inverse.diagonal().mean()),
        )


def extractor_of(case: Case) -> GradientExtractor:
    return GradientExtractor(case.model, case.objective, select_layers(case.model, case.layers))


def pairs(
    case: Case,
    fisher: Fisher,
    *,
    size: int = 3,
    rows: Sequence[int] | None = None,
    seed: int = SEED,
) -> PseudoGradients:
    """The package's own source of pseudo-gradients, in batches of ``size`` documents."""
    chosen = list(range(case.count)) if rows is None else list(rows)

    def batches() -> Iterator[Batch]:
        for start in range(0, len(chosen), size):
            yield case.batch(chosen[start : start + size])

    return PseudoGradients(extractor_of(case), batches, fisher, seed=seed)


@dataclass(frozen=True)
class Altered:
    """A source of pairs in which one layer's output gradients are multiplied by a number."""

    source: PseudoGradients
    layer: int
    factor: float

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.source.layers

    def run(self, consume: Consumer) -> int:
        def altered(pair: object) -> None:
            if pair.layer == self.layer:
                pair = replace(pair, deltas=pair.deltas * self.factor)
            consume(pair)

        return self.source.run(altered)


def tensor_case(
    name: str,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layers: str | tuple[str, ...] = "linear",
) -> Case:
    """A classifier of given examples."""
    from wherefrom.gradients.batches import stack_examples

    def batch(rows: list[int]) -> Batch:
        return stack_examples(x[rows], y[rows], [f"d{i}" for i in rows])

    return Case(name, model, layers, Classification(), batch, len(x))
