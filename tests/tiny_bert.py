"""BERTs of a few thousand weights with their tokenizer: masked tokens, and classes of texts."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from wherefrom.records import Document

CONTEXT = 24
WORDS = [
    "gold",
    "silver",
    "trade",
    "ships",
    "army",
    "law",
    "war",
    "peace",
    "union",
    "states",
    "nation",
    "year",
    "great",
    "free",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LABELS = ("calm", "angry", "merry")
NAMES = {"id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
VOCABULARY = len(SPECIAL) + len(WORDS)


def bert_tokenizer(**options: object) -> PreTrainedTokenizerFast:
    """One token a word, ``[CLS]`` before and ``[SEP]`` after each text."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**names, **options})


def masked_bert() -> nn.Module:
    return _settled(BertForMaskedLM(_config()))


def bert_classifier(**options: object) -> nn.Module:
    return _settled(BertForSequenceClassification(_config(**{**NAMES, **options})))


def llama_classifier() -> nn.Module:
    """A decoder, which classifies by a text's last token."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=1,
        num_attention_heads=3,
        max_position_embeddings=CONTEXT,
        **NAMES,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _settled(LlamaForSequenceClassification(config))


def labelled_documents(count: int = 8) -> list[Document]:
    """Texts of many lengths; some labels are names, some numbers."""
    rng = np.random.default_rng(1)
    labels = [LABELS[i % 3] if i % 2 else i % 3 for i in range(count)]
    return [
        Document(f"d{i}", " ".join(rng.choice(WORDS, 1 + 3 * (i % 5))), {"mood": label})
        for i, label in enumerate(labels)
    ]


def _config(**options: object) -> BertConfig:
    torch.manual_seed(4)
    return BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        max_position_embeddings=CONTEXT,
        **options,
    )


def _settled(model: nn.Module) -> nn.Module:
    """Float64, evaluation mode, weights large enough for a prediction to depend on its text."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.5)
    return model.double().eval()
