"""Diffusion under the same times and noises for every picture.

``wf.Diffusion`` draws for each picture anew, so that products of gradients of two pictures are
unbiased estimates of products of their means over noises. Shared draws are not: what two gradients
owe to the noise they have in common adds to their product.
"""

from __future__ import annotations

import torch
from torch import Tensor

import wherefrom as wf
from wherefrom.gradients.batches import Batch

__all__ = ["SharedDraws"]


class SharedDraws(wf.Diffusion):
    """The k-th draw of one picture is the k-th of all."""

    def _draws(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images and noises ``[doc x draw, ...]`` and timesteps ``[doc x draw]``."""
        images = batch.inputs
        generator = torch.Generator().manual_seed(self.seed)
        steps = int(self.scheduler.config.num_train_timesteps)
        part = torch.rand(self.copies, generator=generator)
        times = (torch.arange(self.copies) + part) / self.copies * steps
        noise = torch.randn(self.copies, *images.shape[1:], generator=generator)
        return (
            images.repeat_interleave(self.copies, 0),
            torch.cat([noise.to(images)] * len(batch)),
            times.long().clamp(max=steps - 1).repeat(len(batch)).to(images.device),
        )
