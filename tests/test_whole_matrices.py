"""Matrices written out whole, against the exact block, responses and autograd."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.experiments.whole_matrices import WholeMatrices
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.evaluation.pbrf import damping_of, proximal_responses
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.subject import Subject


def examples(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def network(*widths: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for d_in, d_out in pairwise(widths):
        layers += [nn.Linear(d_in, d_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def test_of_a_linear_model_both_are_the_exact_block() -> None:
    model, documents, queries = network(5, 3), examples(20, 0), examples(4, 1)
    whole = WholeMatrices(model, *documents)
    matrix = whole.gauss_newton()
    torch.testing.assert_close(whole.hessian(), matrix)
    subject = Subject.of_tensors("linear", model, documents, queries)
    fitted = fit(subject, "exact")
    assert isinstance(fitted, FittedEigen)
    damping = [float(fitted.damped(0).min() - fitted.eigenvalues[0].min())] * 2
    found = whole.influence(matrix, damping, queries)
    np.testing.assert_allclose(found, influence(subject, fitted), atol=1e-6)


def test_of_a_network_the_gauss_newton_matrix_foretells_small_responses() -> None:
    model, documents, queries = network(5, 4, 3), examples(20, 0), examples(4, 1)
    whole = WholeMatrices(model, *documents)
    subject = Subject.of_tensors("network", model, documents, queries)
    fitted = fit(subject, "ekfac")
    damping = [value for value in damping_of(fitted) for _ in ("weight", "bias")]
    expected = whole.influence(whole.gauss_newton(), damping, queries)[:, [2, 9]].T
    found = proximal_responses(subject, [2, 9], fitted, step=1e-3, tolerance=1e-5)
    np.testing.assert_allclose(found.nats, expected, atol=0.01 * np.abs(expected).max())


def test_the_hessian_is_that_of_the_mean_loss() -> None:
    model, (inputs, targets) = network(5, 4, 3), examples(7, 0)
    whole = WholeMatrices(model, inputs, targets)
    hessian = whole.hessian()
    assert not torch.allclose(hessian, whole.gauss_newton(), rtol=1e-2)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(
        cross_entropy(model(inputs), targets), parameters, create_graph=True
    )
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    for row in (0, 11, len(flat) - 1):
        again = torch.autograd.grad(flat[row], parameters, retain_graph=True)
        expected = torch.cat([part.flatten() for part in again])
        assert hessian[row].numpy() == pytest.approx(expected.numpy(), abs=1e-12)
