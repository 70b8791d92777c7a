"""Truths 2 to 5 and 9: every curvature equals its dense twin on every kind of layer."""

from __future__ import annotations

import pytest
from torch import Tensor

from curvature import reference
from curvature.contract import CurvatureContract, parameters
from curvature.reference import Applied, LayerTruth
from wherefrom.curvature import datainf
from wherefrom.curvature.fitted import Curvature, FittedCurvature
from wherefrom.curvature.kinds import make_curvature
from wherefrom.curvature.lissa import LiSSA


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parameters(metafunc)


class TestEKFAC(CurvatureContract):
    kind = "ekfac"

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("ekfac", damping)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.damped_inverse(reference.ekfac_block(layer), damping)


class TestKFAC(CurvatureContract):
    kind = "kfac"

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("kfac", damping)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.damped_inverse(reference.kfac_block(layer), damping)


class TestDiagonal(CurvatureContract):
    kind = "diagonal"

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("diagonal", damping)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.damped_inverse(reference.diagonal_block(layer), damping)


class TestExact(CurvatureContract):
    kind = "exact"

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("exact", damping)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.damped_inverse(reference.exact_block(layer), damping)


class TestLiSSA(CurvatureContract):
    """With a damping at which the series converges in a few hundred steps."""

    kind = "lissa"
    damping = 50.0
    tolerance = 1e-6
    whitens = False
    zero_damping = False
    knows_energy = False

    def recipe(self, damping: float) -> Curvature:
        return LiSSA(damping, tolerance=1e-9, most_iterations=20_000)

    def default(self) -> Curvature:
        return LiSSA(tolerance=1e-2)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.damped_inverse(reference.exact_block(layer), damping)

    def mean_inverse(self, applied: Applied, layer: LayerTruth, damping: float) -> float:
        """A bound: one over lambda."""
        return 1.0 / float(damping * reference.exact_block(layer).diagonal().mean())


class TestDataInf(CurvatureContract):
    """Its ``M`` has a trace below 1: away from a few directions it only weights the layers."""

    kind = "datainf"
    telling = "lora-llama"
    more_than_weights = False
    zero_damping = False
    knows_energy = False

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("datainf", damping)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.datainf_inverse(layer, damping)


class TestDataInfOfLargeLayers(TestDataInf):
    """The other form: raw gradients are stored, and queries solved by a scan of them."""

    whitens = False

    def fit(self, source: object, damping: float | None = None) -> FittedCurvature:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datainf, "LARGEST_WHITENED_BLOCK", 0)
            return super().fit(source, damping)


class TestIdentity(CurvatureContract):
    kind = "identity"
    damping = 0.0
    fitted_on = False
    knows_energy = False

    def recipe(self, damping: float) -> Curvature:
        return make_curvature("identity", damping)

    @staticmethod
    def inverse(layer: LayerTruth, damping: float) -> Tensor:
        return reference.damped_inverse(reference.identity_block(layer), damping)

    def test_at_the_default_damping_scores_are_not_the_gradient_dot(self) -> None:
        pytest.skip("it is the gradient dot, and nothing else")
