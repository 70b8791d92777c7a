"""The two models that curvatures are compared on, with documents and queries.

They are trained here, for a moment, so that gradients are those of models that learned something.

* ``lm``: a Llama of 3 blocks with 442,368 weights in its MLPs, over passages of the demo's corpus;
* ``lora``: a BERT of 4 blocks that tells the passages' centuries apart, with rank-4 LoRA adapters
  on queries and values: 16 blocks of 1,024 weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForSequenceClassification

import wherefrom as wf
from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.model import Recipe, train_model, train_tokenizer
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.examples import TextExamples, batches
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.models import load_model
from wherefrom.indexer.prepare import bind_to_text
from wherefrom.records import Document, Query

__all__ = ["Subject", "open_subject", "write_subject"]

QUERIES = 6
_LM = Recipe(vocabulary=2048, width=128, feed_forward=384, layers=3, heads=4, epochs=2)
_CLASSIFIER = Recipe(vocabulary=2048, context=64, width=256, feed_forward=1024, layers=4, heads=4)
_LABELS = ("before 1900", "since 1900")
_PROMPT_WORDS = 10
_COMPLETION_WORDS = 14


@dataclass(frozen=True, slots=True)
class Subject:
    """A model, ready to be differentiated, with documents and queries.

    Attributes:
        extractor: Model, objective and layers.
        batches: The documents.
        queries: One batch of one document each.
    """

    extractor: GradientExtractor
    batches: tuple[Batch, ...]
    queries: tuple[Batch, ...]

    @property
    def documents(self) -> int:
        """How many there are."""
        return sum(map(len, self.batches))


def write_subject(name: str, folder: Path, count: int) -> None:
    """Train a model and write it, its documents and its queries into ``folder``.

    Args:
        name: ``lm`` or ``lora``.
        folder: Exists.
        count: How many documents.
    """
    addresses = load_addresses()
    passages = training_passages(addresses, count)[:count]
    held_out = held_out_passages(addresses, passages, QUERIES)
    if name == "lm":
        tokenizer = train_tokenizer(passages, _LM)
        model = train_model(
            passages, tokenizer, seed=0, progress=lambda phase, done, total: None, recipe=_LM
        )
        queries = [_continuation(passage) for passage in held_out]
    else:
        tokenizer = train_tokenizer(passages, _CLASSIFIER)
        passages = [Document(p.doc_id, p.text, {"label": _label(p)}) for p in passages]
        model = _trained_classifier(tokenizer, passages, folder / "base")
        tokenizer.save_pretrained(folder / "base")
        queries = [Query(passage.text, _label(passage)) for passage in held_out]
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    written = {
        "documents": [(p.doc_id, p.text, dict(p.metadata)) for p in passages],
        "queries": [(query.prompt, query.completion) for query in queries],
    }
    (folder / "texts.json").write_text(json.dumps(written), encoding="utf-8")


def open_subject(folder: Path) -> Subject:
    """What :func:`write_subject` wrote."""
    adapter = (folder / "base").is_dir()
    loaded = load_model(folder / "model", "cpu", base=folder / "base" if adapter else None)
    objective = bind_to_text(wf.SequenceClassification() if adapter else wf.CausalLM(), loaded)
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    documents = [Document(*row) for row in texts["documents"]]
    examples = TextExamples.of(documents, objective)
    extractor = GradientExtractor(loaded.module, objective, select_layers(loaded.module))
    return Subject(
        extractor,
        tuple(batch for _, batch in batches(examples, max_documents=32, max_positions=2048)),
        tuple(objective.query_batch(Query(*row)) for row in texts["queries"]),
    )


def _continuation(passage: Document) -> Query:
    words = passage.text.split(" ")
    asked = words[_PROMPT_WORDS : _PROMPT_WORDS + _COMPLETION_WORDS]
    return Query(" ".join(words[:_PROMPT_WORDS]), "".join(f" {word}" for word in asked))


def _label(passage: Document) -> str:
    return _LABELS[int(str(passage.metadata["year"])) >= 1900]


def _trained_classifier(tokenizer: Any, documents: Sequence[Document], base: Path) -> Any:
    """A classifier trained for one epoch, and an adapter on it trained for another."""
    recipe = _CLASSIFIER
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        id2label=dict(enumerate(_LABELS)),
        label2id={name: number for number, name in enumerate(_LABELS)},
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    objective = wf.SequenceClassification().bind(model, tokenizer)
    examples = TextExamples.of(documents, objective)
    shuffled = torch.randperm(len(documents)).numpy()
    drawn = [examples.batch(shuffled[i : i + 16]) for i in range(0, len(shuffled), 16)]
    _epoch(model, drawn, 3e-4)
    model.eval()  # type: ignore[no-untyped-call]
    model.save_pretrained(base)
    adapter = LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=8, target_modules=["query", "value"])
    adapted: Any = get_peft_model(model, adapter)
    _epoch(adapted, drawn, 2e-3)
    return adapted.eval()


def _epoch(model: nn.Module, drawn: Sequence[Batch], rate: float) -> None:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    for batch in drawn:
        mask = None if batch.attended is None else batch.attended.long()
        logits = model(input_ids=batch.inputs, attention_mask=mask).logits
        optimizer.zero_grad()
        cross_entropy(logits, batch.targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def main() -> None:
    """``python -m benchmarks.curvature_subjects NAME FOLDER COUNT``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=("lm", "lora"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    write_subject(given.name, given.folder, given.count)


if __name__ == "__main__":
    main()
