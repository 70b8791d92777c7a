"""A small text-to-image diffusion model: trained whole, tuned by LoRA, and asked for pictures.

A UNet of ``diffusers`` predicts the noise in pictures of 16 x 16 pixels and attends to a caption, a
fixed random vector for each word. It reads pictures folded: 8 x 8 places with the colours of 2 x 2
pixels each. Pictures are drawn by DDIM (Song et al. 2021) with classifier-free guidance (Ho and
Salimans 2022), for which a tenth of all captions is left out in training.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss, pixel_shuffle, pixel_unshuffle

__all__ = [
    "SIZE",
    "adapted",
    "caption_vectors",
    "draw",
    "folded",
    "new_model",
    "noise_schedule",
    "train",
    "unfolded",
]

SIZE = 16
_FOLD = 2
_WORDS = 6
_WIDTH = 48
_TIMES = 200
_DRAWING_STEPS = 40
_GUIDANCE = 2.0
_LEFT_OUT = 0.1
_BATCH = 32


def noise_schedule() -> Any:
    """Of training, and of influence."""
    return DDPMScheduler(  # type: ignore[no-untyped-call]
        num_train_timesteps=_TIMES, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon"
    )


def folded(pixels: NDArray[np.float64]) -> Tensor:
    """Pictures as the model reads them, float32 ``[picture, 12, 8, 8]`` from -1 to 1.

    Args:
        pixels: ``[picture, row, column, colour]`` from 0 to 1.
    """
    pictures = torch.from_numpy(pixels).float().permute(0, 3, 1, 2) * 2 - 1
    return pixel_unshuffle(pictures, _FOLD)


def unfolded(pictures: Tensor) -> NDArray[np.float64]:
    """The reverse of :func:`folded`."""
    pixels: NDArray[np.float64] = (
        pixel_shuffle(pictures, _FOLD).permute(0, 2, 3, 1).double().numpy()
    )
    return (pixels + 1) / 2


def caption_vectors(captions: Sequence[Sequence[str]]) -> Tensor:
    """Captions as the model reads them, float32 ``[caption, word, width]``, zero after the last.

    A word's vector is drawn with the word itself as the seed.
    """
    vectors = torch.zeros(len(captions), _WORDS, _WIDTH)
    for row, words in zip(vectors, captions, strict=True):
        for place, word in enumerate(words):
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:7], "big")
            row[place] = torch.randn(_WIDTH, generator=torch.Generator().manual_seed(seed))
    return vectors


def new_model(seed: int) -> nn.Module:
    """An untrained one."""
    torch.manual_seed(seed)
    model: Any = UNet2DConditionModel(  # type: ignore[no-untyped-call]
        sample_size=SIZE // _FOLD,
        in_channels=3 * _FOLD**2,
        out_channels=3 * _FOLD**2,
        layers_per_block=1,
        block_out_channels=(48, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        norm_num_groups=8,
        attention_head_dim=2,
        cross_attention_dim=_WIDTH,
    )
    untrained: nn.Module = model
    return untrained


def train(
    model: nn.Module, pictures: Tensor, captions: Tensor, *, steps: int, rate: float, seed: int
) -> float:
    """Train whatever wants a gradient, in place, by Adam and a cosine down to zero.

    Args:
        model: Left in evaluation mode.
        pictures: From :func:`folded`.
        captions: From :func:`caption_vectors`.
        steps: Batches of 32.
        rate: At the start.
        seed: Of order, times, noise and of which captions are left out.

    Returns:
        Mean squared error over the last tenth of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    schedule = noise_schedule()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=rate, fused=True)
    cooling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = torch.empty(0, dtype=torch.int64)
    late = 0.0
    model.train()
    for step in range(steps):
        while len(order) < _BATCH:
            order = torch.cat([order, torch.randperm(len(pictures), generator=generator)])
        chosen, order = order[:_BATCH], order[_BATCH:]
        times = torch.randint(_TIMES, (_BATCH,), generator=generator)
        noise = torch.randn(_BATCH, *pictures.shape[1:], generator=generator)
        read = torch.rand(_BATCH, 1, 1, generator=generator) >= _LEFT_OUT
        noisy = schedule.add_noise(pictures[chosen], noise, times)
        predicted = model(noisy, times, encoder_hidden_states=captions[chosen] * read).sample
        loss = mse_loss(predicted, noise)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        cooling.step()
        if step >= steps - math.ceil(steps / 10):
            late += loss.item() / math.ceil(steps / 10)
    model.eval()
    return late


def adapted(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """The model with a new LoRA adapter on the linear layers of its attention blocks."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wanted = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"],
    )
    model_with_adapter: nn.Module = get_peft_model(model, wanted)
    return model_with_adapter


@torch.no_grad()
def draw(model: nn.Module, captions: Tensor, seed: int) -> Tensor:
    """Pictures for captions, folded."""
    scheduler: Any = DDIMScheduler
    sampler = scheduler.from_config(noise_schedule().config)
    sampler.set_timesteps(_DRAWING_STEPS)
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(
        len(captions), 3 * _FOLD**2, SIZE // _FOLD, SIZE // _FOLD, generator=generator
    )
    nothing = torch.zeros_like(captions)
    for time in sampler.timesteps:
        told = model(pictures, time, encoder_hidden_states=captions).sample
        untold = model(pictures, time, encoder_hidden_states=nothing).sample
        guided = untold + _GUIDANCE * (told - untold)
        pictures = sampler.step(guided, time, pictures).prev_sample
    return pictures.clamp(-1, 1)
