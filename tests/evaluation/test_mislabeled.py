"""Suspects against brute force, with flaws planted in data that a model was trained on."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

import dense
import wherefrom as wf
from small_models import mlp
from tiny_bert import LABELS, bert_classifier, bert_tokenizer, labelled_documents
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.evidence import Evidence
from wherefrom.evaluation.mislabeled import mislabeled, mislabeled_of_index
from wherefrom.evaluation.scores import fit, influence, self_influence
from wherefrom.evaluation.statistics import spearman
from wherefrom.evaluation.subject import Subject
from wherefrom.evaluation.symptoms import SELF_INFLUENCE, symptoms

COUNT = 60


def clusters(classes: int = 3) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.bool_]]:
    """Well parted clusters, every seventh point with another cluster's label."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(COUNT) % classes
    x = torch.randn(COUNT, 5, dtype=torch.float64, generator=generator)
    x += 4.0 * nn.functional.one_hot(y, 5).double()
    flawed = np.arange(COUNT) % 7 == 0
    return x, torch.where(torch.from_numpy(flawed), (y + 1) % classes, y), flawed


def trained(x: torch.Tensor, y: torch.Tensor, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Linear(5, classes, dtype=torch.float64)
    optimiser = torch.optim.SGD(model.parameters(), 0.3, weight_decay=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model


def subject(classes: int = 3) -> tuple[Subject, NDArray[np.bool_]]:
    x, y, flawed = clusters(classes)
    clean = torch.arange(3) + 1
    queries = (x[clean], y[clean])
    model = trained(x, y, classes)
    return Subject.of_tensors("clusters", model, (x, y), queries), flawed


def suspects(evidence: Evidence) -> list[dict[str, Any]]:
    found: Any = evidence.to_json()["details"]["suspects"]
    return list(found)


def test_every_method_is_what_brute_force_says() -> None:
    case, _ = subject()
    x, y, _ = clusters()
    model = case.extractor.model
    fitted = fit(case, "ekfac")
    found = symptoms(case, fitted)
    np.testing.assert_allclose(found.self_influence, self_influence(case, fitted), rtol=1e-12)
    probabilities = torch.softmax(model(x), 1).detach().numpy()
    suspicion = found.suspicion()
    assert list(suspicion) == [SELF_INFLUENCE, "loss", "gradient norm", "margin"]
    for i in range(COUNT):
        label = int(y[i])
        gradient = dense.weight_gradient(
            model, "", lambda m, i=i, label=label: torch.log_softmax(m(x[i]), 0)[label]
        )
        own, others = probabilities[i, label], np.delete(probabilities[i], label)
        assert suspicion["loss"][i] == pytest.approx(-math.log(own))
        assert suspicion["gradient norm"][i] == pytest.approx(float(gradient.square().sum()))
        assert suspicion["margin"][i] == pytest.approx(math.log(others.max()) - math.log(own))


def brute_auc(scores: NDArray[np.float64], flawed: NDArray[np.bool_]) -> float:
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[flawed] for b in scores[~flawed]]
    return float(np.mean(pairs))


def test_planted_flaws_are_found_and_figures_are_counted() -> None:
    case, flawed = subject()
    fitted = fit(case, "ekfac")
    evidence = mislabeled(case, fitted, truth=flawed, held_out=True, draws=200)
    suspicion = symptoms(case, fitted).suspicion()
    suspicion["harm"] = -influence(case, fitted).sum(0)
    assert {figure.method for figure in evidence.figures} == set(suspicion)
    for name, scores in suspicion.items():
        figure = evidence.figure(name, "AUC")
        assert figure.value == pytest.approx(brute_auc(scores, flawed))
        assert figure.low is not None
        assert figure.high is not None
        assert figure.low <= figure.value <= figure.high
        for share in (10, 20):
            first = np.argsort(-scores)[: math.ceil(share / 100 * COUNT)]
            found = flawed[first].sum() / flawed.sum()
            assert evidence.value(name, f"found in first {share} %") == pytest.approx(found)
    assert evidence.value(SELF_INFLUENCE, "AUC") > 0.95
    assert evidence.value("harm", "AUC") > 0.9
    gained = evidence.value("harm", "AUC above loss")
    assert gained == pytest.approx(evidence.value("harm", "AUC") - evidence.value("loss", "AUC"))
    with pytest.raises(EvaluationError):
        evidence.figure("loss", "AUC above loss")
    details: Any = evidence.details
    assert details["found"]["loss"][0] == 0.0
    assert details["found"]["loss"][100] == pytest.approx(1.0)
    assert details["inspected"][20] == pytest.approx(0.2)
    assert details["found"]["loss"][20] == evidence.value("loss", "found in first 20 %")
    assert Evidence.from_json(json.loads(json.dumps(evidence.to_json()))) is not None


def test_equal_scores_are_inspected_in_no_order() -> None:
    """Ten documents with one gradient: a fifth of the flawed ones is expected in a fifth."""
    x = torch.ones(10, 5, dtype=torch.float64)
    y = torch.zeros(10, dtype=torch.int64)
    case = Subject.of_tensors("same", mlp(), (x, y), (x[:1], y[:1]))
    for flawed in (np.arange(10) < 3, np.arange(10) >= 7):
        evidence = mislabeled(case, fit(case, "identity"), truth=flawed, draws=20)
        assert evidence.value(SELF_INFLUENCE, "AUC") == 0.5
        assert evidence.value(SELF_INFLUENCE, "found in first 20 %") == pytest.approx(0.2)


def test_suspects_come_with_what_the_model_says() -> None:
    case, flawed = subject()
    x, y, _ = clusters()
    fitted = fit(case, "ekfac")
    evidence = mislabeled(case, fitted, show=4, draws=20)
    own = self_influence(case, fitted)
    listed = suspects(evidence)
    assert [one["position"] for one in listed] == np.argsort(-own)[:4].tolist()
    for rank, one in enumerate(listed, start=1):
        at = one["position"]
        probabilities = torch.softmax(case.extractor.model(x[at]), 0).detach()
        assert one["rank"] == rank
        assert one["doc_id"] == case.doc_ids[at]
        assert one["label"] == int(y[at])
        assert one["model_label"] == int(probabilities.argmax())
        assert one["label_probability"] == pytest.approx(float(probabilities[y[at]]))
        assert one["model_probability"] == pytest.approx(float(probabilities.max()))
        assert one[SELF_INFLUENCE] == pytest.approx(own[at])
        assert "text" not in one
        assert "flawed" not in one
    assert flawed[[one["position"] for one in listed]].all()
    marked = suspects(mislabeled(case, fitted, truth=flawed, show=COUNT, draws=20))
    assert [one["flawed"] for one in marked] == flawed[[one["position"] for one in marked]].tolist()
    assert suspects(mislabeled(case, fitted, show=0, draws=20)) == []


def test_without_a_truth_figures_say_how_alike_rankings_are() -> None:
    case, _ = subject()
    fitted = fit(case, "ekfac")
    evidence = mislabeled(case, fitted, draws=50)
    suspicion = symptoms(case, fitted).suspicion()
    figure = evidence.figure(SELF_INFLUENCE, "rank correlation with loss")
    assert figure.value == pytest.approx(spearman(suspicion[SELF_INFLUENCE], suspicion["loss"]))
    assert len(evidence.figures) == 3
    assert evidence.setting["flawed"] is None


def test_two_classes_have_no_margin_of_their_own() -> None:
    case, flawed = subject(2)
    evidence = mislabeled(case, fit(case, "ekfac"), truth=flawed, draws=20)
    assert {f.method for f in evidence.figures} == {SELF_INFLUENCE, "loss", "gradient norm"}


def test_notes_say_when_the_loss_is_as_good_and_when_labels_are_learnt() -> None:
    case, flawed = subject()
    notes = mislabeled(case, fit(case, "identity"), truth=flawed, draws=100).notes
    assert any(
        note.startswith("Self-influence finds the flawed documents no better") for note in notes
    )
    x, _, _ = clusters()
    learnt = case.extractor.model(x).argmax(1)
    same = Subject.of_tensors("s", case.extractor.model, (x, learnt), (x[:1], learnt[:1]))
    (note,) = mislabeled(same, fit(same, "identity"), draws=20).notes
    assert note.startswith("The model gives 100.0 % of the documents the label they have")


def test_an_index_over_classified_texts(tmp_path: Path) -> None:
    documents = [
        wf.Document(d.doc_id, d.text, {**d.metadata, "mood": LABELS[i % 3], "wrong": i % 3 == 0})
        for i, d in enumerate(labelled_documents(8))
    ]
    model, objective = bert_classifier(), wf.SequenceClassification(bert_tokenizer(), label="mood")
    index = wf.build(
        model, documents, tmp_path / "i", objective=objective, layers="mlp", encoder="none"
    )
    queries = [wf.Query("gold trade war", LABELS[1]), wf.Query("peace", LABELS[0])]
    evidence = mislabeled_of_index(index, truth="wrong", held_out=queries, draws=20)
    listed = suspects(evidence)
    own = index.self_influence()
    ids = index.doc_ids()
    assert [one["doc_id"] for one in listed] == [ids[i] for i in np.argsort(-own)]
    by_id = {document.doc_id: document for document in documents}
    for one in listed:
        document = by_id[one["doc_id"]]
        assert one["text"] == document.text
        assert one["label"] == document.metadata["mood"]
        assert one["flawed"] == document.metadata["wrong"]
        assert one["model_label"] in LABELS
        assert one["label_probability"] <= one["model_probability"]
        assert one[SELF_INFLUENCE] == pytest.approx(own[ids.index(one["doc_id"])], rel=1e-6)
    harm = -index.scores(queries).sum(0)
    assert listed[0]["harm"] == pytest.approx(harm[ids.index(listed[0]["doc_id"])])
    assert evidence.setting["held_out"] == 2
    assert evidence.setting["damping"] == index.manifest.curvature.damping
    flagged = np.array([by_id[doc_id].metadata["wrong"] for doc_id in ids])
    again = mislabeled_of_index(index, truth=flagged, held_out=queries, draws=20)
    assert again.figures == evidence.figures
    with pytest.raises(EvaluationError, match=r"truth='clean' is no metadata column .*'wrong'"):
        mislabeled_of_index(index, truth="clean")
    with pytest.raises(EvaluationError, match="column 'mood' of document 'd0' is 'calm'; truth"):
        mislabeled_of_index(index, truth="mood")


def test_documents_of_language_models_are_unusual_not_mislabeled() -> None:
    long = wf.Document("long", "gold " * 80)
    documents = [*text_documents(9), long]
    case = Subject.of_texts("lm", tiny_llama(), tiny_tokenizer(), documents, [])
    evidence = mislabeled(case, fit(case, "ekfac"), draws=20)
    assert evidence.notes[0].startswith("Documents have no class here: suspects are unusual docu")
    listed = suspects(evidence)
    assert {one["doc_id"] for one in listed} == {document.doc_id for document in documents}
    assert "label" not in listed[0]
    (shown,) = [one["text"] for one in listed if one["doc_id"] == "long"]
    assert len(shown) == 300
    assert shown.endswith("…")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": np.ones(3, np.bool_)}, r"truth is bool of shape \(3,\); give one bool for each"),
        ({"truth": np.ones(COUNT)}, "truth is float64 of shape"),
        ({"truth": np.ones(COUNT, np.bool_)}, "truth calls 60 of 60 documents flawed"),
        ({"truth": np.zeros(COUNT, np.bool_)}, "truth calls 0 of 60 documents flawed"),
        ({"show": -1}, "show=-1; give at least 0"),
    ],
)
def test_bad_input_is_refused(options: dict[str, Any], message: str) -> None:
    case, _ = subject()
    with pytest.raises(EvaluationError, match=message):
        mislabeled(case, fit(case, "identity"), **options)


def test_harm_needs_questions() -> None:
    case = Subject.of_texts("lm", tiny_llama(), tiny_tokenizer(), text_documents(9), [])
    with pytest.raises(EvaluationError, match="held_out=True, but the subject has no questions"):
        mislabeled(case, fit(case, "identity"), held_out=True)
