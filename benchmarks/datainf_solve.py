"""What DataInf costs a query, against a direct solve with the dense damped block.

One layer of ``d_l`` weights and 1,000 documents, whose gradients are kept in float32 and have a
spectrum that decays by a power law on both sides of the layer. A query is a pair of activations
and output gradients, and what is timed goes from there to its preconditioned gradient:

* DataInf, as the library applies it: the coordinates of the query, and ``FittedDataInf.solve``;
* the dense block ``(1/n) sum_i g_i g_i^T + lambda`` in float64, Cholesky-factorised for each query
  (*direct*) or once before (*factorised once*); forming the block is not counted in either;
* the same inverse by way of the n x n Gram matrix (Woodbury), factorised once: two scans over the
  kept gradients where DataInf takes one, and exact.

All times are CPU time: a factorisation of a minute and a query of a millisecond fare differently
when others use the machine too, and their ratio would tell more of them than of the methods.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from benchmarks.figures import Figure, Report, command, expect
from wherefrom.curvature.datainf import LARGEST_WHITENED_BLOCK, DataInf, FittedDataInf
from wherefrom.curvature.samples import row_blocks
from wherefrom.gradients.extractor import Consumer, LayerPair
from wherefrom.gradients.layers import Layer

__all__ = ["measure"]

_DOCUMENTS = 1000
_TOKENS = 8
_DECAY = 0.75
_BATCH = 100


class SyntheticPairs:
    """Pairs of a layer with ``side x side`` weights, the same on every run.

    Args:
        side: Inputs and outputs of the layer.
        documents: How many.
        dtype: Of activations and output gradients.
    """

    def __init__(self, side: int, documents: int, dtype: torch.dtype = torch.float32) -> None:
        self.layers = (Layer("synthetic", ("synthetic",), "Linear", side, side, False),)
        self._documents = documents
        self._dtype = dtype
        self._sizes = torch.arange(1, side + 1, dtype=torch.float64) ** -_DECAY

    def run(self, consume: Consumer) -> int:
        """Hand over all documents, a batch at a time."""
        for start in range(0, self._documents, _BATCH):
            consume(self.pair(min(_BATCH, self._documents - start), start))
        return self._documents

    def pair(self, documents: int, seed: int) -> LayerPair:
        """Documents that depend on the seed alone."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(
            2, documents, _TOKENS, len(self._sizes), dtype=torch.float64, generator=generator
        )
        activations, deltas = (drawn * self._sizes).to(self._dtype)
        return LayerPair(0, activations, deltas, 0, documents * _TOKENS, True)


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU seconds at one size of layer.

    Attributes:
        datainf: Of each query.
        direct: Of each query, factorisation included.
        factorised: Of each query, with the factorisation at hand.
        woodbury: Of each query, with the factorised Gram matrix at hand.
        forming: Of forming the dense block, once.
    """

    datainf: tuple[float, ...]
    direct: tuple[float, ...]
    factorised: tuple[float, ...]
    woodbury: tuple[float, ...]
    forming: float


class DenseBlock:
    """``(1/n) sum_i g_i g_i^T + lambda``, in float64."""

    def __init__(self, fitted: FittedDataInf, lam: float) -> None:
        kept = fitted.gradients[0]
        self.matrix = torch.zeros(kept.shape[1], kept.shape[1], dtype=torch.float64)
        for _, rows in row_blocks(kept):
            self.matrix.addmm_(rows.T, rows, alpha=1 / fitted.documents)
        self.matrix.diagonal().add_(lam)
        self.factor: Tensor | None = None

    def solve(self, g: Tensor) -> Tensor:
        """Factorise, and solve for one gradient."""
        self.factor = None  # Two factors of 16,384 weights would take 4 GB.
        self.factor = torch.linalg.cholesky(self.matrix)
        return self.solve_factorised(g, self.factor)

    def solve_factorised(self, g: Tensor, factor: Tensor) -> Tensor:
        """Solve for one gradient."""
        return torch.cholesky_solve(g.double().reshape(-1, 1), factor).flatten()


class GramBlock:
    """The same inverse: ``(g - P^T (n lambda + P P^T)^-1 P g) / lambda``."""

    def __init__(self, fitted: FittedDataInf, lam: float) -> None:
        self._kept = fitted.gradients[0]
        self._lam = lam
        kept = self._kept.double()
        gram = kept @ kept.T
        gram.diagonal().add_(fitted.documents * lam)
        self._factor = torch.linalg.cholesky(gram)

    def solve(self, g: Tensor) -> Tensor:
        """For one gradient: two scans of the kept ones."""
        flat = g.double().flatten()
        products = torch.cat([rows @ flat for _, rows in row_blocks(self._kept)])
        weights = torch.cholesky_solve(products[:, None], self._factor).flatten()
        solved = flat.clone()
        for start, rows in row_blocks(self._kept):
            solved -= weights[start : start + len(rows)] @ rows
        return solved / self._lam


def measure(*, quick: bool) -> Report:
    """Time DataInf against dense solves at growing sizes of layer."""
    sides = (16, 32) if quick else (32, 64, 128)
    checks = [_check_whitened(), _check_scan()]
    figures: list[Figure] = []
    forming: dict[str, float] = {}
    worst = 0.0
    for side in sides:
        costs, difference = _costs(side, quick=quick)
        worst = max(worst, difference)
        name = f"d_l = {side * side:,}"
        figures += [
            Figure(f"{name}: direct solve / DataInf", "×", (_ratio(costs.direct, costs),)),
            Figure(
                f"{name}: solve, factorised once / DataInf", "×", (_ratio(costs.factorised, costs),)
            ),
            Figure(
                f"{name}: Woodbury, factorised once / DataInf",
                "×",
                (_ratio(costs.woodbury, costs),),
            ),
            Figure(f"{name}: DataInf, a query", "ms", _milliseconds(costs.datainf)),
            Figure(f"{name}: direct solve, a query", "ms", _milliseconds(costs.direct)),
            Figure(f"{name}: solve, factorised once", "ms", _milliseconds(costs.factorised)),
            Figure(f"{name}: Woodbury, factorised once", "ms", _milliseconds(costs.woodbury)),
        ]
        forming[name] = costs.forming
    checks.append(
        expect(
            worst < 1e-8,
            "the dense solve and Woodbury's agree within 1e-8 at every size",
        )
    )
    return Report(
        tuple(figures),
        tuple(checks),
        {
            "kept_gradients": _DOCUMENTS,
            "stored_whitened_up_to": LARGEST_WHITENED_BLOCK,
            "cpu_seconds_to_form_the_block": forming,
            "tokens_per_gradient": _TOKENS,
            "decay_of_activations_and_deltas": _DECAY,
            "threads": torch.get_num_threads(),
        },
    )


def _costs(side: int, *, quick: bool) -> tuple[Costs, float]:
    """Times, and the largest relative difference between the two exact solutions."""
    source = SyntheticPairs(side, _DOCUMENTS)
    fitted = DataInf().fit(source)
    lam = fitted.damping * float(fitted.squared[0].sum()) / fitted.documents / side**2
    asked = source.pair(1, _DOCUMENTS + 1)
    rotation = fitted.coordinates()
    g = (asked.deltas.transpose(1, 2) @ asked.activations)[0]
    started = time.process_time()
    dense = DenseBlock(fitted, lam)
    forming = time.process_time() - started
    gram = GramBlock(fitted, lam)
    rounds = 1 if side >= 128 else 3
    direct = _times(lambda: dense.solve(g), rounds)
    factor = dense.factor
    expect(factor is not None, "the block is factorised")
    if factor is None:
        factor = torch.linalg.cholesky(dense.matrix)
    exact = dense.solve_factorised(g, factor)
    difference = float((gram.solve(g) - exact).norm() / exact.norm())
    many = 3 if quick else 15
    return (
        Costs(
            _times(lambda: fitted.solve(0, rotation(asked)), many),
            direct,
            _times(lambda: dense.solve_factorised(g, factor), min(many, 5)),
            _times(lambda: gram.solve(g), many),
            forming,
        ),
        difference,
    )


def _check_whitened() -> str:
    return expect(
        _worst_difference(side=24, documents=30, damping=0.1) < 1e-8,
        "in float64 DataInf equals the mean of explicit inverses within 1e-8 (whitened, d_l = 576)",
    )


def _check_scan() -> str:
    return expect(
        _worst_difference(side=24, documents=30, damping=0.3) < 1e-8
        and _worst_difference(side=46, documents=3, damping=0.1) < 1e-8,
        "and so it does where it scans the kept gradients (d_l = 2,116; another damping)",
    )


def _worst_difference(side: int, documents: int, damping: float) -> float:
    """Of DataInf, fitted at damping 0.1, from ``(1/n) sum_i (g_i g_i^T + lambda)^-1 g``."""
    source = SyntheticPairs(side, documents, torch.float64)
    fitted = DataInf().fit(source).with_damping(damping)
    asked = source.pair(1, documents + 1)
    found = fitted.raw(0, fitted.solve(0, fitted.coordinates()(asked))).flatten()
    kept = fitted.gradients[0]
    lam = damping * float(kept.square().sum()) / documents / side**2
    g = (asked.deltas.transpose(1, 2) @ asked.activations).flatten()
    mean = torch.zeros_like(g)
    for row in kept:
        matrix = torch.outer(row, row)
        matrix.diagonal().add_(lam)
        mean += torch.linalg.solve(matrix, g) / documents
    return float((found - mean).norm() / mean.norm())


def _times(run: Callable[[], object], rounds: int) -> tuple[float, ...]:
    """CPU seconds of each call, after one that does not count where there are many."""
    if rounds > 1:
        run()
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return tuple(taken)


def _ratio(times: tuple[float, ...], costs: Costs) -> float:
    return median(times) / median(costs.datainf)


def _milliseconds(times: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(1e3 * taken for taken in times)


if __name__ == "__main__":
    command(measure)()
