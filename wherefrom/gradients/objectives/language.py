"""Language models: the next token, or tokens hidden in a text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor, nn

from wherefrom.errors import ModelError
from wherefrom.gradients.batches import Batch, pad_rows, pad_tokens, text_batch
from wherefrom.gradients.counter import key_of, uniforms
from wherefrom.gradients.objectives.base import JSON
from wherefrom.gradients.objectives.categorical import Categorical
from wherefrom.gradients.objectives.text import TextObjective, logits_of
from wherefrom.gradients.tokens import TokenisedDocument
from wherefrom.records import Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase
    from typing_extensions import Self

__all__ = ["CausalLM", "MaskedLM"]

_MASK_STREAM = 4


class CausalLM(TextObjective, Categorical):
    """Next-token prediction with a Hugging Face causal language model.

    Args:
        tokenizer: A fast Hugging Face tokenizer; ``None`` takes the one saved with the model.
        context: Longest passage in tokens; ``None`` takes the model's own limit, at most 1024.
    """

    kind = "causal_lm"
    predicts = 1

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[doc, position, vocabulary]``; padding stands on the right."""
        return logits_of(model, batch, "causal language model", 3, use_cache=False)

    def positions(self, tokens: TokenisedDocument) -> int:
        """One less than its tokens: position t reads token t and predicts token t+1."""
        return max(len(tokens.ids) - 1, 0)

    def predictions(self, tokens: TokenisedDocument) -> int:
        """Scored tokens after the first, which nothing predicts."""
        return int(tokens.scored[1:].sum())

    def shortened(self, tokens: TokenisedDocument, positions: int) -> TokenisedDocument:
        """The last ``positions + 1`` tokens; the first of them is context only."""
        return super().shortened(tokens, positions + 1)

    def assemble(self, documents: Sequence[Document], tokens: Sequence[TokenisedDocument]) -> Batch:
        """Inputs are the tokens but the last, targets the tokens but the first."""
        return pad_tokens(tokens, [document.doc_id for document in documents])


class MaskedLM(TextObjective, Categorical):
    """Hidden tokens of a text, each predicted from all that is not hidden.

    A document's log-likelihood is summed over its masked tokens. These are drawn once and for
    all from its scored tokens (of a prompt and completion those of the completion), with
    numbers keyed by the document's tokens, so that equal texts are masked alike; at least one is
    masked, all become the mask token. **Of a question all tokens of the completion are masked at
    once**, so its log-likelihood is the sum of log p(token | prompt), not a chain of predictions.
    The very first token of a text is masked only if the tokenizer puts a start token before it.

    Args:
        tokenizer: A fast Hugging Face tokenizer; ``None`` takes the one saved with the model.
        context: Longest passage in tokens; ``None`` takes the model's own limit, at most 1024.
        probability: With which a document's token is masked, in (0, 1].
        seed: Of the masks.

    Raises:
        ModelError: The probability is out of range.
    """

    kind = "masked_lm"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        context: int | None = None,
        probability: float = 0.15,
        seed: int = 0,
    ) -> None:
        super().__init__(tokenizer, context=context)
        if not 0.0 < probability <= 1.0:
            raise ModelError(f"probability={probability} is not allowed; give a number in (0, 1]")
        self.probability = float(probability)
        self.seed = seed

    def options(self) -> Mapping[str, JSON]:
        """Context, probability and seed."""
        return {**super().options(), "probability": self.probability, "seed": self.seed}

    def bind(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        context: int | None = None,
    ) -> Self:
        """A copy with a tokenizer and a context.

        Raises:
            ModelError: As for every text objective, or the tokenizer has no mask token.
        """
        bound = super().bind(model, tokenizer, context=context)
        if getattr(bound.tokenizer, "mask_token_id", None) is None:
            raise ModelError(
                "the tokenizer has no mask token; set tokenizer.mask_token, or use wf.CausalLM for "
                "a model that predicts the next token"
            )
        return bound

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits ``[doc, token, vocabulary]``; padding stands on the right."""
        return logits_of(model, batch, "masked language model", 3)

    def tokenise(self, documents: Sequence[Document]) -> list[TokenisedDocument]:
        """Tokens of documents; ``scored`` marks those to be masked."""
        return [
            TokenisedDocument(tokens.ids, self._masked(tokens))
            for tokens in super().tokenise(documents)
        ]

    def _masked(self, tokens: TokenisedDocument) -> np.ndarray:
        digest = hashlib.blake2b(tokens.ids.astype("<i8").tobytes(), digest_size=8).digest()
        content = np.array([int.from_bytes(digest, "little")], np.uint64)
        numbers = uniforms(key_of(self.seed, _MASK_STREAM), content, len(tokens.ids))[0]
        # The smallest number of all is always taken, so that no document is left without a mask.
        least = np.min(numbers, initial=1.0, where=tokens.scored)
        masked: np.ndarray = tokens.scored & ((numbers < self.probability) | (numbers == least))
        return masked

    def assemble(self, documents: Sequence[Document], tokens: Sequence[TokenisedDocument]) -> Batch:
        """Inputs with the mask token wherever ``scored``; targets are the tokens themselves."""
        mask = self.bound_tokenizer.mask_token_id
        return text_batch(
            [np.where(document.scored, mask, document.ids) for document in tokens],
            [document.doc_id for document in documents],
            targets=pad_rows([document.ids for document in tokens]),
            scored=pad_rows([document.scored for document in tokens]),
        )
