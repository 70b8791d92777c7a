"""An encoder from its stages and a fitted curvature."""

from __future__ import annotations

from torch import Tensor

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.encoding.encoder import Encoder
from wherefrom.encoding.energy import Energy, top_coordinates
from wherefrom.encoding.projection import RandomProjection
from wherefrom.encoding.reduction import NoReduction, Reduction, Sketch
from wherefrom.encoding.rotation import Rotation
from wherefrom.encoding.stages import Stages
from wherefrom.errors import WherefromError

__all__ = ["make_encoder"]


def make_encoder(
    curvature: FittedCurvature, stages: Stages, pca_basis: Tensor | None = None
) -> Encoder:
    """The encoder of these stages.

    Args:
        curvature: Fitted.
        stages: What to do with its whitened gradients.
        pca_basis: ``[reduced, pca]``, if there is a PCA.

    Raises:
        WherefromError: The stages ask for more coordinates than there are, for energies that the
            curvature does not know, or for another basis than the one given.
    """
    expected = None if stages.pca is None else (stages.reduced, stages.pca)
    given = None if pca_basis is None else tuple(pca_basis.shape)
    if expected != given:
        raise WherefromError(
            f"the PCA's basis has shape {given}, the encoder's stages need {expected}; fit it with "
            "fit_pca"
        )
    rotation = Rotation(stages.dimension, stages.seed) if stages.rotate else None
    return Encoder(curvature, _reduction(curvature, stages), pca_basis, rotation)


def _reduction(curvature: FittedCurvature, stages: Stages) -> Reduction:
    sizes = tuple(layer.size for layer in curvature.layers)
    shapes = [layer.shape for layer in curvature.layers]
    weights = sum(sizes)
    if stages.reduce == "none":
        if stages.reduced != weights:
            raise WherefromError(
                f"encoder 'none' keeps all {weights} coordinates, not {stages.reduced}; give "
                "'sketch' to shorten"
            )
        return NoReduction(sizes)
    if stages.reduce == "sketch":
        chosen = None if stages.sketched is None else _top(curvature, stages, stages.sketched)
        return Sketch(sizes, stages.reduced, stages.seed, chosen)
    if stages.reduced > weights:
        raise WherefromError(
            f"encoder {stages.reduce!r} cannot make {stages.reduced} of {weights} coordinates; "
            f"give at most {weights}, or 'none'"
        )
    if stages.reduce == "energy":
        return Energy(shapes, _top(curvature, stages, stages.reduced))
    return RandomProjection(shapes, stages.reduced, stages.seed)


def _top(curvature: FittedCurvature, stages: Stages, count: int) -> tuple[Tensor, ...]:
    """Where the most expected energy is."""
    energies = []
    for i, layer in enumerate(curvature.layers):
        energy = curvature.expected_energy(i)
        if energy is None:
            raise WherefromError(
                f"curvature {curvature.kind!r} knows no eigenvalues of layer {layer.name!r} to "
                f"choose coordinates by (encoder {stages.describe()!r}); give 'sketch' of all"
            )
        energies.append(energy)
    weights = sum(energy.numel() for energy in energies)
    if count > weights:
        raise WherefromError(f"{count} coordinates cannot be chosen of {weights}; give fewer")
    return top_coordinates(energies, count)
