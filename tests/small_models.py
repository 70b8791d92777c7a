"""Tiny float64 models of every supported kind, with documents for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wherefrom.gradients.batches import Batch, pad_tokens, stack_examples
from wherefrom.gradients.objectives import CausalLM, Classification, Objective
from wherefrom.gradients.tokens import TokenisedDocument

VOCABULARY = 23


def mlp(bias: tuple[bool, bool, bool] = (True, False, True), inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 7, bias=bias[0]),
        nn.ReLU(inplace=inplace) if inplace else nn.Tanh(),
        nn.Linear(7, 6, bias=bias[1]),
        nn.Tanh(),
        nn.Linear(6, 3, bias=bias[2]),
    ).double()


class Shared(nn.Module):
    """One module applied twice, and two modules tied to one weight."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.Linear(5, 5)
        self.left = nn.Linear(5, 4, bias=False)
        self.right = nn.Linear(5, 4, bias=False)
        self.right.weight = self.left.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.head(torch.tanh(self.left(h) + self.right(torch.sin(h))))


def llama(**overrides: object) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        intermediate_size=10,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=32,
        **overrides,
    )
    return _settled(LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(3)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=12,
        n_layer=2,
        n_head=3,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _settled(GPT2LMHeadModel(config))


def gpt_neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(4)
    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=12,
        intermediate_size=14,
        num_hidden_layers=2,
        num_attention_heads=3,
        max_position_embeddings=32,
    )
    return _settled(GPTNeoXForCausalLM(config))


def _settled(model: nn.Module) -> nn.Module:
    """Float64, evaluation mode, weights large enough for curvature to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def token_documents(count: int = 6, seed: int = 0) -> list[TokenisedDocument]:
    """Documents of different lengths; some score only their end, as completions do."""
    rng = np.random.default_rng(seed)
    documents = []
    for i in range(count):
        n = int(rng.integers(3, 10))
        scored = np.ones(n, bool)
        scored[0] = False
        if i % 3 == 1:
            scored[: n // 2] = False
        documents.append(TokenisedDocument(rng.integers(0, VOCABULARY, n), scored))
    return documents


@dataclass(frozen=True)
class Case:
    """A model, its layers and its documents, one batch or one at a time."""

    name: str
    model: nn.Module
    layers: str | tuple[str, ...]
    objective: Objective
    batch: Callable[[list[int]], Batch]
    count: int

    def score(self, document: int, targets: Tensor | None = None) -> Callable[[nn.Module], Tensor]:
        """Log-likelihood of one document, unpadded, as a function of the model."""
        single = self.batch([document])

        def scalar(model: nn.Module) -> Tensor:
            outputs = self.objective.outputs(model, single)
            wanted = single.targets if targets is None else targets
            logp = torch.log_softmax(outputs, -1).gather(-1, wanted.unsqueeze(-1)).squeeze(-1)
            if single.scored is not None:
                logp = logp[single.scored]
            return logp.sum()

        return scalar


def classifier_case(name: str, model: nn.Module, inputs: int = 5, classes: int = 3) -> Case:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(8, inputs, dtype=torch.float64, generator=generator)
    y = torch.randint(0, classes, (8,), generator=generator)
    return Case(
        name,
        model,
        "linear",
        Classification(),
        lambda rows: stack_examples(x[rows], y[rows], [f"d{i}" for i in rows]),
        8,
    )


def lm_case(name: str, model: nn.Module, layers: str | tuple[str, ...]) -> Case:
    documents = token_documents()
    return Case(
        name,
        model,
        layers,
        CausalLM(),
        lambda rows: pad_tokens([documents[i] for i in rows], [f"d{i}" for i in rows]),
        6,
    )


CASES: dict[str, Callable[[], Case]] = {
    "mlp-bias": lambda: classifier_case("mlp-bias", mlp((True, True, True))),
    "mlp-no-bias": lambda: classifier_case("mlp-no-bias", mlp((False, False, False))),
    "mlp-mixed-inplace": lambda: classifier_case("mlp-mixed", mlp(inplace=True)),
    "shared": lambda: classifier_case("shared", Shared().double()),
    "llama-mlp": lambda: lm_case("llama-mlp", llama(), "mlp"),
    "llama-attention": lambda: lm_case("llama-attention", llama(), "attention"),
    "gpt2-linear": lambda: lm_case("gpt2-linear", gpt2(), "linear"),
    "gpt-neox-mlp": lambda: lm_case("gpt-neox-mlp", gpt_neox(), "mlp"),
}
