"""UNets of a few thousand weights, with images and schedulers for them."""

from __future__ import annotations

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

STEPS = 50
WIDTH = 6


def scheduler(prediction_type: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(num_train_timesteps=STEPS, prediction_type=prediction_type)


def unet(**options: object) -> nn.Module:
    torch.manual_seed(6)
    model = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        attention_head_dim=4,
        **options,
    )
    return model.double().eval()


def conditioned_unet() -> nn.Module:
    torch.manual_seed(7)
    model = UNet2DConditionModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=2,
        attention_head_dim=2,
        cross_attention_dim=WIDTH,
    )
    return model.double().eval()


def images(count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(8)
    return torch.rand(count, 1, 8, 8, dtype=torch.float64, generator=generator) * 2 - 1
