"""Is the curvature doing anything? Influence against the plain gradient dot product.

With too much damping, influence is the gradient dot product under another name, and every claim
about curvature is empty. So a build compares the two on a sample of documents.
"""

from __future__ import annotations

import numpy as np
import torch

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import documents_at_once
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.indexer.room import Room
from wherefrom.indexer.sources import Source, sample

__all__ = ["VACUOUS", "gradient_dot_correlation", "vacuity_note"]

VACUOUS = 0.98
"""From this Pearson correlation on, scores are as good as the gradient dot product."""

_SAMPLE, _SMALLEST_SAMPLE = 48, 6
_SAMPLE_POSITIONS = 2048


def vacuity_note(
    extractor: GradientExtractor,
    curvature: FittedCurvature,
    source: Source,
    room: Room,
    seed: int,
) -> str | None:
    """What to say of a curvature that does next to nothing; ``None`` of one that does.

    Args:
        extractor: Model, objective and layers.
        curvature: Fitted.
        source: The corpus, a sample of which is run.
        room: How much of it may run together.
        seed: Of the sample.
    """
    if curvature.kind == "identity":
        return None  # It is the gradient dot product.
    at_most = documents_at_once(_SAMPLE, extractor.layers, extractor.objective.copies)
    at_most = room.fitting(max(at_most, _SMALLEST_SAMPLE))
    chosen = sample(source, at_most, seed)
    shard = next(source.shards(at_most, chosen))
    count = len(shard.documents)
    batch = shard.examples.shortened(_SAMPLE_POSITIONS // count).batch(np.arange(count))
    correlation = gradient_dot_correlation(extractor, curvature, batch)
    if not correlation >= VACUOUS:
        return None
    return (
        f"scores correlate at {correlation:.3f} with the plain gradient dot product on a "
        f"sample of {len(batch)} documents: the curvature does next to nothing here; more "
        f"documents to fit on{'' if curvature.kind == 'ekfac' else ', another curvature'} or a "
        "smaller damping may help"
    )


def gradient_dot_correlation(
    extractor: GradientExtractor, curvature: FittedCurvature, batch: Batch
) -> float:
    """Pearson correlation of influence with gradient dots, over pairs of different documents.

    Influence is compared with the plain gradient dot and with the one that weights each layer by
    the mean of its damped inverse eigenvalues, which is what large damping leaves of it.

    Returns:
        The larger of the two; NaN when there are fewer than three pairs or all are alike.
    """
    coordinates = curvature.coordinates()
    count = len(batch)
    sums = torch.zeros(3, count, count, dtype=torch.float64, device=extractor.device)

    def add(pair: LayerPair) -> None:
        found = coordinates(pair)  # orthogonal, so dot products are those of the raw gradients
        solved = curvature.solve(pair.layer, found).flatten(1)
        flat = found.flatten(1)
        plain = (flat @ flat.T).double()
        sums[0] += solved @ flat.double().T
        sums[1] += plain
        sums[2] += plain * curvature.mean_inverse(pair.layer)

    with extractor.session():
        true_gradients(extractor, batch, add)
    rows, columns = np.triu_indices(count, 1)
    influence, *dots = sums.cpu().numpy()[:, rows, columns]
    if len(rows) < 3 or influence.std() == 0.0 or any(dot.std() == 0.0 for dot in dots):
        return float("nan")
    return max(float(np.corrcoef(influence, dot)[0, 1]) for dot in dots)
