from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import spearmanr

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.evidence import SCHEMA, Evidence, Figure, plain
from wherefrom.evaluation.lds import (
    CEILING,
    OTHER_SEEDS,
    datamodelling_scores,
    linear_datamodelling,
)
from wherefrom.evaluation.retraining import Outcomes, random_halves

DOCUMENTS, QUERIES, SUBSETS = 40, 5, 60


def world(noise: float, seeds: int = 2) -> tuple[np.ndarray, Outcomes]:
    """Models whose nats are sums of known scores, and noise that differs from seed to seed."""
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(QUERIES, DOCUMENTS))
    members = random_halves(DOCUMENTS, SUBSETS, 1)
    sums = members @ scores.T
    drawn = generator.normal(size=(SUBSETS, seeds, QUERIES)) * sums.std()
    return scores, Outcomes(members, sums[:, None] + noise * drawn)


def test_halves_are_halves_and_differ() -> None:
    halves = random_halves(11, 30, 0)
    assert (halves.sum(1) == 5).all()
    assert len(np.unique(halves, axis=0)) > 25
    assert np.array_equal(halves, random_halves(11, 30, 0))


def test_each_query_is_a_rank_correlation_over_subsets() -> None:
    scores, outcomes = world(0.7)
    found = datamodelling_scores(scores, outcomes)
    for query in range(QUERIES):
        sums = [scores[query][row].sum() for row in outcomes.members]
        nats = outcomes.nats[:, :, query].mean(1)
        assert found[query] == pytest.approx(spearmanr(sums, nats).statistic)


def test_scores_that_add_up_reach_one_and_the_opposite_minus_one() -> None:
    scores, outcomes = world(0.0)
    assert datamodelling_scores(scores, outcomes) == pytest.approx(np.ones(QUERIES))
    assert datamodelling_scores(-scores, outcomes) == pytest.approx(-np.ones(QUERIES))


def test_intervals_pairs_and_ceiling() -> None:
    scores, outcomes = world(0.7)
    generator = np.random.default_rng(2)
    methods = {
        "true": scores,
        "blurred": scores + generator.normal(size=scores.shape),
        "random": generator.normal(size=scores.shape),
    }
    evidence = linear_datamodelling(methods, outcomes, subject="sums", reference="blurred")
    true, random = evidence.figure("true", "LDS"), evidence.figure("random", "LDS")
    for figure in (true, random):
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low < figure.value < figure.high
    assert random.low < 0.0 < random.high
    gained = evidence.figure("true", "LDS above blurred")
    assert gained.value == pytest.approx(true.value - evidence.value("blurred", "LDS"))
    assert gained.low > 0.0
    # Two models each with noise of .7: what one foretells of the other is less than the truth does.
    between = evidence.value(OTHER_SEEDS, "LDS")
    assert 0.4 < between < true.value
    ceiling = evidence.figure(CEILING, "LDS")
    assert ceiling.value == pytest.approx(np.sqrt(2 * between / (1 + between)))
    # The true scores are perfect ones.
    assert ceiling.low < true.value < ceiling.high
    assert abs(ceiling.value - true.value) < 0.05
    stored = json.loads(json.dumps(evidence.to_json()))
    assert stored["schema"] == SCHEMA
    assert Evidence.from_json(stored).to_json() == stored


def test_the_same_asked_twice_is_the_same() -> None:
    scores, outcomes = world(0.7)
    first, second = (linear_datamodelling({"a": scores}, outcomes, subject="") for _ in "ab")
    assert first == second


def test_one_model_a_subset_has_no_ceiling_and_says_so() -> None:
    scores, outcomes = world(0.7, seeds=1)
    evidence = linear_datamodelling({"a": scores}, outcomes, subject="")
    assert {figure.method for figure in evidence.figures} == {"a"}
    assert "noise between seeds" in evidence.notes[-1]


def test_too_few_subsets_and_other_shapes_are_refused() -> None:
    scores, outcomes = world(0.7)
    few = Outcomes(outcomes.members[:19], outcomes.nats[:19])
    with pytest.raises(EvaluationError, match="19 subsets are too few"):
        linear_datamodelling({"a": scores}, few, subject="")
    with pytest.raises(EvaluationError, match=r"have shape \(40, 5\)"):
        datamodelling_scores(scores.T, outcomes)
    with pytest.raises(EvaluationError, match="is none of a"):
        linear_datamodelling({"a": scores}, outcomes, subject="", reference="b")


def test_what_is_no_number_is_refused_before_it_is_a_figure() -> None:
    scores, outcomes = world(0.7)
    scores[0, 0] = np.nan
    with pytest.raises(EvaluationError, match="'a' hold NaN"):
        linear_datamodelling({"a": scores}, outcomes, subject="")
    with pytest.raises(EvaluationError, match="is nan, which is no figure"):
        Figure("a", "LDS", float("nan"))


def test_one_question_speaks_for_itself() -> None:
    scores, outcomes = world(0.7)
    alone = Outcomes(outcomes.members, outcomes.nats[:, :, :1])
    evidence = linear_datamodelling({"a": scores[:1]}, alone, subject="")
    assert evidence.notes[0].startswith("One question: ")
    few = linear_datamodelling({"a": scores}, outcomes, subject="")
    assert few.notes[0].startswith("5 questions are few")


def test_plain_json_knows_no_nan() -> None:
    found = plain({"a": np.array([1.0, np.nan]), 2: (np.int64(3), np.float32(0.5), None, True)})
    assert found == {"a": [1.0, None], "2": [3, 0.5, None, True]}
    with pytest.raises(TypeError, match="complex"):
        plain(1j)


def test_results_of_another_schema_are_refused() -> None:
    with pytest.raises(EvaluationError, match="schema 'other/9'"):
        Evidence.from_json({"schema": "other/9"})
    with pytest.raises(EvaluationError, match="lacks or adds"):
        Evidence.from_json({"schema": SCHEMA})
    with pytest.raises(EvaluationError, match="lacks or adds"):
        Evidence.from_json({**Evidence("a", "b", (), {}).to_json(), "figures": [{"metod": "a"}]})
