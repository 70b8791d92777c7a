"""Curvatures side by side on the blocks of one LoRA adapter.

The blocks are small and the model around them is not: nearly all time goes into passes of the
model. So a pass is recorded, and every curvature is fitted on the recording and asked with it.
All use the same damping, ``DAMPING`` times the mean eigenvalue of their own block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.bases import GradientRotation, StandardBasis, gradients_of
from wherefrom.curvature.datainf import FittedDataInf
from wherefrom.curvature.diagonal import Identity
from wherefrom.curvature.ekfac import EKFAC
from wherefrom.curvature.fitted import Coordinates
from wherefrom.curvature.kfac import KFAC
from wherefrom.curvature.lissa import LiSSA
from wherefrom.curvature.samples import KeptGradients, squared_norms
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import Consumer, GradientExtractor, LayerPair
from wherefrom.gradients.fisher import Fisher, PseudoGradients, true_gradients
from wherefrom.gradients.layers import Layer

__all__ = [
    "DAMPING",
    "Direct",
    "Fit",
    "Recording",
    "Solver",
    "Unscaled",
    "fits",
    "products",
    "self_influence",
    "solve_seconds",
]

DAMPING = 0.1

_Placed = Iterable[tuple[NDArray[np.int64], Batch]]


class Solver(Protocol):
    """What is asked of a curvature here: a part of ``FittedCurvature``."""

    def coordinates(self) -> Coordinates:
        """What writes gradients in its basis."""
        ...

    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """``(G_l + lambda_l)^-1`` of gradients in the basis, float64."""
        ...

    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """Back from the basis, float64."""
        ...

    def with_damping(self, damping: float) -> Solver:
        """The same fit under another damping."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One pass over documents: a source of pairs that needs no model any more.

    Attributes:
        layers: As in the extractor.
        pairs: In the order in which they came.
        positions: Of the documents, as batches brought them, int64 ``[document]``.
        nats: Log-likelihoods in the order of the documents, float64; none for pseudo-gradients.
        seconds: CPU time of the pass.
    """

    layers: tuple[Layer, ...]
    pairs: tuple[LayerPair, ...]
    positions: NDArray[np.int64]
    nats: NDArray[np.float64]
    seconds: float

    @classmethod
    def own(cls, extractor: GradientExtractor, documents: _Placed) -> Recording:
        """Of the documents' own gradients."""
        pairs: list[LayerPair] = []
        found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        start = time.process_time()
        with extractor.session():
            for positions, batch in documents:
                nats = true_gradients(extractor, batch, pairs.append)
                found.append((positions, nats.double().numpy()))
        seconds = time.process_time() - start
        order = np.concatenate([positions for positions, _ in found])
        nats = np.concatenate([values for _, values in found])[np.argsort(order)]
        return cls(extractor.layers, tuple(pairs), order, nats, seconds)

    @classmethod
    def pseudo(
        cls, extractor: GradientExtractor, documents: _Placed, fisher: Fisher, seed: int
    ) -> Recording:
        """Of pseudo-gradients."""
        placed = list(documents)
        pairs: list[LayerPair] = []
        source = PseudoGradients(extractor, lambda: (b for _, b in placed), fisher, seed=seed)
        start = time.process_time()
        source.run(pairs.append)
        seconds = time.process_time() - start
        order = np.concatenate([positions for positions, _ in placed])
        return cls(extractor.layers, tuple(pairs), order, np.empty(0), seconds)

    def run(self, consume: Consumer) -> int:
        """Show all pairs once; the number of documents."""
        for pair in self.pairs:
            consume(pair)
        return len(self.positions)

    def coordinates(self, curvature: Solver) -> list[Tensor]:
        """Own gradients in a curvature's basis, ``[document, d_out, d_in]`` of each layer."""
        return self._in_order(curvature.coordinates())

    def gradients(self) -> list[Tensor]:
        """Own gradients, ``[document, d_out d_in]`` of each layer."""
        return [g.flatten(1) for g in self._in_order(gradients_of)]

    def _in_order(self, written: Coordinates) -> list[Tensor]:
        rows: list[list[Tensor]] = [[] for _ in self.layers]
        for pair in self.pairs:
            rows[pair.layer].append(written(pair))
        back = torch.from_numpy(np.argsort(self.positions))
        return [torch.cat(parts)[back] for parts in rows]


@dataclass(frozen=True, slots=True, eq=False)
class Direct:
    """The damped exact block, solved directly: ``(P^T P / n + lambda)^-1``.

    With n gradients ``P`` of d weights this is a system of size min(n, d): the block itself, or by
    Woodbury's identity ``(g - P^T (n lambda + P P^T)^-1 P g) / lambda``. For blocks of few
    documents or few weights there is nothing to approximate.

    Attributes:
        gradients: ``[gradient, d_out d_in]`` of each layer, float64.
        grams: The smaller of ``P^T P`` and ``P P^T``.
        shifts: ``lambda`` of each layer.
        factors: Cholesky factors of the smaller system.
        documents: n.
    """

    gradients: tuple[Tensor, ...]
    grams: tuple[Tensor, ...]
    shifts: tuple[float, ...]
    factors: tuple[Tensor, ...]
    documents: int

    @classmethod
    def fit(cls, source: Recording) -> Direct:
        """Keep the gradients of a source, and factor the systems."""
        kept = KeptGradients(source.layers, "exact")
        seen = source.run(kept.add)
        gradients = tuple(g.double() for g in kept.gradients())
        grams = tuple(g @ g.T if len(g) <= g.shape[1] else g.T @ g for g in gradients)
        return cls(gradients, grams, (), (), seen).with_damping(DAMPING)

    def with_damping(self, damping: float) -> Direct:
        """The same gradients under another damping."""
        shifts = tuple(
            damping * float(squared_norms(g).sum()) / self.documents / g.shape[1]
            for g in self.gradients
        )
        factors = tuple(
            torch.linalg.cholesky(gram + self.documents * shift * torch.eye(len(gram)).double())
            for gram, shift in zip(self.grams, shifts, strict=True)
        )
        return replace(self, shifts=shifts, factors=factors)

    def coordinates(self) -> Coordinates:
        """Gradients as they are."""
        return GradientRotation(tuple(StandardBasis() for _ in self.gradients))

    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """The coordinates, float64."""
        return coordinates.double()

    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """The solution, float64."""
        kept, factor = self.gradients[layer], self.factors[layer]
        g = coordinates.double().flatten(-2)
        if len(kept) <= kept.shape[1]:
            inner = torch.cholesky_solve((g @ kept.T).T, factor).T
            solved = (g - inner @ kept) / self.shifts[layer]
        else:
            solved = self.documents * torch.cholesky_solve(g.T, factor).T
        return solved.reshape(coordinates.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Unscaled:
    """LiSSA as the code published with DataInf has it: ``STEPS`` steps, without a scale.

    ``v <- g + v - (G - lambda) v``: the damping has the opposite sign of LiSSA's. Where the
    gradients are small this stays near ``STEPS`` times ``g``, a plain gradient dot; where the
    largest eigenvalue of G is above 2 it diverges.

    Attributes:
        exact: The same gradients and damping.
    """

    STEPS: ClassVar[int] = 10
    exact: Direct

    def with_damping(self, damping: float) -> Unscaled:
        """The same gradients under another damping."""
        return Unscaled(self.exact.with_damping(damping))

    def coordinates(self) -> Coordinates:
        """Gradients as they are."""
        return self.exact.coordinates()

    def raw(self, layer: int, coordinates: Tensor) -> Tensor:
        """The coordinates, float64."""
        return coordinates.double()

    def solve(self, layer: int, coordinates: Tensor) -> Tensor:
        """The last iterate, float64."""
        kept, shift = self.exact.gradients[layer], self.exact.shifts[layer]
        g = coordinates.double().flatten(-2)
        v = g
        for _ in range(self.STEPS):
            v = g + v - ((v @ kept.T) @ kept / self.exact.documents - shift * v)
        return v.reshape(coordinates.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A curvature and what it cost.

    Attributes:
        curvature: Fitted.
        algebra: CPU seconds beside passes of the model.
        passes: CPU seconds of the passes of the model that it takes.
    """

    curvature: Solver
    algebra: float
    passes: float


def fits(own: Recording, pseudo: Recording, fisher: Fisher) -> dict[str, Fit]:
    """All curvatures, by name; those of a Fisher matrix once with each kind of it.

    Args:
        own: The documents' own gradients: those of the empirical Fisher matrix.
        pseudo: Pseudo-gradients of the model's default one.
        fisher: Its name.
    """
    found = {
        "gradient dot": _timed(partial(Identity().fit, own), 0.0),
        "datainf": _timed(partial(_datainf, own), own.seconds),
        "lissa, 10 steps": _timed(
            partial(LiSSA(DAMPING, most_iterations=10).fit, own), own.seconds
        ),
    }
    for name, source in (("empirical", own), (fisher, pseudo)):
        found |= {
            f"kfac, {name}": _timed(partial(KFAC(DAMPING).fit, source), source.seconds),
            f"ekfac, {name}": _timed(partial(EKFAC(DAMPING).fit, source), 2 * source.seconds),
            f"exact, {name}": _timed(partial(Direct.fit, source), source.seconds),
        }
    exact = Direct.fit(own)
    found["lissa, unscaled"] = replace(found["lissa, 10 steps"], curvature=Unscaled(exact))
    return found


def products(
    curvature: Solver, asked: Recording, weights: Tensor, documents: Sequence[Tensor]
) -> NDArray[np.float64]:
    """``(1/N) grad f^T (G_l + lambda_l)^-1 grad log p`` of every pair, layer by layer.

    Args:
        curvature: Solves.
        asked: Gradients of measurements.
        weights: Of those in each question, float64 ``[question, asked]``.
        documents: From :meth:`Recording.gradients`.

    Returns:
        float64 ``[layer, question, document]``, nats per added copy.
    """
    found = []
    for i, coordinates in enumerate(asked.coordinates(curvature)):
        mixed = torch.einsum("qa,aij->qij", weights, coordinates.double())
        solved = curvature.raw(i, curvature.solve(i, mixed)).flatten(1)
        found.append((solved @ documents[i].double().T / len(documents[i])).numpy())
    return np.stack(found)


def solve_seconds(curvature: Solver, asked: Recording, weights: Tensor) -> float:
    """CPU seconds of the solves of the last question alone, all layers."""
    coordinates = asked.coordinates(curvature)
    mixed = [torch.einsum("a,aij->ij", weights[-1], c.double())[None] for c in coordinates]
    start = time.process_time()
    for i, question in enumerate(mixed):
        curvature.raw(i, curvature.solve(i, question))
    return time.process_time() - start


def self_influence(curvature: Solver, own: Recording) -> NDArray[np.float64]:
    """Influence of every document on itself, float64 ``[document]``, nats per added copy."""
    total = np.zeros(len(own.positions))
    for i, coordinates in enumerate(own.coordinates(curvature)):
        energies = coordinates.double() * curvature.solve(i, coordinates)
        total += energies.flatten(1).sum(1).numpy()
    return total / len(total)


def _datainf(source: Recording) -> FittedDataInf:
    """As its authors compute it: by a scan of the gradients, without a basis to store them in."""
    kept = KeptGradients(source.layers, "datainf")
    seen = source.run(kept.add)
    gradients = kept.gradients()
    return FittedDataInf(
        source.layers,
        gradients,
        tuple(squared_norms(g) for g in gradients),
        tuple(StandardBasis() for _ in gradients),
        tuple(None for _ in gradients),
        seen,
        DAMPING,
        DAMPING,
    )


def _timed(fit: Callable[[], Solver], passes: float) -> Fit:
    start = time.process_time()
    curvature = fit()
    return Fit(curvature, time.process_time() - start, passes)
