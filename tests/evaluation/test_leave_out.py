"""Leaving documents out: against least squares solved again, and against noise that is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from subjects import DOCUMENTS, QUERIES, LeastSquares, regression, tensors
from torch import nn

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.agreement import agreement
from wherefrom.evaluation.leave_out import (
    Removals,
    group_sums,
    leave_out,
    one_document_each,
    random_groups,
    removed,
)
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.retraining import Retrainer
from wherefrom.evaluation.statistics import linear_correlations
from wherefrom.evaluation.trainers import Run, Trainer

EVERY = one_document_each(DOCUMENTS, range(DOCUMENTS))


def retrainer(trainer: Trainer | None = None) -> Retrainer:
    subject = regression()
    measurement = Measurement(subject.extractor.objective, subject.questions)
    return Retrainer(trainer or LeastSquares(), measurement, subject.digest)


def exact_changes(groups: NDArray[np.bool_]) -> NDArray[np.float64]:
    """``[group, question]``: log-likelihoods by numpy, before minus after."""
    x, y = (part.numpy() for part in tensors(DOCUMENTS, 0))
    queries, wanted = (part.numpy() for part in tensors(QUERIES, 1))

    def nats(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        slope = np.linalg.pinv(x[kept]) @ y[kept]
        return -0.5 * (wanted - queries @ slope)[:, 0] ** 2

    whole = nats(np.ones(DOCUMENTS, bool))
    return np.stack([whole - nats(~group) for group in groups])


class Noisy:
    """Trains by solving, then moves the weights by chance of a known size, other for each run."""

    recipe = "noisy least squares"
    at_once = 4

    def __init__(self, size: float) -> None:
        self._size = size
        self._exact = LeastSquares()

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        plain = [replace(run, seed=0) for run in runs]
        for run, module in zip(runs, self._exact.train(plain), strict=True):
            generator = torch.Generator().manual_seed(int(run.key[:8], 16))
            weight = module.get_parameter("weight").detach()
            noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            module.load_state_dict({"weight": weight + self._size * noise})
            yield module


def test_actual_changes_are_those_of_solving_again() -> None:
    found = removed(EVERY, retrainer(), [0])
    np.testing.assert_allclose(found.nats[:, 0], exact_changes(EVERY), atol=1e-10)


def test_a_perfect_prediction_has_correlation_and_slope_one() -> None:
    truth = exact_changes(EVERY).T
    scores = {"truth": truth, "half": 0.5 * truth, "opposed": -truth}
    evidence = leave_out(scores, EVERY, retrainer(), [0], subject="least squares", reference="half")
    assert evidence.kind == "loo"
    for name in ("Pearson", "Spearman"):
        assert evidence.value("truth", name) == pytest.approx(1.0)
        assert evidence.value("half", name) == pytest.approx(1.0)
        assert evidence.value("opposed", name) == pytest.approx(-1.0)
        assert evidence.value("opposed", f"{name} above half") == pytest.approx(-2.0)
    slopes = [evidence.value(method, "slope") for method in scores]
    assert slopes == pytest.approx([1.0, 2.0, -1.0])
    assert any("One seed" in note for note in evidence.notes)


def test_groups_are_foretold_by_the_sum_of_their_scores() -> None:
    groups = random_groups(DOCUMENTS, 12, 4, 0)
    assert (groups.sum(1) == 4).all()
    assert len(np.unique(groups, axis=0)) == 12
    # Scores that fit: a least-norm solution of their own sums.
    scores = (np.linalg.pinv(groups.astype(float)) @ exact_changes(groups)).T
    evidence = leave_out({"fit": scores}, groups, retrainer(), [0], subject="least squares")
    assert evidence.value("fit", "Pearson") == pytest.approx(1.0)
    assert evidence.value("fit", "slope") == pytest.approx(1.0)
    assert (evidence.setting["smallest_group"], evidence.setting["largest_group"]) == (4, 4)


def test_correlations_are_means_of_those_of_scipy() -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((QUERIES, DOCUMENTS))
    actual = exact_changes(EVERY)
    evidence = leave_out({"random": scores}, EVERY, retrainer(), [0], subject="least squares")
    for name, correlation in (("Pearson", pearsonr), ("Spearman", spearmanr)):
        expected = [correlation(scores[q], actual[:, q]).statistic for q in range(QUERIES)]
        figure = evidence.figure("random", name)
        assert figure.value == pytest.approx(np.mean(expected))
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
    assert evidence.figure("random", "Pearson").low < 0 < evidence.figure("random", "Pearson").high


def test_noise_larger_than_the_effect_is_said() -> None:
    truth = {"truth": exact_changes(EVERY).T}
    seeds = range(4)
    loud = leave_out(truth, EVERY, retrainer(Noisy(0.3)), seeds, subject="least squares")
    assert loud.value("retraining", "noise") > loud.value("retraining", "effect")
    assert any("larger than what the groups differ by" in note for note in loud.notes)
    assert loud.value("retraining, other seeds", "Pearson") < 0.5
    quiet = leave_out(truth, EVERY, retrainer(Noisy(1e-4)), seeds, subject="least squares")
    assert not any("larger than" in note for note in quiet.notes)
    assert quiet.value("retraining", "noise") < 0.01 * quiet.value("retraining", "effect")
    assert quiet.value("retraining, other seeds", "Pearson") > 0.999
    assert quiet.value("truth", "Pearson") > 0.999


def test_effect_and_noise_of_known_sizes() -> None:
    """What all groups share, as the chance of the model with all documents, is no noise."""
    generator = np.random.default_rng(0)
    groups, seeds, questions = 400, 9, 20
    effect = 0.5 * generator.standard_normal((groups, 1, questions))
    noise = 3.0 * generator.standard_normal((groups, seeds, questions))
    shared = 50.0 * generator.standard_normal((1, seeds, questions))
    found = Removals(np.zeros((groups, 5), np.bool_), effect + noise + shared)
    assert found.noise() == pytest.approx(3.0 / 3, rel=0.03)
    assert found.effect() == pytest.approx(0.5, rel=0.1)
    assert Removals(found.groups, noise * 0 + shared).effect() == pytest.approx(0.0, abs=1e-6)


def test_with_and_without_have_the_same_seed() -> None:
    trainer = LeastSquares()
    removed(EVERY[:3], retrainer(trainer), [5, 7])
    trained = {(int(run.members.sum()), run.seed) for run in trainer.trained}
    assert trained == {(DOCUMENTS, 5), (DOCUMENTS, 7), (DOCUMENTS - 1, 5), (DOCUMENTS - 1, 7)}
    # LeastSquares moves all targets with the seed: the changes would show other seeds at once.


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)).map(sorted))
    )
)
def test_one_group_for_each_document(case: tuple[int, list[int]]) -> None:
    documents, chosen = case
    groups = one_document_each(documents, chosen)
    assert groups.shape == (len(chosen), documents)
    assert [row.nonzero()[0].tolist() for row in groups] == [[place] for place in chosen]


@given(st.integers(2, 20), st.data())
def test_sums_are_over_the_group(documents: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, documents - 1))
    groups = random_groups(documents, 3, size, 0)
    scores = np.arange(2.0 * documents).reshape(2, documents)
    expected = [[scores[q][group].sum() for q in range(2)] for group in groups]
    np.testing.assert_allclose(group_sums(scores, groups), expected)


def test_a_constant_column_correlates_with_nothing() -> None:
    a = np.array([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    np.testing.assert_allclose(linear_correlations(a, a), [1.0, 0.0])


def test_intervals_are_the_same_every_time_and_narrow_with_more_changes() -> None:
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((300, 4))
    seen = truth + generator.standard_normal((300, 4))
    first, again = (agreement({"a": seen}, truth) for _ in range(2))
    assert first == again
    few = agreement({"a": seen[:20]}, truth[:20])
    widths = [found[0].high - found[0].low for found in (first, few)]  # type: ignore[operator]
    assert widths[0] < 0.6 * widths[1]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (EVERY[:2], "2 changes are too few"),
        (np.concatenate([EVERY, np.zeros((1, DOCUMENTS), np.bool_)]), "empty or holds all"),
        (np.concatenate([EVERY, np.ones((1, DOCUMENTS), np.bool_)]), "empty or holds all"),
        (EVERY.astype(np.int64), "int64"),
        (EVERY[0], "bool \\[group, document\\]"),
    ],
)
def test_groups_that_cannot_be_left_out_are_refused(
    groups: NDArray[np.bool_], message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        removed(groups, retrainer(), [0])


@pytest.mark.parametrize("chosen", [[0, 0], [-1], [5], [1, 2, 9]])
def test_positions_that_are_none_are_refused(chosen: list[int]) -> None:
    with pytest.raises(EvaluationError, match="different positions from 0 to 4"):
        one_document_each(5, chosen)


@pytest.mark.parametrize("size", [0, 5, 6, -1])
def test_groups_of_nothing_or_everything_are_refused(size: int) -> None:
    with pytest.raises(EvaluationError, match="leave out some, not all"):
        random_groups(5, 3, size, 0)


def test_scores_of_other_documents_or_questions_are_refused() -> None:
    with pytest.raises(EvaluationError, match=r"'a' have shape \(3, 5\)"):
        leave_out({"a": np.ones((3, 5))}, EVERY, retrainer(), [0], subject="x")
    with pytest.raises(EvaluationError, match=r"'a' have shape \(2, 24\)"):
        leave_out({"a": np.ones((2, DOCUMENTS))}, EVERY, retrainer(), [0], subject="x")
    scores = {"a": np.ones((QUERIES, DOCUMENTS))}
    with pytest.raises(EvaluationError, match="reference 'b' is none of a"):
        leave_out(scores, EVERY, retrainer(), [0], subject="x", reference="b")


def test_one_seed_shows_no_noise() -> None:
    with pytest.raises(EvaluationError, match="one seed shows no noise"):
        Removals(EVERY, np.zeros((DOCUMENTS, 1, 2))).noise()
