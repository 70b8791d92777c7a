"""Removals against models whose answer is a known sum of effects, and retrained by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ttest_1samp, ttest_rel
from torch import nn

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.counterfactual import removals
from wherefrom.evaluation.effects import crossed_mean
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.receipts import receipt, what_was_asked, with_receipts
from wherefrom.evaluation.retraining import Retrainer
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.trainers import FunctionTrainer, Run
from wherefrom.gradients.batches import stack_examples
from wherefrom.query.questions import Question
from wherefrom.records import Query, QuerySet

DOCUMENTS, QUERIES = 30, 4


class Said(nn.Module):
    """A model that knows what it would answer."""

    def __init__(self, nats: NDArray[np.float64]) -> None:
        super().__init__()
        self.nats = nats


@dataclass
class Sums:
    """Trains models whose answers are sums of their documents' effects, and noise of the seed."""

    effects: NDArray[np.float64]
    noise: float = 0.0
    recipe: str = "sums"
    at_once: int = 1
    runs: int = 0

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        for run in runs:
            self.runs += 1
            salt = [run.seed, *np.packbits(run.members).tolist()]
            noise = np.random.default_rng(salt).standard_normal(len(self.effects))
            yield Said(self.effects @ run.members + self.noise * noise)


class Answers:
    """Stands for a measurement of :class:`Said`."""

    digest = "answers"

    def __len__(self) -> int:
        return QUERIES

    def __call__(self, module: Any) -> NDArray[np.float64]:
        return np.asarray(module.nats)


def effects() -> NDArray[np.float64]:
    return np.random.default_rng(5).standard_normal((QUERIES, DOCUMENTS))


def retrainer(noise: float = 0.0, truth: NDArray[np.float64] | None = None) -> Retrainer:
    trainer = Sums(effects() if truth is None else truth, noise)
    return Retrainer(trainer, Answers(), "documents")  # type: ignore[arg-type]


def judged(evidence: Evidence, query: int) -> dict[tuple[str, str], Any]:
    details: Any = evidence.details
    (own,) = [one["removals"] for one in details["queries"] if one["query"] == query]
    return {(entry["method"], entry["what"]): entry for entry in own}


def listed(evidence: Evidence, query: int) -> dict[str, list[Any]]:
    """The documents removed for a query."""
    details: Any = evidence.details
    (own,) = [one for one in details["queries"] if one["query"] == query]
    return dict(own["removed"])


def test_without_noise_changes_are_minus_the_sums_of_true_effects() -> None:
    truth = effects()
    evidence = removals(
        {"true": truth}, retrainer(), subject="sums", k=[1, 5], seeds=[0, 1], opponents=True
    )
    for k in (1, 5):
        ordered = np.sort(truth, axis=1)
        for end, lost in (("top", -ordered[:, -k:].sum(1)), ("bottom", -ordered[:, :k].sum(1))):
            what = f"{end} {k} removed"
            assert evidence.value("true", f"change, {what}") == pytest.approx(lost.mean())
            assert evidence.value("true", f"predicted change, {what}") == pytest.approx(lost.mean())
            for query in range(QUERIES):
                own = judged(evidence, query)["true", what]
                assert own["change"]["value"] == pytest.approx(lost[query])
                assert own["change"]["error"] is None  # seeds that differ by nothing are one
                assert own["predicted"] == pytest.approx(lost[query])
    assert evidence.value("true", "change, top 5 removed") < 0.0
    assert evidence.value("true", "change, bottom 5 removed") > 0.0
    assert evidence.value("true", "change beyond random, top 5 removed") < 0.0


def test_figures_of_one_query_are_paired_tests_over_seeds() -> None:
    truth, trainer = effects(), Sums(effects(), noise=0.5)
    seeds = [3, 4, 5, 6]
    evidence = removals(
        {"true": truth},
        retrainer(0.5),
        subject="sums",
        k=[3],
        seeds=seeds,
        query=2,
        random_draws=1,
    )
    members = np.ones(DOCUMENTS, np.bool_)
    less = members.copy()
    less[np.argsort(-truth[2])[:3]] = False

    def said(kept: NDArray[np.bool_]) -> list[float]:
        return [float(m.nats[2]) for m in trainer.train([Run(kept, seed) for seed in seeds])]

    test = ttest_rel(said(less), said(members))
    bounds = test.confidence_interval(0.95)
    figure = evidence.figure("true", "change, top 3 removed")
    assert figure.value == pytest.approx(np.mean(said(less)) - np.mean(said(members)))
    assert (figure.low, figure.high) == pytest.approx((bounds.low, bounds.high))
    assert figure.unit == "nats"
    entry = judged(evidence, 2)["true", "top 3 removed"]
    assert entry["change"]["p"] == pytest.approx(test.pvalue)
    assert entry["by_seed"] == pytest.approx(np.subtract(said(less), said(members)))
    drawn = judged(evidence, 2)["random", "top 3 removed"]["by_seed"]
    figure = evidence.figure("true", "change beyond random, top 3 removed")
    assert figure.value == pytest.approx(np.mean(entry["by_seed"]) - np.mean(drawn))
    assert (figure.low, figure.high) == (None, None)  # one draw does not say how draws differ
    assert listed(evidence, 2)["true, top 3 removed"] == sorted(np.flatnonzero(~less).tolist())
    assert judged(evidence, 2).keys() == {("true", "top 3 removed"), ("random", "top 3 removed")}


def test_methods_are_compared_with_a_reference_in_pairs() -> None:
    methods = {"true": effects(), "bm25": effects()[::-1].copy()}
    evidence = removals(
        methods, retrainer(), subject="sums", k=[2, 4], seeds=[0, 1], reference="bm25"
    )
    changes = np.array(
        [
            [judged(evidence, q)[name, "top 4 removed"]["change"]["value"] for q in range(QUERIES)]
            for name in methods
        ]
    )
    test = ttest_rel(*changes)
    bounds = test.confidence_interval(0.95)
    figure = evidence.figure("true", "change beyond bm25, top 4 removed")
    assert figure.value == pytest.approx(np.subtract(*changes).mean())
    assert (figure.low, figure.high) == pytest.approx((bounds.low, bounds.high))
    compared = {f.method for f in evidence.figures if f.name.startswith("change beyond bm25")}
    assert compared == {"true"}
    with pytest.raises(EvaluationError, match="reference 'tfidf' is none of true, bm25"):
        removals(methods, retrainer(), subject="s", k=[2], seeds=[0], reference="tfidf")


def test_random_sets_are_of_the_size_asked_and_shared_by_queries() -> None:
    truth = np.ones((QUERIES, DOCUMENTS))
    evidence = removals(
        {"any": truth}, retrainer(truth=truth), subject="s", k=[4, 9], seeds=[0, 1], random_draws=7
    )
    for k in (4, 9):
        assert evidence.value("random", f"change, top {k} removed") == pytest.approx(-k)
        assert evidence.value("any", f"change beyond random, top {k} removed") == pytest.approx(0.0)
    assert evidence.setting["trainings"] <= (1 + 2 * (QUERIES + 7)) * 2  # type: ignore[operator]


def test_methods_that_choose_alike_share_the_retraining() -> None:
    truth, machine = effects(), retrainer()
    same = {"true": truth, "twice": 2.0 * truth, "random": -truth}
    evidence = removals(same, machine, subject="sums", k=[2], seeds=[0, 1], random_draws=2)
    sets = 1 + QUERIES + 2
    assert evidence.setting["trainings"] == 2 * sets
    assert machine.trainer.runs == 2 * sets + 1  # type: ignore[attr-defined]  # one made twice
    assert {figure.method for figure in evidence.figures} == {"true", "twice", "random"}
    predicted = [evidence.value(m, "predicted change, top 2 removed") for m in ("true", "twice")]
    assert predicted[1] == pytest.approx(2.0 * predicted[0])


def test_another_method_or_number_leaves_what_was_trained() -> None:
    machine = retrainer()
    options: dict[str, Any] = {"subject": "sums", "seeds": [0, 1]}
    removals({"true": effects()}, machine, k=[2], **options)
    before = machine.trainer.runs  # type: ignore[attr-defined]
    more = {"wrong": np.sort(effects(), axis=1), "true": effects()}
    evidence = removals(more, machine, k=[5, 2], **options)
    sets = 2 * QUERIES + QUERIES + 3  # of one method for the new number, of the other, and random
    assert machine.trainer.runs - before <= 2 * sets  # type: ignore[attr-defined]
    assert evidence.setting["trainings"] > machine.trainer.runs - before  # type: ignore[attr-defined, operator]


def test_scores_without_a_unit_predict_nothing() -> None:
    truth = effects()
    methods = {"ekfac": truth, "bm25": truth, "own": truth}
    options: dict[str, Any] = {"subject": "sums", "k": [2], "seeds": [0]}
    assert predictors(removals(methods, retrainer(), **options)) == {"ekfac", "own"}
    chosen = removals(methods, retrainer(), in_nats=["bm25"], **options)
    assert predictors(chosen) == {"bm25"}
    plainly = {"identity": truth, "identity, stored": truth, "ekfac, stored": truth}
    assert predictors(removals(plainly, retrainer(), **options)) == {"ekfac, stored"}


def predictors(evidence: Evidence) -> set[str]:
    return {f.method for f in evidence.figures if f.name.startswith("predicted")}


def test_ties_are_broken_at_random_by_the_seed() -> None:
    flat = np.zeros((QUERIES, DOCUMENTS))
    flat[:, 7] = 1.0

    def chosen(seed: int) -> list[int]:
        evidence = removals(
            {"flat": flat}, retrainer(), subject="s", k=[6], seeds=[0], query=0, seed=seed
        )
        return listed(evidence, 0)["flat, top 6 removed"]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert 7 in chosen(0)
    assert len(chosen(1)) == 6
    assert chosen(0) != [0, 1, 2, 3, 4, 7]


def test_what_was_removed_is_named_for_every_query() -> None:
    truth = effects()
    names = [f"d{place}" for place in range(DOCUMENTS)]
    options: dict[str, Any] = {"subject": "s", "k": [2, 3], "seeds": [0], "opponents": True}
    evidence = removals({"a": truth, "b": -truth}, retrainer(), doc_ids=names, **options)
    for query in range(QUERIES):
        order = np.argsort(-truth[query])
        found = listed(evidence, query)
        assert len(found) == 8
        assert set(found["a, top 3 removed"]) == {names[place] for place in order[:3]}
        assert found["a, top 2 removed"] == found["b, bottom 2 removed"]
        assert set(found["b, top 2 removed"]) == {names[place] for place in order[-2:]}
    with pytest.raises(EvaluationError, match="29 doc_ids for 30 documents"):
        removals({"a": truth}, retrainer(), doc_ids=names[1:], **options)


def test_a_long_list_of_what_was_removed_ends_with_whole_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for most, queries in ((25, 2), (1, 1), (40, 4)):
        monkeypatch.setattr("wherefrom.evaluation.counterfactual._LISTED", most)
        options: dict[str, Any] = {"subject": "s", "k": [4, 6], "seeds": [0, 1]}
        evidence = removals({"a": effects()}, retrainer(0.1), **options)
        details: Any = evidence.details
        assert ["removed" in one for one in details["queries"]] == [q < queries for q in range(4)]
        note = f"The documents removed are listed for the first {queries} of 4 queries."
        assert (note in evidence.notes) == (queries < 4)


def test_few_random_sets_against_one_query_are_noted() -> None:
    def noted(draws: int, query: int | None) -> bool:
        options: dict[str, Any] = {"subject": "s", "k": [2], "seeds": [0, 1]}
        evidence = removals(
            {"a": effects()}, retrainer(0.1), query=query, random_draws=draws, **options
        )
        return any("can show little" in note for note in evidence.notes)

    assert noted(1, 0)
    assert noted(4, 0)
    assert not noted(5, 0)
    assert not noted(4, None)


def test_notes_say_what_chance_explains_and_what_goes_the_wrong_way() -> None:
    truth = effects()
    noise = np.random.default_rng(9).standard_normal(truth.shape)
    methods = {"true": truth, "wrong": -truth, "noise": noise}
    evidence = removals(
        methods, retrainer(0.05), subject="s", k=[6], seeds=[0, 1, 2], random_draws=6
    )
    notes = "\n".join(evidence.notes)
    assert "wrong, top 6 removed: the change is on the wrong side" in notes
    assert "noise, top 6 removed: the change is no further from" in notes
    assert "true" not in notes
    (note,) = removals({"true": truth}, retrainer(), subject="s", k=[6], seeds=[0], query=0).notes[
        :1
    ]
    assert note.startswith("One seed: ")


def test_receipts_tell_of_every_method() -> None:
    methods = {"ekfac": effects(), "bm25": effects()[::-1].copy()}
    options: dict[str, Any] = {"subject": "s", "random_draws": 8}
    evidence = removals(
        methods, retrainer(0.1), k=[2, 5], seeds=[0, 1, 2], query=1, opponents=True, **options
    )
    again = Evidence.from_json(json.loads(json.dumps(evidence.to_json())))
    text = receipt(again)
    assert text == receipt(evidence, 1)
    top, *_, bottom = text.split("\n\n")
    assert len(text.split("\n\n")) == 4
    change = evidence.value("ekfac", "change, top 2 removed")
    predicted = evidence.value("ekfac", "predicted change, top 2 removed")
    assert top.startswith("Without the 2 documents that ekfac scores highest, retrained with 3 see")
    assert f"query 1 changes by {change:+.4g} nats (standard error " in top
    assert f"the scores predicted {predicted:+.4g} nats." in top
    assert "Without those of bm25: " in top
    assert "Without 2 random documents (8 draws) it changes by " in top
    assert "is within chance (p = " in top
    assert bottom.startswith("Without the 5 documents that ekfac scores lowest")
    whole = removals(methods, retrainer(), subject="s", k=[2], seeds=[0])
    assert "the mean of 4 queries changes by" in receipt(whole)
    assert "query 3 changes by" in receipt(whole, 3)


def test_a_receipt_without_an_interval_says_so() -> None:
    options: dict[str, Any] = {"subject": "s", "k": [2], "seeds": [0], "query": 0}
    text = receipt(removals({"true": effects()}, retrainer(), random_draws=1, **options))
    assert "retrained with one seed" in text
    assert "nats (no interval)" in text
    assert "chance" not in text


def test_seeds_that_make_no_difference_are_told_as_one() -> None:
    options: dict[str, Any] = {"subject": "s", "k": [2], "seeds": [0, 1, 2]}
    assert "retrained with 3 seeds" in receipt(
        removals({"t": effects()}, retrainer(0.1), **options)
    )
    assert "retrained with one seed" in receipt(removals({"t": effects()}, retrainer(), **options))


def test_a_receipt_tells_of_the_difference_from_the_reference() -> None:
    methods = {"ekfac": effects(), "bm25": effects()[::-1].copy(), "dot": -effects()}
    evidence = removals(
        methods, retrainer(0.1), subject="s", k=[2], seeds=[0, 1], query=0, reference="bm25"
    )
    figure = evidence.figure("ekfac", "change beyond bm25, top 2 removed")
    assert f"; the difference is {figure.value:+.4g} nats (standard error " in receipt(evidence)
    assert receipt(evidence).count("the difference is") == 1


def test_a_receipt_says_what_was_asked() -> None:
    batch = stack_examples(torch.ones(1, 2, dtype=torch.bfloat16), torch.tensor([7]), ["q"])
    other = stack_examples(torch.zeros(1, 2, dtype=torch.bfloat16), torch.tensor([7]), ["q"])
    image = torch.zeros(1, 2), torch.zeros(1, 2)
    query = Query("the union", " shall\n\nbe preserved", " end")
    questions = [
        Question(query, ()),
        Question(QuerySet((Query("", "gold"), query), "sum"), ()),
        Question(None, ((1.0, batch),)),
        Question(None, ((1.0, other), (-1.0, stack_examples(*image, ["q"])))),
    ]
    (double,) = cast("list[Any]", what_was_asked([Question(None, ((2.0, batch),))]))
    assert double[0]["weight"] == 2.0
    text, several, example, weighted = cast("list[Any]", what_was_asked(questions))
    assert text == {"prompt": query.prompt, "completion": query.completion, "contrast": " end"}
    assert several["queries"][1] == text
    assert several["reduce"] == "sum"
    assert example["target"] == 7
    assert [term["weight"] for term in weighted] == [1.0, -1.0]
    assert weighted[0]["target"] == 7
    assert "target" not in weighted[1]
    assert len({example["sha256"], *(term["sha256"] for term in weighted)}) == 3

    evidence = removals({"t": effects()}, retrainer(0.1), subject="s", k=[2, 3], seeds=[0, 1])
    told = with_receipts(evidence, questions)
    again = Evidence.from_json(json.loads(json.dumps(told.to_json())))
    details: Any = again.details
    assert details["receipt"] == receipt(evidence).split("\n\n")
    assert [one["asked"] for one in details["queries"]] == [text, several, example, weighted]
    for one in details["queries"]:
        assert one["receipt"] == receipt(again, one["query"]).split("\n\n")
        assert len(one["receipt"]) == 2
    said = (
        'query 0 ("shall be preserved" after "the union", not "end") changes',
        'query 1 (sum of 2: "gold", ...) changes',
        f"query 2 (target 7, SHA-256 {example['sha256'][:12]}) changes",
        "query 3 (2 weighted examples) changes",
    )
    for query_number, words in enumerate(said):
        assert words in details["queries"][query_number]["receipt"][1]
    with pytest.raises(EvaluationError, match="evidence of more than 3 questions"):
        with_receipts(evidence, questions[:3])
    with pytest.raises(EvaluationError, match="evidence of kind 'lds'"):
        with_receipts(Evidence("lds", "s", (), {}), questions)


def test_a_receipt_of_something_else_is_refused() -> None:
    with pytest.raises(EvaluationError, match="evidence of kind 'lds' holds no removals"):
        receipt(Evidence("lds", "s", (), {}))
    evidence = removals({"t": effects()}, retrainer(), subject="s", k=[2], seeds=[0], query=1)
    with pytest.raises(EvaluationError, match=r"query 0 was not asked; choose among \[1\]"):
        receipt(evidence, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": []}, r"k=\[\] of 30 documents; give different numbers from 1 to 29"),
        ({"k": [0]}, r"k=\[0\] of 30"),
        ({"k": [30]}, r"k=\[30\] of 30"),
        ({"k": [2, 2]}, r"k=\[2, 2\] of 30"),
        ({"seeds": []}, r"seeds=\[\]; give at least one"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\]; give at least one, each once"),
        ({"query": 4}, "query=4; give a number from 0 to 3"),
        ({"query": -1}, "query=-1; give a number"),
        ({"random_draws": 0}, "random_draws=0; give at least 1"),
        ({"scores": {}}, "no method to judge"),
        ({"scores": {"random": np.ones((4, 30))}}, "no method to judge"),
        ({"scores": {"a": np.ones((3, 30))}}, r"scores of 'a' have shape \(3, 30\); give"),
        ({"scores": {"a": np.ones((4, 30)), "b": np.ones((4, 29))}}, "scores of 'b' have shape"),
        ({"scores": {"a": np.full((4, 30), np.nan)}}, "scores of 'a' hold NaN"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    change: dict[str, Any], message: str
) -> None:
    machine = retrainer()
    given = {"scores": {"true": effects()}, "k": [2], "seeds": [0], **change}
    with pytest.raises(EvaluationError, match=message):
        removals(given.pop("scores"), machine, subject="s", **given)
    assert machine.trainer.runs == 0  # type: ignore[attr-defined]


def train(members: NDArray[np.int64], seed: int) -> nn.Module:
    """Logistic regression by gradient descent; the seed decides the first weights."""
    x, y = points()
    torch.manual_seed(seed)
    model = nn.Linear(3, 2, dtype=torch.float64)
    optimiser = torch.optim.SGD(model.parameters(), 1.0, weight_decay=0.05)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[members]), y[members]).backward()
        optimiser.step()
    return model


def points() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 3, dtype=torch.float64, generator=generator)
    noise = torch.randn(40, dtype=torch.float64, generator=generator)
    return x, (x[:, 0] + noise > 0).long()


def test_influence_foretells_what_retraining_by_hand_shows() -> None:
    x, y = points()
    model = train(np.arange(40), 0)
    asked = (x[:3], y[:3])
    subject = Subject.of_tensors("points", model, (x, y), asked)
    scores = influence(subject, fit(subject, "exact", damping=0.2))
    machine = Retrainer(
        FunctionTrainer(train), Measurement(subject.extractor.objective, subject.questions), "p"
    )
    evidence = removals({"exact": scores}, machine, subject="points", k=[3], seeds=[0, 1])
    for query in range(3):
        kept = np.sort(np.argsort(-scores[query])[3:])
        log_p = []
        for members in (kept, np.arange(40)):
            logits = [train(members, seed)(x[query]).detach() for seed in (0, 1)]
            log_p.append([float(torch.log_softmax(z, 0)[y[query]]) for z in logits])
        by_hand = np.subtract(*log_p)
        entry = judged(evidence, query)["exact", "top 3 removed"]
        assert entry["by_seed"] == pytest.approx(by_hand)
        assert entry["predicted"] < 0.0
    assert evidence.value("exact", "change beyond random, top 3 removed") < 0.0


def test_one_factor_is_students_test() -> None:
    values = np.random.default_rng(0).standard_normal(6) + 1.0
    expected = ttest_1samp(values, 0.0)
    bounds = expected.confidence_interval(0.95)
    for shaped in (values, values[:, None], values[None, :, None]):
        found = crossed_mean(shaped)
        assert found.value == pytest.approx(values.mean())
        assert found.error == pytest.approx(values.std(ddof=1) / np.sqrt(6))
        assert (found.low, found.high) == pytest.approx((bounds.low, bounds.high))
        assert found.p == pytest.approx(expected.pvalue)


def test_factors_add_their_variances() -> None:
    rows, columns = np.array([0.0, 2.0, 4.0]), np.array([1.0, 5.0])
    found = crossed_mean(rows[:, None] + columns)
    first, second = rows.var(ddof=1) / 3, columns.var(ddof=1) / 2
    assert found.error == pytest.approx(np.sqrt(first + second))
    freedom = (first + second) ** 2 / (first**2 / 2 + second**2 / 1)
    assert 1.0 < freedom < 3.0
    wide, narrow = (crossed_mean(values) for values in (columns, rows))
    assert found.high is not None
    assert narrow.high is not None
    assert wide.high is not None
    reach = (found.high - found.value) / found.error  # type: ignore[operator]
    assert (narrow.high - 2.0) / np.sqrt(first) < reach < (wide.high - 3.0) / np.sqrt(second)


def test_without_levels_there_is_no_interval() -> None:
    found = crossed_mean(np.array([[3.0]]))
    assert (found.value, found.error, found.low, found.high, found.p) == (3.0, *4 * (None,))
    assert crossed_mean(np.full((2, 3), 3.0)).p == 0.0
    assert crossed_mean(np.zeros((2, 3))).p == 1.0


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 600 means with noise of rows, columns and cells, at least 93 % of the intervals."""
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        rows, columns, cells = (generator.standard_normal(s) for s in ((5, 1), (1, 4), (5, 4)))
        found = crossed_mean(rows + 0.7 * columns + cells)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.0 <= found.high
    assert 0.93 <= held / 600 <= 0.995
