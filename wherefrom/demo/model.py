"""The demo's tokenizer and language model: trained from scratch within minutes on two cores.

The recipe was chosen by held-out loss among those that train in under three minutes there.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from wherefrom.errors import CorpusError, ModelError
from wherefrom.records import Document, Progress
from wherefrom.store.durable import fsync_tree, storage_errors

__all__ = [
    "MARKER",
    "RECIPE",
    "Marker",
    "Recipe",
    "load_or_train",
    "making_digest",
    "mean_loss",
    "new_model",
    "read_marker",
    "train_model",
    "train_tokenizer",
]

START_TOKEN = "<s>"
IGNORED = -100
MARKER = "demo-model.json"


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything, but for corpus and seed, that decides the trained weights.

    Attributes:
        vocabulary: Tokens of the byte-level BPE, start token included.
        context: Longest text in tokens, start token included.
        width: Width of the residual stream.
        feed_forward: Width of an MLP's hidden layer.
        layers: Transformer blocks.
        heads: Attention heads per block.
        epochs: Passes over the documents.
        batch_size: Documents per step.
        learning_rate: Peak of the cosine schedule.
        final_rate: Its end, as a share of the peak.
        warm_up: Share of the steps with a linearly rising rate.
        weight_decay: AdamW's, on matrices only.
        clip_norm: Largest norm of a step's gradient.
    """

    vocabulary: int = 4096
    context: int = 256
    width: int = 128
    feed_forward: int = 352
    layers: int = 4
    heads: int = 4
    epochs: int = 3
    batch_size: int = 8
    learning_rate: float = 3e-3
    final_rate: float = 0.03
    warm_up: float = 0.05
    weight_decay: float = 0.1
    clip_norm: float = 1.0


RECIPE = Recipe()


@dataclass(frozen=True, slots=True)
class Marker:
    """What a finished model's folder says of its making.

    Attributes:
        digest: Of documents, seed and recipe; see :func:`making_digest`.
        seed: Of first weights and batches.
        recipe: Sizes and schedule.
        documents: How many it was trained on; ``None`` where it was not written down.
    """

    digest: str
    seed: int
    recipe: Recipe
    documents: int | None = None


def train_tokenizer(
    documents: Sequence[Document], recipe: Recipe = RECIPE
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE that puts a start token before every text.

    Thanks to the start token the first word of a text is scored like all others.

    Args:
        documents: Texts to learn merges from.
        recipe: Its ``vocabulary`` and ``context`` are used.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary,
        special_tokens=[START_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    start = (START_TOKEN, tokenizer.token_to_id(START_TOKEN))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START_TOKEN} $A", special_tokens=[start]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=START_TOKEN, model_max_length=recipe.context
    )


def train_model(
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    progress: Progress,
    recipe: Recipe = RECIPE,
    members: NDArray[np.bool_] | None = None,
) -> LlamaForCausalLM:
    """Trains a Llama-style causal language model from scratch.

    The same arguments give the same bits on the same machine; the caller's random state is left
    as it was.

    Args:
        documents: Training texts; each is one sequence, scored from its first word.
        tokenizer: Puts a start token before each text.
        seed: Decides the first weights and the order of the batches.
        progress: Called after every step.
        recipe: Sizes and schedule.
        members: Which of the documents to train on, ``[document]``; all by default. They come in
            the order that all documents have with that seed, so that models of two subsets differ
            by their members and as little as possible by chance.

    Returns:
        The model, in evaluation mode.

    Raises:
        CorpusError: There are no documents, or one is longer than the context.
        ModelError: The loss became infinite or NaN.
    """
    sequences = _encode(documents, tokenizer, recipe.context)
    generator = torch.Generator().manual_seed(seed)
    model = new_model(len(tokenizer), recipe, seed)
    kept = np.ones(len(sequences), np.bool_) if members is None else members
    steps = recipe.epochs * math.ceil(int(kept.sum()) / recipe.batch_size)
    optimizer = _new_optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps, recipe))
    model.train()
    step = 0
    for _ in range(recipe.epochs):
        for batch in _shuffled_batches(sequences, kept, recipe.batch_size, generator):
            loss = _token_losses(model, batch).mean()
            if not torch.isfinite(loss):
                raise ModelError(
                    f"the training loss became {loss.item()} at step {step + 1} of {steps}; "
                    f"train with a learning_rate below {recipe.learning_rate}"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
            optimizer.step()
            schedule.step()
            step += 1
            progress("train model", step, steps)
    model.eval()  # type: ignore[no-untyped-call]
    return model


@torch.no_grad()
def mean_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: Sequence[Document]
) -> float:
    """The mean loss of the documents' tokens, the start token not counted.

    Returns:
        Nats per token.

    Raises:
        CorpusError: There are no documents, or one is longer than the context.
    """
    sequences = _encode(documents, tokenizer, model.config.max_position_embeddings)
    ordered = sorted(sequences, key=len)
    losses = [
        _token_losses(model, ordered[first : first + RECIPE.batch_size]).double()
        for first in range(0, len(ordered), RECIPE.batch_size)
    ]
    return torch.cat(losses).mean().item()


def load_or_train(
    directory: Path,
    documents: Sequence[Document],
    *,
    seed: int,
    progress: Progress,
    recipe: Recipe = RECIPE,
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Loads the model kept in ``directory``, or trains it and keeps it there.

    A kept model is used only if it was trained to the end with the same recipe, seed and
    documents; one of other making is replaced.

    Args:
        directory: Folder in the layout of ``save_pretrained``; its parents are made.
        documents: Training texts.
        seed: Decides the first weights and the order of the batches.
        progress: Called after every step of training, and not at all when loading.
        recipe: Sizes and schedule.

    Returns:
        Model, in evaluation mode, and tokenizer, both as read from the folder.

    Raises:
        CorpusError: There are no documents, or one is longer than the context.
        ModelError: The folder holds something else, or training failed.
        StorageError: The disk refused the model.
    """
    digest = making_digest(documents, seed, recipe)
    if not directory.exists() or _kept(directory)["digest"] != digest:
        # The finished folder appears in one rename, so an interrupted training leaves none.
        partial = directory.with_name(directory.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        tokenizer = train_tokenizer(documents, recipe)
        model = train_model(documents, tokenizer, seed=seed, progress=progress, recipe=recipe)
        marker = asdict(Marker(digest, seed, recipe, len(documents)))
        with storage_errors(directory):
            partial.mkdir(parents=True)
            tokenizer.save_pretrained(partial)
            model.save_pretrained(partial)
            (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n", encoding="utf-8")
            fsync_tree(partial)
            if directory.exists():
                shutil.rmtree(directory)
            partial.rename(directory)
    model = LlamaForCausalLM.from_pretrained(directory, local_files_only=True)
    return model, PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)


def read_marker(directory: Path) -> Marker:
    """How the finished model in ``directory`` was made.

    Raises:
        ModelError: There is none, or a version with other recipes made it.
    """
    kept = _kept(directory)
    try:
        recipe = Recipe(**kept["recipe"])
        return Marker(str(kept["digest"]), int(kept["seed"]), recipe, kept.get("documents"))
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{directory} was made by a recipe of another version ({MARKER}: "
            f"{type(error).__name__}); run the demo again"
        ) from error


def _kept(directory: Path) -> Any:
    """The marker as it was written."""
    try:
        kept = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        kept["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{directory} exists and holds no finished demo model ({MARKER}: "
            f"{type(error).__name__}); remove it or name another folder"
        ) from error
    return kept


def making_digest(documents: Sequence[Document], seed: int, recipe: Recipe) -> str:
    """SHA-256 of all that a model is made from: two of the same digest are the same."""
    digest = hashlib.sha256(json.dumps([seed, asdict(recipe)]).encode())
    for document in documents:
        digest.update(json.dumps([document.doc_id, document.text]).encode())
    return digest.hexdigest()


def _encode(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerFast, context: int
) -> list[Tensor]:
    """The texts' tokens, start token first: int64 ``[token]`` each."""
    if not documents:
        raise CorpusError("no documents to train on or to score; hand over at least one")
    encodings = tokenizer([document.text for document in documents])["input_ids"]
    for document, tokens in zip(documents, encodings, strict=True):
        if len(tokens) > context:
            raise CorpusError(
                f"document {document.doc_id!r} has {len(tokens)} tokens, the model's context "
                f"{context}; cut it into shorter passages"
            )
    return [torch.tensor(tokens) for tokens in encodings]


def new_model(vocabulary: int, recipe: Recipe = RECIPE, seed: int = 0) -> LlamaForCausalLM:
    """An untrained model of the recipe's dimensions; leaves the caller's random state alone."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        max_position_embeddings=recipe.context,
        bos_token_id=0,
        eos_token_id=None,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def _new_optimizer(model: LlamaForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.99), fused=True)


def _rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine down to ``final_rate``, as a share of the peak."""
    rising = max(1, round(steps * recipe.warm_up))
    if step < rising:
        return (step + 1) / rising
    cosine = 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
    return recipe.final_rate + (1 - recipe.final_rate) * cosine


def _shuffled_batches(
    sequences: Sequence[Tensor],
    members: NDArray[np.bool_],
    batch_size: int,
    generator: torch.Generator,
) -> Iterator[list[Tensor]]:
    """One epoch; sequences of like length share a batch, which saves padding."""
    drawn = torch.randperm(len(sequences), generator=generator)
    order = drawn[torch.from_numpy(members)[drawn]].tolist()
    pool = 16 * batch_size
    batches = []
    for start in range(0, len(order), pool):
        like = sorted(order[start : start + pool], key=lambda place: len(sequences[place]))
        batches += [like[first : first + batch_size] for first in range(0, len(like), batch_size)]
    for number in torch.randperm(len(batches), generator=generator).tolist():
        yield [sequences[place] for place in batches[number]]


def _token_losses(model: LlamaForCausalLM, batch: Sequence[Tensor]) -> Tensor:
    """The losses of a batch's scored tokens in nats, ``[scored token]``.

    No attention mask is needed: padding stands at the right, where a causal model's scored
    positions cannot see it.
    """
    inputs = pad_sequence([tokens[:-1] for tokens in batch], batch_first=True)
    labels = pad_sequence([tokens[1:] for tokens in batch], batch_first=True, padding_value=IGNORED)
    logits = model(input_ids=inputs).logits.flatten(0, 1)
    losses = cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses[labels.flatten() != IGNORED]
