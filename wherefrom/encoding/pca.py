"""Principal directions of documents' reduced vectors, to project all vectors on.

The basis is stored with the index and weighs ``4 reduced pca`` bytes there; fitted on few documents
it fits these, and not the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wherefrom.errors import WherefromError

__all__ = ["fit_pca"]


def fit_pca(vectors: Tensor, dimension: int) -> Tensor:
    """The directions in which a sample of vectors has most of its squared length.

    Vectors are not centred, for it is inner products that are to be kept.

    Args:
        vectors: ``[doc, reduced]`` of a sample of documents.
        dimension: How many directions.

    Returns:
        float32 ``[reduced, dimension]``, orthonormal columns, the strongest first.

    Raises:
        WherefromError: The sample is smaller than the number of directions.
    """
    documents, reduced = vectors.shape
    if not 1 <= dimension <= min(documents, reduced):
        raise WherefromError(
            f"pca={dimension} cannot be fitted on {documents} vectors of {reduced} entries; give "
            f"1 to {min(documents, reduced)}, or a larger sample"
        )
    sample = vectors.double()
    if documents < reduced:
        found = torch.linalg.eigh(sample @ sample.T).eigenvectors[:, -dimension:].flip(1)
        directions = sample.T @ found
    else:
        directions = torch.linalg.eigh(sample.T @ sample).eigenvectors[:, -dimension:].flip(1)
    # Where the sample spans fewer directions than asked for, this completes them.
    basis: Tensor = torch.linalg.qr(directions).Q.float().contiguous()
    return basis
