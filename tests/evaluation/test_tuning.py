"""Fine-tuning against a loop of its own over single texts."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

import wherefrom as wf
from tiny_bert import bert_classifier, bert_tokenizer, labelled_documents
from tiny_lm import save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer, token_log_likelihood
from wherefrom.errors import EvaluationError
from wherefrom.evaluation.trainers import Run
from wherefrom.evaluation.tuning import FineTuner, TuningRecipe
from wherefrom.gradients.examples import TensorExamples
from wherefrom.gradients.models import load_model

DOCUMENTS = 9
RECIPE = TuningRecipe(epochs=2, batch_size=3, learning_rate=3e-3, weight_decay=0.01)


def documents() -> list[wf.Document]:
    """Some whole, some with the loss on a completion only."""
    texts = text_documents(DOCUMENTS)
    cut = [text.text.find(" ", len(text.text) // 2) for text in texts]
    return [
        wf.Document.completion(text.doc_id, text.text[:middle], text.text[middle:])
        if i % 2 and middle > 0
        else text
        for i, (text, middle) in enumerate(zip(texts, cut, strict=True))
    ]


def run_of(*left_out: int, seed: int = 0, count: int = DOCUMENTS) -> Run:
    members = np.ones(count, np.bool_)
    members[list(left_out)] = False
    return Run(members, seed)


def tuned(trainer: FineTuner, run: Run) -> nn.Module:
    (model,) = trainer.train([run])
    assert not model.training
    return model


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def tuned_by_hand(
    model: nn.Module, run: Run, nats: list[Any], counts: list[int], learning: list[nn.Parameter]
) -> nn.Module:
    """AdamW written out (Loshchilov and Hutter 2019), on sums over single texts."""
    generator = torch.Generator().manual_seed(run.seed)
    steps = RECIPE.epochs * math.ceil(int(run.members.sum()) / RECIPE.batch_size)
    first = [torch.zeros_like(weight) for weight in learning]
    second = [torch.zeros_like(weight) for weight in learning]
    step = 0
    for _ in range(RECIPE.epochs):
        order = [int(i) for i in torch.randperm(len(nats), generator=generator)]
        order = [i for i in order if run.members[i]]
        for start in range(0, len(order), RECIPE.batch_size):
            batch = order[start : start + RECIPE.batch_size]
            loss = -sum(nats[i](model) for i in batch) / sum(counts[i] for i in batch)
            gradients = torch.autograd.grad(loss, learning)
            rate = RECIPE.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            step += 1
            with torch.no_grad():
                for weight, m, v, g in zip(learning, first, second, gradients, strict=True):
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    weight.mul_(1 - rate * RECIPE.weight_decay)
                    scale = (v / (1 - 0.999**step)).sqrt() + 1e-8
                    weight.sub_(rate * m / (1 - 0.9**step) / scale)
    return model


def language_model_by_hand(model: nn.Module, run: Run, learning: list[nn.Parameter]) -> nn.Module:
    objective = wf.CausalLM().bind(model, tiny_tokenizer())
    tokens = objective.tokenise(documents())
    scored = [[i for i in range(1, len(t.ids)) if t.scored[i]] for t in tokens]
    nats = [token_log_likelihood(t.ids.tolist(), s) for t, s in zip(tokens, scored, strict=True)]
    return tuned_by_hand(model, run, nats, list(map(len, scored)), learning)


@pytest.mark.parametrize("run", [run_of(), run_of(0, 5, seed=1)], ids=["all", "some"])
def test_a_language_model_learns_what_is_scored_of_its_members(run: Run) -> None:
    base = tiny_llama()
    trainer = FineTuner.of_texts(base, documents(), tokenizer=tiny_tokenizer(), recipe=RECIPE)
    own = copy.deepcopy(base)
    expected = language_model_by_hand(own, run, list(own.parameters()))
    found = tuned(trainer, run)
    assert distance(found, base) > 1e-3
    assert distance(found, expected) < 1e-8
    assert distance(base, tiny_llama()) == 0


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_of_an_adapted_model_the_adapter_learns() -> None:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    base = get_peft_model(tiny_llama(), config).double()
    base.requires_grad_(False)  # As adapters come from a folder.
    trainer = FineTuner.of_texts(base, documents(), tokenizer=tiny_tokenizer(), recipe=RECIPE)
    own = copy.deepcopy(base)
    named = [(name, weight) for name, weight in own.named_parameters() if "lora_" in name]
    for _, weight in named:
        weight.requires_grad_()
    expected = language_model_by_hand(own, run_of(2), [weight for _, weight in named])
    found = tuned(trainer, run_of(2))
    assert distance(found, base) > 1e-3
    assert distance(found, expected) < 1e-8
    for (name, old), new in zip(base.named_parameters(), found.parameters(), strict=True):
        assert torch.equal(old, new) == ("lora_" not in name)
    # Whoever starts from another adapter must not read what this one became.
    further = FineTuner.of_texts(found, documents(), tokenizer=tiny_tokenizer(), recipe=RECIPE)
    assert further.recipe != trainer.recipe


def adapted(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["down_proj", "embed_tokens"], **settings)
    return get_peft_model(tiny_llama(), config).double()


def adapter_tuner(base: nn.Module, **changed: Any) -> FineTuner:
    recipe = TuningRecipe(**{**vars_of(RECIPE), **changed})
    return FineTuner.of_texts(base, documents(), tokenizer=tiny_tokenizer(), recipe=recipe)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("how", [True, "gaussian"])
def test_an_adapter_that_has_learnt_nothing_is_drawn_by_the_seed(how: bool | str) -> None:
    base = adapted(init_lora_weights=how)
    # At this rate nothing is learnt, and what was drawn is left.
    still = {"epochs": 1, "learning_rate": 1e-300}
    trainer = adapter_tuner(base, **still)
    first, again, other = trainer.train([run_of(), run_of(1), run_of(seed=1)])
    assert distance(first, again) < 1e-200
    changed = {
        name
        for (name, one), two in zip(first.named_parameters(), other.parameters(), strict=True)
        if float((one - two).detach().abs().max()) > 1e-6
    }
    assert changed == {
        name
        for name, _ in base.named_parameters()
        if "lora_A." in name or "lora_embedding_B" in name
    }
    torch.manual_seed(1)
    for module in base.modules():
        if isinstance(module, LoraLayer):
            module.reset_lora_parameters("default", how)
    assert distance(other, base) < 1e-200
    learnt = tuned(adapter_tuner(base), run_of())
    assert distance(tuned(adapter_tuner(learnt, **still), run_of(seed=1)), learnt) < 1e-200
    assert "drawn by the seed" in trainer.recipe
    assert "drawn by the seed" not in adapter_tuner(learnt).recipe


def test_a_classifier_learns_its_labels() -> None:
    labelled, objective = labelled_documents(DOCUMENTS), wf.SequenceClassification(label="mood")
    base = bert_classifier()
    recipe = TuningRecipe(**{**vars_of(RECIPE), "dropout": False})
    trainer = FineTuner.of_texts(
        base, labelled, tokenizer=bert_tokenizer(), objective=objective, recipe=recipe
    )
    tokenizer = bert_tokenizer()

    def nats_of(document: wf.Document) -> Any:
        label = document.metadata["mood"]
        number = base.config.label2id[label] if isinstance(label, str) else label
        ids = torch.tensor([tokenizer(document.text, truncation=True, max_length=24)["input_ids"]])

        def nats(model: nn.Module) -> Tensor:
            return model(input_ids=ids).logits[0].log_softmax(0)[number]

        return nats

    own = copy.deepcopy(base)
    nats = [nats_of(document) for document in labelled]
    expected = tuned_by_hand(own, run_of(4), nats, [1] * DOCUMENTS, list(own.parameters()))
    found = tuned(trainer, run_of(4))
    assert distance(found, base) > 1e-3
    assert distance(found, expected) < 1e-8


def vars_of(recipe: TuningRecipe) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in recipe.__dataclass_fields__}


def test_dropout_comes_from_the_seed_and_from_nowhere_else() -> None:
    trainer = FineTuner.of_texts(
        bert_classifier(),
        labelled_documents(DOCUMENTS),
        tokenizer=bert_tokenizer(),
        objective=wf.SequenceClassification(label="mood"),
        recipe=TuningRecipe(epochs=1, batch_size=DOCUMENTS),
    )
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, other = trainer.train([run_of(), run_of(seed=1)])
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(6)
    assert distance(first, tuned(trainer, run_of())) == 0
    # One batch of all documents: only what was dropped can differ.
    assert distance(first, other) > 1e-6


def test_a_saved_model_is_tuned_as_one_in_memory(tmp_path: Path) -> None:
    saved = FineTuner.of_texts(save_tiny_lm(tmp_path), documents(), recipe=RECIPE, device="cpu")
    held = FineTuner.of_texts(
        tiny_llama().float(), documents(), tokenizer=tiny_tokenizer(), recipe=RECIPE
    )
    sent = pickle.loads(pickle.dumps(saved))
    for trainer in (held, sent):
        assert trainer.recipe == saved.recipe
        assert distance(tuned(trainer, run_of(1)), tuned(saved, run_of(1))) == 0


def test_the_recipe_tells_bases_and_schedules_apart() -> None:
    def recipe_of(seed: int, **changed: Any) -> str:
        recipe = TuningRecipe(**{**vars_of(RECIPE), **changed})
        return FineTuner.of_texts(
            tiny_llama(seed), documents(), tokenizer=tiny_tokenizer(), recipe=recipe
        ).recipe

    recipes = [recipe_of(2), recipe_of(3), recipe_of(2, epochs=3), recipe_of(2, learning_rate=1.0)]
    assert len(set(recipes)) == 4
    assert recipe_of(2) == recipes[0]


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_the_recipe_knows_what_stands_in_no_weight() -> None:
    def with_config(**settings: Any) -> nn.Module:
        base = tiny_llama()
        for name, value in settings.items():
            setattr(base.config, name, value)
        return base

    def learning(layer: int) -> nn.Module:
        base = tiny_llama().requires_grad_(False)
        base.model.layers[layer].mlp.up_proj.requires_grad_()
        return base

    def dropping(rate: float) -> nn.Module:
        base = tiny_llama()
        base.lm_head = nn.Sequential(base.lm_head, nn.Dropout(rate))
        return base

    bases = [
        *(with_config(attention_dropout=rate) for rate in (0.0, 0.5)),
        *(learning(layer) for layer in (0, 1)),
        *(dropping(rate) for rate in (0.1, 0.2)),
        *(adapted(lora_dropout=rate) for rate in (0.0, 0.9)),
        adapted(target_parameters=[], init_lora_weights="gaussian"),
    ]
    recipes = [adapter_tuner(base).recipe for base in bases]
    assert len(set(recipes)) == len(bases)
    assert recipes == [adapter_tuner(copy.deepcopy(base)).recipe for base in bases]
    assert all("on cpu under causal_lm" in recipe for recipe in recipes)


def test_a_worker_reads_the_base_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = FineTuner.of_texts(save_tiny_lm(tmp_path), documents(), recipe=RECIPE, device="cpu")
    sent = pickle.loads(pickle.dumps(trainer))
    read: list[object] = []

    def counted(*arguments: Any, **options: Any) -> object:
        read.append(arguments)
        return load_model(*arguments, **options)

    monkeypatch.setattr("wherefrom.evaluation.tuning.load_model", counted)
    for seed in range(3):
        tuned(sent, run_of(seed=seed))
    assert len(read) == 1


def test_tensors_can_be_tuned_on_too() -> None:
    inputs = np.random.default_rng(0).standard_normal((DOCUMENTS, 4))
    targets = np.arange(DOCUMENTS) % 3
    base = nn.Sequential(nn.Linear(4, 3)).double()
    examples = TensorExamples(inputs, targets, [f"d{i}" for i in range(DOCUMENTS)])
    recipe = TuningRecipe(epochs=300, batch_size=DOCUMENTS, learning_rate=0.1)
    found = tuned(FineTuner(base, wf.Classification(), examples, recipe), run_of())
    assert (found(torch.from_numpy(inputs)).argmax(1).numpy() == targets).mean() > 0.7


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (np.zeros(DOCUMENTS, np.bool_), "0 of 9 documents are members"),
        (np.arange(DOCUMENTS) < 2, "2 of 9 documents are members, less than one batch of 3"),
        (np.ones(DOCUMENTS - 1, np.bool_), "a bool for each of 9"),
        (np.arange(DOCUMENTS), "give a bool"),
    ],
)
def test_members_that_do_not_fit_are_refused(members: Any, message: str) -> None:
    trainer = FineTuner.of_texts(
        tiny_llama(), documents(), tokenizer=tiny_tokenizer(), recipe=RECIPE
    )
    with pytest.raises(EvaluationError, match=message):
        tuned(trainer, Run(members, 0))


def test_what_cannot_learn_is_refused() -> None:
    base = tiny_llama()
    base.requires_grad_(False)
    with pytest.raises(EvaluationError, match="requires a gradient"):
        FineTuner.of_texts(base, documents(), tokenizer=tiny_tokenizer(), recipe=RECIPE)
    for wrong in ({"epochs": 0}, {"learning_rate": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(EvaluationError, match="give"):
            TuningRecipe(**wrong)
    wild = TuningRecipe(epochs=4, batch_size=3, learning_rate=1e30)
    trainer = FineTuner.of_texts(
        tiny_llama().float(), documents(), tokenizer=tiny_tokenizer(), recipe=wild
    )
    with pytest.raises(EvaluationError, match="a learning_rate below"):
        tuned(trainer, run_of())
