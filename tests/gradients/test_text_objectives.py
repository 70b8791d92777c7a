"""Objectives over text: what is predicted, against plain computations on one unpadded text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf
from tiny_bert import (
    CONTEXT,
    LABELS,
    WORDS,
    bert_classifier,
    bert_tokenizer,
    labelled_documents,
    llama_classifier,
    masked_bert,
)
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import CorpusError, ModelError, QueryError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import TextExamples, batches
from wherefrom.gradients.extractor import GradientExtractor, LayerPair
from wherefrom.gradients.fisher import true_gradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.models import LoadedModel
from wherefrom.gradients.objectives import TextObjective, objective_from
from wherefrom.indexer.prepare import Skipped, bind_to_text, passages
from wherefrom.records import Document, Message, Query

TOKENIZER = bert_tokenizer()
MASK = TOKENIZER.mask_token_id
TEXTS = [
    Document(f"t{i}", " ".join(WORDS[i % 5 :][: 2 + 3 * (i % 4)]), {"mood": LABELS[i % 3]})
    for i in range(7)
]


MODEL = masked_bert()


def masked(probability: float = 0.3, seed: int = 0) -> wf.MaskedLM:
    objective = wf.MaskedLM(bert_tokenizer(), probability=probability, seed=seed)
    return objective.bind(MODEL, None)


def classifier(model: nn.Module | None = None) -> wf.SequenceClassification:
    objective = wf.SequenceClassification(bert_tokenizer(), label="mood")
    return objective.bind(bert_classifier() if model is None else model, None)


def whole_batch(objective: TextObjective, documents: Sequence[Document]) -> Batch:
    return TextExamples.of(documents, objective).batch(np.arange(len(documents)))


def nats(model: nn.Module, objective: TextObjective, batch: Batch) -> Tensor:
    with torch.no_grad():
        return objective.log_likelihood(objective.outputs(model, batch), batch.targets, batch)


def gradients(
    model: nn.Module, objective: TextObjective, documents: Sequence[Document], size: int
) -> dict[str, list[Tensor]]:
    """Per layer, one weight gradient a document, in their order."""
    extractor = GradientExtractor(model, objective, select_layers(model, "linear"))
    found: dict[str, list[Tensor]] = {
        layer.name: [torch.empty(0)] * len(documents) for layer in extractor.layers
    }
    examples = TextExamples.of(documents, objective)
    with extractor.session():
        for positions, batch in batches(examples, max_documents=size, max_positions=10_000):

            def keep(pair: LayerPair, positions: np.ndarray = positions) -> None:
                for row, position in enumerate(positions):
                    gradient = pair.deltas[row].T @ pair.activations[row]
                    found[extractor.layers[pair.layer].name][position] = gradient

            true_gradients(extractor, batch, keep)
    return found


KINDS = {
    "masked": (masked_bert, masked),
    "bert classifier": (bert_classifier, classifier),
    "llama classifier": (llama_classifier, lambda: classifier(llama_classifier())),
}


@pytest.mark.parametrize("name", KINDS)
def test_gradients_do_not_depend_on_batch_padding_or_order(name: str) -> None:
    make_model, make_objective = KINDS[name]
    model, objective = make_model(), make_objective()
    alone = gradients(model, objective, TEXTS, 1)
    together = gradients(model, objective, TEXTS, 7)
    turned = gradients(model, objective, TEXTS[::-1], 3)
    objective.bound_tokenizer.padding_side = "left"
    other_side = gradients(model, objective, TEXTS, 7)
    for layer, expected in alone.items():
        for row, gradient in enumerate(expected):
            assert gradient.abs().max() > 1e-9
            for found in (together[layer][row], turned[layer][6 - row], other_side[layer][row]):
                torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-11)


# Masked tokens


def hidden(objective: wf.MaskedLM, document: Document) -> np.ndarray:
    return objective.tokenise([document])[0].scored


def test_masked_log_likelihood_is_that_of_a_plain_computation() -> None:
    model, objective = masked_bert(), masked()
    found = nats(model, objective, whole_batch(objective, TEXTS))
    for row, document in enumerate(TEXTS):
        ids = torch.tensor(TOKENIZER(document.text)["input_ids"])
        at = torch.from_numpy(hidden(objective, document))
        inputs = torch.where(at, torch.tensor(MASK), ids)
        with torch.no_grad():
            logits = model(input_ids=inputs[None]).logits[0]
        expected = -torch.nn.functional.cross_entropy(logits[at], ids[at], reduction="sum")
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=0)


def test_masks_are_drawn_from_words_and_at_least_one() -> None:
    words = [WORDS[i % len(WORDS)] for i in range(18)]
    documents = [Document(str(i), " ".join(words[i % 7 :])) for i in range(60)]
    rare, every = masked(1e-9), masked(1.0)
    assert all(hidden(rare, d).sum() == 1 for d in documents)
    for document in documents:
        assert hidden(every, document).tolist() == [
            token not in ("[CLS]", "[SEP]")
            for token in TOKENIZER.convert_ids_to_tokens(TOKENIZER(document.text)["input_ids"])
        ]
    shares = []
    for seed in range(40):
        drawn = hidden(masked(0.3, seed), documents[0])
        assert not drawn[[0, -1]].any()
        shares.append(drawn.sum() / 18)
    assert abs(np.mean(shares) - 0.3) < 4 * (0.3 * 0.7 / (18 * 40)) ** 0.5


def test_masks_belong_to_the_text_and_the_seed() -> None:
    texts = [" ".join(WORDS), " ".join(WORDS[::-1])]
    objective = masked()
    assert hidden(objective, Document("a", texts[0])).tolist() == (
        hidden(objective, Document("another id", texts[0])).tolist()
    )
    drawn = {tuple(hidden(masked(seed=seed), Document("a", t))) for seed in (0, 1) for t in texts}
    assert len(drawn) == 4


def test_only_the_completion_of_a_document_is_masked() -> None:
    document = Document.completion("d", "gold silver trade ships ", "army law war peace union")
    for seed in range(10):
        objective = masked(seed=seed)
        assert not hidden(objective, document)[:5].any()
        assert hidden(objective, document)[5:].any()


def test_all_of_a_queried_completion_is_masked() -> None:
    model, objective = masked_bert(), masked()
    batch = objective.query_batch(Query("gold silver", " army law"))
    names = TOKENIZER.convert_ids_to_tokens(batch.inputs[0].tolist())
    assert names == ["[CLS]", "gold", "silver", "[MASK]", "[MASK]", "[SEP]"]
    with torch.no_grad():
        logp = model(input_ids=batch.inputs).logits[0].log_softmax(-1)
    wanted = TOKENIZER.convert_tokens_to_ids(["army", "law"])
    torch.testing.assert_close(
        nats(model, objective, batch)[0], logp[3, wanted[0]] + logp[4, wanted[1]]
    )


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.1, float("nan")])
def test_bad_probabilities_are_refused(probability: float) -> None:
    with pytest.raises(ModelError, match=r"a number in \(0, 1\]"):
        wf.MaskedLM(probability=probability)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    with pytest.raises(ModelError, match="no mask token"):
        wf.MaskedLM(bert_tokenizer(mask_token=None)).bind(masked_bert(), None)


# Classes of texts


def test_class_log_likelihood_is_that_of_a_plain_computation() -> None:
    for model in (bert_classifier(), llama_classifier()):
        objective = classifier(model)
        documents = [
            Document(d.doc_id, d.text, {"mood": i % 3}) for i, d in enumerate(labelled_documents())
        ]
        found = nats(model, objective, whole_batch(objective, documents))
        for row, document in enumerate(documents):
            with torch.no_grad():
                logits = model(**TOKENIZER(document.text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(found[row], logits.log_softmax(-1)[row % 3])


def test_labels_are_names_or_numbers() -> None:
    objective = classifier()
    given = ["angry", 1, "1", "merry", 0]
    documents = [Document(str(i), "gold", {"mood": label}) for i, label in enumerate(given)]
    assert whole_batch(objective, documents).targets.tolist() == [1, 1, 1, 2, 0]
    for label, number in (("merry", 2), ("0", 0)):
        batch = objective.query_batch(Query("gold silver", label))
        assert batch.targets.tolist() == [number]
        assert batch.inputs[0].tolist() == TOKENIZER("gold silver")["input_ids"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "'d' has no label: its metadata column 'mood' is missing"),
        ({"mood": None}, "'d' has no label"),
        ({"mood": "sad"}, r"label 'sad' of document 'd' .*0 to 2 or a name \('calm', 'angry', 'm"),
        ({"mood": 3}, "label 3 of document 'd'"),
        ({"mood": -1}, "label -1"),
        ({"mood": "3"}, "label '3'"),
        ({"mood": 1.0}, "label 1.0"),
        ({"mood": True}, "label True"),
    ],
)
def test_bad_labels_name_the_document(metadata: dict[str, object], message: str) -> None:
    documents = [*labelled_documents(2), Document("d", "gold", metadata)]
    with pytest.raises(CorpusError, match=message) as caught:
        list(passages(documents, classifier(), Skipped()))
    assert "\n" not in str(caught.value)


def test_long_texts_are_truncated_as_the_tokenizer_does() -> None:
    objective = classifier()
    text = " ".join(WORDS * 3)
    (kept,) = passages([Document("d", text, {"mood": 0})], objective, Skipped())
    assert kept.text == text
    ids = TOKENIZER(text, truncation=True, max_length=CONTEXT)["input_ids"]
    assert TOKENIZER.convert_ids_to_tokens(ids[-1]) == "[SEP]"
    for batch in (whole_batch(objective, [kept]), objective.query_batch(Query(text, "calm"))):
        assert batch.inputs[0].tolist() == ids
    assert len(TOKENIZER(text)["input_ids"]) > CONTEXT, "truncation outlived the call"


def test_a_sample_of_a_text_keeps_what_encoders_classify_by() -> None:
    objective = classifier()
    short = TextExamples.of(TEXTS, objective).shortened(3).batch(np.arange(len(TEXTS)))
    assert short.inputs.shape[1] == 3
    assert (short.inputs[:, 0] == TOKENIZER.convert_tokens_to_ids("[CLS]")).all()


@pytest.mark.parametrize(
    ("query", "message"),
    [
        (Query("gold", "sad"), r"completion 'sad' is no class of the model; give a number from 0"),
        (Query("gold", ""), "completion is empty"),
        (Query("", "calm"), "prompt is empty"),
        (Query("gold \udc80", "calm"), "not valid Unicode"),
    ],
)
def test_bad_questions_of_a_classifier(query: Query, message: str) -> None:
    with pytest.raises(QueryError, match=message):
        classifier().query_batch(query)


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"problem_type": "regression"}])
def test_models_without_classes_are_refused(options: dict[str, object]) -> None:
    names = {} if "num_labels" in options else {"num_labels": 3}
    model = bert_classifier(**{"id2label": None, "label2id": None, **names, **options})
    with pytest.raises(ModelError, match="does not choose one of several classes"):
        classifier(model)


# What all share


def test_causal_batches_are_shifted_and_padded_on_the_right() -> None:
    objective = wf.CausalLM(tiny_tokenizer()).bind(tiny_llama(), None)
    documents = [Document("a", "gold and silver"), Document.completion("b", "war ", "or peace now")]
    tokens = objective.tokenise(documents)
    batch = objective.assemble(documents, tokens)
    width = max(len(t.ids) for t in tokens) - 1
    assert batch.inputs.shape == batch.targets.shape == (2, width)
    for row, document in enumerate(tokens):
        n = len(document.ids) - 1
        assert batch.inputs[row, :n].tolist() == document.ids[:-1].tolist()
        assert batch.targets[row, :n].tolist() == document.ids[1:].tolist()
        assert batch.scored is not None
        assert batch.scored[row].tolist() == [*document.scored[1:], *[False] * (width - n)]
        assert objective.positions(document) == n
        assert objective.predictions(document) == document.scored.sum()


def test_a_sample_of_a_text_is_its_end_for_language_models() -> None:
    document = Document("d", "gold and silver and trade and ships")
    causal = wf.CausalLM(tiny_tokenizer()).bind(tiny_llama(), None)
    (whole,) = causal.tokenise([document])
    for objective, tokens in ((causal, 5), (masked(), 4)):
        (given,) = objective.tokenise([document])
        short = objective.shortened(given, 4)
        assert short.ids.tolist() == given.ids[-tokens:].tolist()
        assert short.scored.tolist() == given.scored[-tokens:].tolist()
        assert TextExamples(objective, [document], [short]).lengths.tolist() == [4]
    assert TextExamples(causal, [document], [whole]).shortened(4).tokens.tolist() == [4]


def test_positions_and_predictions_of_each_kind() -> None:
    document = Document("d", "gold silver trade", {"mood": 0})
    for objective, positions in ((masked(), 5), (classifier(), 5)):
        examples = TextExamples.of([document], objective)
        assert examples.lengths.tolist() == [positions]
    assert TextExamples.of([document], classifier()).tokens.tolist() == [1]
    assert TextExamples.of([document], masked(1.0)).tokens.tolist() == [3]


def test_documents_with_nothing_to_predict_are_skipped() -> None:
    empty = Document("empty", "")
    unscored = Document("unscored", "gold silver", {"mood": 1}, scored=())
    good = Document("good", "gold silver", {"mood": 2})
    skipped = Skipped()
    kept = list(passages([empty, unscored, good], masked(), skipped))
    assert ([d.doc_id for d in kept], skipped.doc_ids) == (["good"], ["empty", "unscored"])
    bare = Document("bare", "", {"mood": 0}, special_tokens=False)
    skipped = Skipped()
    kept = list(passages([bare, unscored], classifier(), skipped))
    assert ([d.doc_id for d in kept], skipped.doc_ids) == (["unscored"], ["bare"])


def test_long_documents_of_a_masked_model_are_cut() -> None:
    long = Document("d", " ".join(WORDS * 4))
    objective = masked()
    parts = list(passages([long], objective, Skipped()))
    assert "".join(part.text for part in parts) == long.text
    assert all(len(t.ids) <= CONTEXT for t in objective.tokenise(parts))


def test_columns_that_the_objective_reads_are_kept(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "gold", "mood": 1, "year": 1800, "party": "x"}\n')
    (document,) = passages(path, classifier(), Skipped(), metadata_columns=["year"])
    assert document.metadata == {"year": 1800, "mood": 1}


def test_chats_are_rendered_before_they_are_tokenised() -> None:
    tokenizer = tiny_tokenizer()
    objective = wf.CausalLM(tokenizer).bind(tiny_llama(), None)
    chat = Document.chat("c", [Message("user", "gold"), Message("assistant", "silver trade")])
    (kept,) = passages([chat], objective, Skipped())
    assert kept.messages is None
    assert "silver trade" in kept.text


def test_binding_leaves_the_objective_alone_and_takes_what_it_lacks() -> None:
    objective = wf.CausalLM()
    bound = objective.bind(tiny_llama(), tiny_tokenizer())
    assert (objective.tokenizer, objective.context) == (None, None)
    assert bound.tokenizer is not None
    assert bound.context == 96
    assert objective.bind(tiny_llama(), tiny_tokenizer(), context=7).context == 7
    given = wf.CausalLM(tiny_tokenizer(), context=9)
    assert given.bind(tiny_llama(), None, context=7).context == 9
    again = objective_from(bound.kind, bound.options()).bind(tiny_llama(), tiny_tokenizer())
    assert again.options() == {"context": 96}


def test_a_context_does_not_reach_beyond_what_roberta_has() -> None:
    from transformers import RobertaConfig, RobertaForMaskedLM

    config = RobertaConfig(
        vocab_size=30,
        hidden_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=4,
        max_position_embeddings=18,
        pad_token_id=1,
    )
    model = RobertaForMaskedLM(config).double().eval()
    assert wf.MaskedLM(TOKENIZER).bind(model, None).context == 16
    model(input_ids=torch.full((1, 16), 5))
    with pytest.raises(ModelError, match="give at most 16"):
        wf.MaskedLM(TOKENIZER, context=17).bind(model, None)


def test_unbound_and_unfit_objectives_say_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"objective=wf.MaskedLM\(tokenizer\)"):
        wf.MaskedLM().bind(masked_bert(), None)
    with pytest.raises(ModelError, match=r"call objective\.bind"):
        wf.MaskedLM().tokenise(TEXTS)
    with pytest.raises(ModelError, match=r"call objective\.bind"):
        wf.MaskedLM(TOKENIZER).query_batch(Query("gold", "silver"))
    loaded = LoadedModel(bert_classifier(), None, None, None)
    with pytest.raises(ModelError, match="Classification reads tensors, the documents are text"):
        bind_to_text(wf.Classification(), loaded)
    with pytest.raises(ModelError, match="text needs a tokenizer"):
        bind_to_text(wf.CausalLM(), loaded)


def test_a_model_of_another_kind_is_refused() -> None:
    documents = TEXTS[:2]
    with pytest.raises(ModelError, match=r"BertForMaskedLM returned logits \[2, .*\[doc, class\]"):
        classifier().outputs(masked_bert(), whole_batch(classifier(), documents))
    with pytest.raises(ModelError, match="masked language model has logits"):
        masked().outputs(bert_classifier(), whole_batch(masked(), documents))
    with pytest.raises(ModelError, match="returned no logits"):
        masked().outputs(masked_bert().bert, whole_batch(masked(), documents))
    with pytest.raises(ModelError, match="cannot be called as a Hugging Face masked"):
        masked().outputs(nn.Linear(2, 2), whole_batch(masked(), documents))


def test_questions_longer_than_the_context_are_refused() -> None:
    long = " ".join(WORDS * 2)
    with pytest.raises(QueryError, match=f"the index's context is {CONTEXT}; shorten the prompt"):
        masked().query_batch(Query(long, " gold"))
    causal = wf.CausalLM(tiny_tokenizer(), context=8).bind(tiny_llama(), None)
    with pytest.raises(QueryError, match="the index's context is 8"):
        causal.query_batch(Query(text_documents()[0].text * 4, " gold"))
