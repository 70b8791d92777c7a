from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from subjects import least_squares, regression, tensors
from torch import Tensor

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.curvature.kinds import CURVATURE_KINDS
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.scores import fit, influence, self_influence
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.batches import Batch

QUERIES = [
    wf.Query("the cat", " sat on the mat"),
    wf.Query("", "a dog ran"),
    wf.Query("the cat", " sat", contrast=" ran home"),
    wf.QuerySet((wf.Query("the", " cat"), wf.Query("a", " dog ran to"))),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> tuple[wf.Index, Subject, Subject]:
    model, tokenizer, documents = tiny_llama(), tiny_tokenizer(), text_documents(12)
    path = tmp_path_factory.mktemp("subject") / "lm.index"
    objective = wf.CausalLM(tokenizer)
    index = wf.build(model, documents, path, objective=objective, encoder="none")
    in_memory = Subject.of_texts("lm", model, tokenizer, documents, QUERIES)
    return index, Subject.of_index(index, QUERIES), in_memory


def test_a_subject_of_an_index_is_the_one_in_memory(
    lm: tuple[wf.Index, Subject, Subject],
) -> None:
    index, indexed, in_memory = lm
    assert indexed.doc_ids == in_memory.doc_ids == tuple(index.doc_ids())
    assert indexed.texts == in_memory.texts
    assert indexed.asked[2] == "the cat sat"
    assert indexed.asked[3] == "the cat\na dog ran to"
    assert len(indexed) == 12


def test_scores_without_an_index_are_the_index_own(lm: tuple[wf.Index, Subject, Subject]) -> None:
    index, indexed, in_memory = lm
    expected = index.scores(QUERIES)
    for subject in (indexed, in_memory):
        fitted = fit(subject)
        assert influence(subject, fitted) == pytest.approx(expected, rel=1e-6, abs=1e-12)
        assert self_influence(subject, fitted) == pytest.approx(index.self_influence(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:scores correlate at")
@pytest.mark.parametrize("kind", CURVATURE_KINDS)
def test_every_curvature_can_be_fitted(kind: str, tmp_path: Path) -> None:
    subject = regression()
    documents, asked = tensors(24, 0), tensors(3, 1)
    model = least_squares(*documents)
    built = wf.build(
        model, documents, tmp_path / "i", objective=wf.Regression(), curvature=kind, encoder="none"
    )
    assert influence(subject, fit(subject, kind)) == pytest.approx(built.scores(asked), rel=1e-9)


def test_a_measurement_is_what_each_question_says(lm: tuple[wf.Index, Subject, Subject]) -> None:
    index, indexed, _ = lm
    model = index.asker.extractor.model
    found = Measurement(indexed.extractor.objective, indexed.questions)(model)
    answers = index.answers(QUERIES, k=1, rerank="stored")
    assert found == pytest.approx([answer.log_likelihood for answer in answers], rel=1e-5)


def scaled(scale: float) -> wf.Regression:
    class Mine(wf.Regression):
        def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
            return super().log_likelihood(outputs * scale, targets, batch)

    return Mine()


@dataclass(frozen=True)
class Generated(wf.Regression):
    """What a decorator adds binds objects of its own."""

    rate: float = 1.0


class Other(wf.Regression):
    kind = "Mine"


def test_an_objective_of_the_user_s_is_known_by_its_source() -> None:
    questions = regression().questions
    digests = [
        Measurement(objective, questions).digest
        for objective in (scaled(1.0), scaled(5.0), Other(), Generated(), wf.Regression())
    ]
    assert len(set(digests)) == 5
    assert Measurement(scaled(5.0), questions).digest == digests[1]
    unknown = type("Unknown", (wf.Regression,), {"__module__": "__nowhere__"})
    with pytest.raises(EvaluationError, match="define Unknown in a file"):
        Measurement(unknown(), questions)


def test_digests_know_types_shapes_and_masks() -> None:
    (question, *_) = regression().questions
    ((weight, batch),) = question.terms
    zeros = replace(batch, inputs=torch.zeros(1, 4), targets=torch.zeros(1, 1))
    mask = torch.tensor([[True, True, False, False]])
    same_bytes = [
        zeros,
        replace(zeros, inputs=torch.zeros(1, 2, dtype=torch.float64)),
        replace(zeros, inputs=torch.zeros(1, 4, dtype=torch.int32)),
        replace(zeros, inputs=torch.zeros(1, 2, 2)),
        replace(zeros, inputs=torch.zeros(1, 8, dtype=torch.bfloat16)),
        replace(zeros, attended=mask),
        replace(zeros, attended=~mask),
        replace(zeros, scored=mask),
    ]
    digests = {
        Measurement(wf.Regression(), [replace(question, terms=((weight, one),))]).digest
        for one in same_bytes
    }
    assert len(digests) == len(same_bytes)


def test_a_measurement_leaves_every_mode_as_it_was() -> None:
    subject = regression()
    measurement = Measurement(subject.extractor.objective, subject.questions)
    module = torch.nn.Sequential(torch.nn.Dropout(0.9), least_squares(*tensors(24, 0))).train()
    assert np.array_equal(measurement(module), measurement(module))
    assert module.training
    module[0].eval()
    measurement(module)
    assert [part.training for part in module.modules()] == [True, False, True]
    with pytest.raises(RuntimeError):
        measurement(torch.nn.Sequential(module, torch.nn.Linear(7, 7)))
    assert [part.training for part in module.modules()] == [True, False, True]
    with pytest.raises(EvaluationError, match="no question"):
        Measurement(subject.extractor.objective, [])


def test_digests_know_documents_and_their_order() -> None:
    model, tokenizer, documents = tiny_llama(), tiny_tokenizer(), text_documents(8)
    digests = {
        Subject.of_texts("lm", model, tokenizer, some, QUERIES[:1]).digest
        for some in (documents, documents[::-1], documents[:3])
    }
    assert len(digests) == 3
