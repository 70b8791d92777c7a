"""How well encoded scores stand for uncompressed ones: encoders measured on a sample.

Two things are asked of an encoder. That a search finds what it should: *recall* is the share of
the ten best of each sign that are among the hundred best encoded ones (the best fifth, of fewer
than 500). And that scores add up, as they do when a model is trained on part of the documents:
*correlation* is that of the sums of scores over random half-subsets with the uncompressed sums.
Over all subsets of half of n documents
the covariance of two such sums is ``n / 4 (n / (n - 1))`` times that of the scores, so this
correlation is Pearson's of the scores, and no subset needs to be drawn.

*Noise* is the root mean square of an encoded score minus the uncompressed one, in units of the
product of both vectors' norms.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.stages import Stages
from wherefrom.encoding.together import encode_together
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.store.quantise import quantise

__all__ = ["Fidelity", "among", "measure", "most_queries"]

_TOP = 10
_SHARE, _MOST = 5, 100
_QUERY_BYTES = 1 << 30
_MOST_QUERIES, _FEWEST_QUERIES = 16, 2


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What was measured of one encoder; see the module's text.

    Attributes:
        recall: From 0 to 1.
        correlation: From -1 to 1.
        noise: At least 0.
        slope: Of encoded scores on uncompressed ones: below 1 where coordinates are left out.
    """

    recall: float
    correlation: float
    noise: float
    slope: float

    @property
    def worth(self) -> float:
        """The smaller of recall and correlation: what a fidelity that is asked for stands for."""
        return min(self.recall, self.correlation)

    @property
    def balance(self) -> float:
        """Their product: what encoders of one budget are chosen by.

        The smaller alone would be the correlation throughout, for a hundred of a sample find more
        than a hundred of a corpus, and would give up the top for it.
        """
        return self.recall * self.correlation


def most_queries(sizes: Sequence[int]) -> int:
    """How many queries memory should hold uncompressed, in float64 and in float32."""
    return max(_FEWEST_QUERIES, min(_MOST_QUERIES, _QUERY_BYTES // (12 * sum(sizes))))


def among(documents: int) -> int:
    """Among how many of the best encoded documents the true ten best are looked for.

    A hundred, or a fifth of a sample of fewer than 500: a hundred of few would hold them anyway.
    """
    return min(_MOST, max(_TOP, documents // _SHARE))


def measure(
    extractor: GradientExtractor,
    curvature: FittedCurvature,
    encoders: Sequence[tuple[Stages, Encoder]],
    queries: Sequence[Batch],
    documents: Iterable[Batch],
) -> list[Fidelity]:
    """Measure encoders side by side: the documents' gradients are run once for all of them.

    Args:
        extractor: Model, objective and layers.
        curvature: That the encoders share.
        encoders: With their stages, whose bits say how vectors are stored.
        queries: One example each.
        documents: The sample, in batches; other documents than the queries.
    """
    solved = _solved(extractor, curvature, queries)
    asked = [encoder.encode_solved(solved) for _, encoder in encoders]
    whitened = _psi(curvature, solved)
    squares = torch.stack([part.double().square().sum(1) for part in whitened])
    norms = squares.sum(0).sqrt().cpu().numpy()
    exact: list[NDArray[np.float64]] = []
    lengths: list[NDArray[np.float64]] = []
    encoded: list[list[NDArray[np.float64]]] = [[] for _ in encoders]
    with extractor.session():
        for batch in documents:
            products = torch.zeros(
                len(queries), len(batch), dtype=torch.float64, device=extractor.device
            )
            squares = torch.zeros(len(batch), dtype=torch.float64, device=extractor.device)

            def score(
                layer: int, phi: Tensor, products: Tensor = products, squares: Tensor = squares
            ) -> None:
                products.add_(whitened[layer] @ phi.float().T)
                squares.add_(torch.linalg.vector_norm(phi, dim=1).double().square())

            vectors = encode_together([e for _, e in encoders], extractor, batch, score)
            exact.append(products.cpu().numpy())
            lengths.append(squares.sqrt().cpu().numpy())
            for (stages, _), query, found, parts in zip(
                encoders, asked, vectors, encoded, strict=True
            ):
                parts.append(query @ quantise(found, stages.bits).vectors.T)
    truth = np.concatenate(exact, 1)
    reach = norms[:, None] * np.concatenate(lengths)[None]
    return [_compared(truth, np.concatenate(parts, 1), reach) for parts in encoded]


def _solved(
    extractor: GradientExtractor, curvature: FittedCurvature, queries: Sequence[Batch]
) -> list[Tensor]:
    """``(G + lambda)^-1 grad f`` in coordinates, of each layer ``[query, d_out, d_in]``."""
    coordinates = curvature.coordinates()
    solved = [
        torch.zeros(len(queries), *layer.shape, dtype=torch.float64, device=extractor.device)
        for layer in extractor.layers
    ]
    with extractor.session():
        for row, batch in enumerate(queries):

            def keep(pair: LayerPair, row: int = row) -> None:
                solved[pair.layer][row] = curvature.solve(pair.layer, coordinates(pair))[0]

            true_gradients(extractor, batch, keep)
    return solved


def _psi(curvature: FittedCurvature, solved: Sequence[Tensor]) -> list[Tensor]:
    """What documents' whitened gradients are multiplied with, float32 ``[query, size]``."""
    return [
        (part / curvature.scale(layer).to(part.device)).flatten(1).float()
        for layer, part in enumerate(solved)
    ]


def _compared(
    exact: NDArray[np.float64], encoded: NDArray[np.float64], reach: NDArray[np.float64]
) -> Fidelity:
    recalls, correlations = [], []
    for truth, found in zip(exact, encoded, strict=True):
        recalls += [_recall(sign * truth, sign * found) for sign in (1, -1)]
        correlations.append(_pearson(truth, found))
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = np.where(reach > 0.0, (encoded - exact) / reach, 0.0)
    return Fidelity(
        float(np.mean(recalls)),
        float(np.mean(correlations)),
        float(np.sqrt(np.mean(np.square(errors)))),
        _slope(exact, encoded),
    )


def _slope(exact: NDArray[np.float64], encoded: NDArray[np.float64]) -> float:
    """Least squares through the origin, the mean over queries; 1 where scores are zero."""
    squares = np.square(exact).sum(1)
    known = squares > 0.0
    if not known.any():
        return 1.0
    return float(np.mean((exact * encoded).sum(1)[known] / squares[known]))


def _recall(exact: NDArray[np.float64], encoded: NDArray[np.float64]) -> float:
    best = np.argsort(-exact, kind="stable")[:_TOP]
    found = np.argsort(-encoded, kind="stable")[: among(len(exact))]
    return float(np.isin(best, found).mean())


def _pearson(exact: NDArray[np.float64], encoded: NDArray[np.float64]) -> float:
    """1 where neither varies, 0 where one does."""
    flat = exact.std() == 0.0, encoded.std() == 0.0
    if any(flat):
        return float(all(flat))
    return float(np.corrcoef(exact, encoded)[0, 1])
