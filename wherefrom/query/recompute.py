"""Exact scores of chosen documents: their gradients run again, uncompressed.

Each document runs alone, so its score is a function of the index, the question and the document
only, and not of the batch it happens to be in or of what else was a candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from wherefrom.gradients.examples import Examples
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.query.documents import examples_of
from wherefrom.query.exact import exact_products
from wherefrom.query.search import Ranked

__all__ = ["recomputed"]


def recomputed(
    extractor: GradientExtractor, query: list[Tensor], documents: Sequence[Ranked]
) -> list[Ranked]:
    """The same documents with exact inner products in place of stored ones.

    Args:
        extractor: Model, objective and layers.
        query: ``(G + lambda)^-1 grad f`` of one question: of each layer float64
            ``[1, d_out x d_in]``, in the order of its weight.
        documents: Which.
    """
    prepared: dict[int, Examples] = {}
    for one in documents:
        if id(one.rows) not in prepared:
            prepared[id(one.rows)] = examples_of(extractor, one.rows)
    alone = (
        (np.array([i]), prepared[id(one.rows)].batch(np.array([one.position])))
        for i, one in enumerate(documents)
    )
    products = exact_products(extractor, query, alone, len(documents))[0]
    return [replace(one, product=float(p)) for one, p in zip(documents, products, strict=True)]
