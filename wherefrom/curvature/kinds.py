"""All curvatures by name: how to fit one, and how to read one back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from torch import Tensor

from wherefrom.curvature.datainf import DataInf, FittedDataInf
from wherefrom.curvature.diagonal import Diagonal, Identity
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.curvature.ekfac import EKFAC
from wherefrom.curvature.exact import Exact
from wherefrom.curvature.fitted import Curvature, CurvatureKind, FittedCurvature
from wherefrom.curvature.kfac import KFAC
from wherefrom.curvature.lissa import FittedLiSSA, LiSSA
from wherefrom.errors import CurvatureError
from wherefrom.gradients.layers import Layer

__all__ = ["CURVATURE_KINDS", "curvature_from_state", "make_curvature"]

CURVATURE_KINDS: tuple[CurvatureKind, ...] = get_args(CurvatureKind)
"""Names of all curvatures, the default first."""

_RECIPES: Mapping[str, Callable[..., Curvature]] = {
    "ekfac": EKFAC,
    "kfac": KFAC,
    "diagonal": Diagonal,
    "identity": Identity,
    "datainf": DataInf,
    "lissa": LiSSA,
    "exact": Exact,
}


def make_curvature(kind: str, damping: float | None = None) -> Curvature:
    """How to fit the curvature of that name.

    Args:
        kind: One of ``CURVATURE_KINDS``.
        damping: ``lambda_l`` in units of the layer's mean eigenvalue; by default 0.1, and 0 for
            the identity.

    Raises:
        CurvatureError: There is none of that name.
    """
    if kind not in _RECIPES:
        names = ", ".join(map(repr, CURVATURE_KINDS))
        raise CurvatureError(f"curvature {kind!r} is unknown; choose one of {names}")
    recipe = _RECIPES[kind]
    return recipe() if damping is None else recipe(damping)


def curvature_from_state(
    kind: str,
    layers: tuple[Layer, ...],
    tensors: Mapping[str, Tensor],
    *,
    documents: int,
    damping: float,
    report: Mapping[str, float],
) -> FittedCurvature:
    """A fitted curvature from the tensors of its ``state``.

    Raises:
        CurvatureError: The kind is unknown, or tensors are missing or of the wrong shape.
    """
    if kind == "datainf":
        return FittedDataInf.from_state(layers, tensors, documents=documents, damping=damping)
    if kind == "lissa":
        return FittedLiSSA.from_state(
            layers, tensors, documents=documents, damping=damping, report=report
        )
    for known in CURVATURE_KINDS:
        if known == kind:
            return FittedEigen.from_state(
                known, layers, tensors, documents=documents, damping=damping, report=report
            )
    raise CurvatureError(f"curvature {kind!r} is unknown; the index needs a newer wherefrom")
