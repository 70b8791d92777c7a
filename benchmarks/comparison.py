"""The job that both halves of the comparison with kronfluence get: model, documents, queries.

Run in a process of its own, so that the one that starts the halves stays small.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wherefrom.demo.corpus import held_out_passages, load_addresses, training_passages
from wherefrom.demo.model import RECIPE, train_model, train_tokenizer
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.tokens import TokenisedDocument, tokenise_batch, tokenise_query
from wherefrom.records import Document, Query

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["QUERIES", "write_job"]

QUERIES = 20
LONGEST = 128
_PROMPT_WORDS = 10
_COMPLETION_WORDS = 14


def write_job(folder: Path, count: int) -> None:
    """Write into ``folder`` everything that the halves read.

    The model has the demo's dimensions and is trained for one epoch, so that its gradients have a
    trained model's spectrum. Queries are beginnings of held-out passages, as long as the demo's
    questions.

    Args:
        folder: Exists.
        count: How many documents.
    """
    addresses = load_addresses()
    passages = training_passages(addresses, count)[:count]
    tokenizer = train_tokenizer(passages)
    documents = [_shortened(document, tokenizer) for document in passages]
    recipe = replace(RECIPE, epochs=1)
    model = train_model(
        documents, tokenizer, seed=0, progress=lambda phase, done, total: None, recipe=recipe
    )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    held_out = held_out_passages(addresses, passages, 2 * QUERIES)
    queries = [_query(document) for document in held_out]
    # Every other one, so that both batches span all years.
    batches = {"first": queries[::2], "second": queries[1::2]}
    with (folder / "documents.jsonl").open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"doc_id": document.doc_id, "text": document.text}) + "\n")
    written = {name: [(q.prompt, q.completion) for q in batch] for name, batch in batches.items()}
    (folder / "queries.json").write_text(json.dumps(written), encoding="utf-8")
    tokens = {
        "doc_ids": [document.doc_id for document in documents],
        "documents": _rows(tokenise_batch(documents, tokenizer)),
        "modules": [layer.name for layer in select_layers(model)],
        **{
            name: _rows([tokenise_query(query, tokenizer) for query in batch])
            for name, batch in batches.items()
        },
    }
    (folder / "tokens.json").write_text(json.dumps(tokens), encoding="utf-8")


def _shortened(document: Document, tokenizer: PreTrainedTokenizerFast) -> Document:
    """The document's beginning, of at most ``LONGEST`` tokens."""
    words = document.text.split(" ")
    while len(tokenizer(" ".join(words))["input_ids"]) > LONGEST:
        words.pop()
    return Document(document.doc_id, " ".join(words))


def _query(document: Document) -> Query:
    words = document.text.split(" ")
    asked = words[_PROMPT_WORDS : _PROMPT_WORDS + _COMPLETION_WORDS]
    return Query(" ".join(words[:_PROMPT_WORDS]), "".join(f" {word}" for word in asked))


def _rows(tokenised: Sequence[TokenisedDocument]) -> list[dict[str, list[int]]]:
    return [
        {"ids": tokens.ids.tolist(), "scored": tokens.scored.astype(int).tolist()}
        for tokens in tokenised
    ]


def main() -> None:
    """``python -m benchmarks.comparison FOLDER COUNT``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("count", type=int)
    given = parser.parse_args()
    write_job(given.folder, given.count)


if __name__ == "__main__":
    main()
