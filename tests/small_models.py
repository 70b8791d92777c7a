"""Tiny float64 models of every supported kind, with documents for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wherefrom.gradients.batches import Batch, pad_tokens, stack_examples
from wherefrom.gradients.objectives import CausalLM, Classification, Objective
from wherefrom.gradients.tokens import TokenisedDocument

VOCABULARY = 23
SIDE = 5
"""Height and width of the images of :func:`image_case`."""


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


def bert() -> nn.Module:
    """A classifier of texts, two layers, three labels."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(10)
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
    )
    return _settled(BertForSequenceClassification(config))


def _settled(model: nn.Module) -> nn.Module:
    """Float64, evaluation mode, weights large enough for curvature to matter."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.double().eval()


def convolutions() -> nn.Module:
    """Strides, uneven kernels and padding, with and without bias, before a linear head."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, stride=2, padding=(1, 2), bias=True),
        nn.Tanh(),
        nn.Conv2d(3, 4, (2, 3), padding="same", padding_mode="circular", bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(48, 3),
    ).double()


def grouped_convolutions() -> nn.Module:
    """Two groups with dilation, and a depthwise convolution."""
    torch.manual_seed(6)
    return nn.Sequential(
        nn.Conv2d(1, 4, 2, bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 6, 2, stride=(1, 2), dilation=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 6, (3, 1), padding="same", groups=6),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d((2, 1)),
        nn.Flatten(),
        nn.Linear(12, 3, bias=False),
    ).double()


def with_lora(model: nn.Module, *adapters: str, **options: object) -> nn.Module:
    """The model with rank-2 adapters whose A and B are not zero; all of them are active."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():  # peft asks transformers for an attribute by its old name
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        wrapped = get_peft_model(model, LoraConfig(r=2, **options), adapters[0])
    for number, name in enumerate(adapters[1:], 1):
        wrapped.add_adapter(name, LoraConfig(r=2, lora_alpha=4 * number, **options))
    if len(adapters) > 1:
        wrapped.base_model.set_adapter(list(adapters))
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
                parameter.copy_(0.3 * noise)
    dtype = next(wrapped.parameters()).dtype
    return wrapped.to(dtype).eval()


def merged_lora() -> nn.Module:
    """Convolution and linear layer with two adapters each, one of them with a bias, merged."""
    options = {"target_modules": ["0", "5"], "lora_bias": True}
    model = with_lora(convolutions(), "first", "second", **options)
    model.merge_adapter()
    return model


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


def image_case(name: str, model: nn.Module, layers: str | tuple[str, ...] = "linear") -> Case:
    generator = torch.Generator().manual_seed(9)
    x = torch.randn(8, 1, SIDE, SIDE, dtype=torch.float64, generator=generator)
    y = torch.randint(0, 3, (8,), generator=generator)
    return Case(
        name,
        model,
        layers,
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
    "conv": lambda: image_case("conv", convolutions()),
    "conv-groups": lambda: image_case("conv-groups", grouped_convolutions()),
    "lora-llama": lambda: lm_case(
        "lora-llama", with_lora(llama(), "default", target_modules=["q_proj", "v_proj"]), "lora"
    ),
    "lora-merged": lambda: image_case("lora-merged", merged_lora(), "lora"),
    "gpt-neox-mlp": lambda: lm_case("gpt-neox-mlp", gpt_neox(), "mlp"),
}
