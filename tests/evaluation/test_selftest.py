"""The self-test passes here, and does not where a score is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from test_faults import rotation_by_the_transpose
from wherefrom.curvature.datainf import FittedDataInf
from wherefrom.curvature.eigen import FittedEigen
from wherefrom.errors import MissingExtraError
from wherefrom.evaluation import selftest as module
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.selftest import TARGETS, failures, selftest
from wherefrom.evaluation.statistics import Scores

LDS, PEARSON, SLOPE, PERCEPTRON, DATAINF = (target.name for target in TARGETS)


def missed(evidence: Evidence) -> set[str]:
    """The names of the targets that were missed."""
    lines = failures(evidence)
    return {target.name for target in TARGETS if any(f"{target.name} of" in line for line in lines)}


def test_it_passes_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, but for the bootstrap's draws."""
    monkeypatch.setattr(module, "_DRAWS", 20)
    told: dict[str, tuple[int, int]] = {}
    evidence = selftest(lambda phase, done, total: told.update({phase: (done, total)}))
    assert failures(evidence) == []
    assert told == {
        "retrain logistic regression": (40, 40),
        "retrain logistic regression, left out": (101, 101),
        "retrain perceptron": (120, 120),
    }
    for target in TARGETS:
        figure = evidence.figure(target.method, target.name)
        assert figure.low is not None
        assert figure.low <= figure.value <= figure.high
    assert Evidence.from_json(evidence.to_json()) == evidence
    # With room: a target at the edge of what is measured would fail elsewhere for nothing.
    assert evidence.value("ekfac", LDS) > 0.88
    assert evidence.value("ekfac", PEARSON) > 0.93
    assert evidence.value("ekfac", PERCEPTRON) > 0.65


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Retrainings do not depend on what is wrong with scores."""
    return tmp_path_factory.mktemp("retrainings")


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Sizes at which a fault is still seen."""
    monkeypatch.setattr(module, "_DRAWS", 4)
    monkeypatch.setattr(module, "_QUERIES", 30)
    monkeypatch.setattr(module, "_HALVES", 24)
    monkeypatch.setattr(module, "_LEFT_OUT", 30)
    monkeypatch.setattr(module, "_SEEDS", (1,))
    monkeypatch.setattr(module, "_LOGISTIC_DOCUMENTS", 400)
    monkeypatch.setattr(module, "_PERCEPTRON_DOCUMENTS", 600)
    return monkeypatch


def inverse_applied_twice(patch: pytest.MonkeyPatch) -> None:
    def solve(self: FittedEigen, layer: int, coordinates: Tensor) -> Tensor:
        return coordinates.double() / self.damped(layer) ** 2

    patch.setattr(FittedEigen, "solve", solve)


def sign_flipped(patch: pytest.MonkeyPatch) -> None:
    original = module.influence
    patch.setattr(module, "influence", lambda *arguments: -original(*arguments))


def damping_a_thousandfold(patch: pytest.MonkeyPatch) -> None:
    def damped(self: FittedEigen, layer: int) -> Tensor:
        values = self.eigenvalues[layer]
        return values + 1000 * self.damping * values.mean()

    patch.setattr(FittedEigen, "damped", damped)


def sum_over_documents_for_their_mean(patch: pytest.MonkeyPatch) -> None:
    original = module.influence

    def influence(*arguments: object) -> Scores:
        scores: Scores = original(*arguments)
        return scores * scores.shape[1]

    patch.setattr(module, "influence", influence)


def datainf_with_a_sum_for_its_mean(patch: pytest.MonkeyPatch) -> None:
    original = FittedDataInf.solve

    def solve(self: FittedDataInf, layer: int, coordinates: Tensor) -> Tensor:
        whole = coordinates.double() / self._lambda_of(layer, self.damping)
        return whole - self.documents * (whole - original(self, layer, coordinates))

    patch.setattr(FittedDataInf, "solve", solve)


@pytest.mark.parametrize(
    ("plant", "seen"),
    [
        (inverse_applied_twice, {LDS, PEARSON, SLOPE, PERCEPTRON}),
        (rotation_by_the_transpose, {LDS, PEARSON, SLOPE, PERCEPTRON}),
        (damping_a_thousandfold, {LDS, PEARSON, SLOPE, PERCEPTRON}),
        (sign_flipped, {LDS, PEARSON, SLOPE, PERCEPTRON}),
        (sum_over_documents_for_their_mean, {SLOPE}),
        (datainf_with_a_sum_for_its_mean, {DATAINF}),
    ],
)
def test_a_planted_fault_is_seen(
    smaller: pytest.MonkeyPatch,
    kept: Path,
    plant: Callable[[pytest.MonkeyPatch], None],
    seen: set[str],
) -> None:
    plant(smaller)
    assert missed(selftest(cache=kept)) == seen


def test_the_smaller_sizes_pass_without_a_fault(smaller: pytest.MonkeyPatch, kept: Path) -> None:
    assert missed(selftest(cache=kept)) == set()


def test_a_miss_says_what_is_wrong_and_what_to_do() -> None:
    figures = tuple(
        module.Figure(target.method, target.name, target.at_least) for target in TARGETS
    )
    passing = Evidence("selftest", "digits", figures, {})
    assert failures(passing) == []
    too_low = replace(figures[0], value=0.5)
    (line,) = failures(replace(passing, figures=(too_low, *figures[1:])))
    assert line.startswith("logistic regression: LDS of ekfac is 0.500 and should be at least 0.85")
    assert "\n" not in line
    too_high = replace(figures[2], value=2.0)
    (line,) = failures(replace(passing, figures=(*figures[:2], too_high, *figures[3:])))
    assert "from 0.15 to 1.5" in line


def test_without_scikit_learn_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[evaluation\]'"):
        selftest()
