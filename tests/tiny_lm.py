"""A language model of a few thousand weights with its tokenizer and corpus."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import dense
from wherefrom.records import Document

CONTEXT = 96
WORDS = [
    "the",
    "union",
    "of",
    "states",
    "shall",
    "be",
    "preserved",
    "by",
    "law",
    "and",
    "war",
    "or",
    "peace",
    "will",
    "not",
    "end",
    "it",
    "now",
    "gold",
    "silver",
    "trade",
    "ships",
    "army",
    "congress",
    "people",
    "president",
    "year",
    "great",
    "nation",
    "free",
]
PARTIES = ("Whig", "Democratic", None, "d'Or")
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE that adds no special tokens."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )


def tiny_llama(seed: int = 2) -> nn.Module:
    """Float64, with weights large enough for curvature to matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=330,
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return model.double().eval()


def text_documents(count: int = 20, seed: int = 0) -> list[Document]:
    """Texts of many lengths, numbers 1 and 6 the same; ``count`` is no multiple of 7."""
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, int(rng.integers(2, 12)))) for _ in range(count)]
    texts[6] = texts[1]
    return [
        Document(
            f"speech {(7 * i) % count:02d}",
            text,
            {"year": None if i % 6 == 4 else 1790 + 10 * i, "party": PARTIES[i % 4]},
        )
        for i, text in enumerate(texts)
    ]


def token_log_likelihood(
    ids: list[int], scored: Sequence[int], targets: Tensor | None = None
) -> dense.Score:
    """Summed log-likelihood of the tokens at the positions ``scored``, one text by itself.

    ``targets``, one for each token but the first, take the place of the text's own tokens.
    """
    tokens = torch.tensor([ids])
    wanted = tokens[0, 1:] if targets is None else targets
    predictions = torch.tensor(list(scored)) - 1

    def score(model: nn.Module) -> Tensor:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits[0]
        nats = torch.log_softmax(logits, -1).gather(1, wanted[:, None])[:, 0]
        return nats[predictions].sum()

    return score


def save_tiny_lm(folder: Path, seed: int = 2) -> Path:
    """The tiny model in float32 and its tokenizer, saved as Hugging Face models are."""
    tiny_llama(seed).float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
