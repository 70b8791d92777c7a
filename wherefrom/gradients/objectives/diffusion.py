"""Diffusion models: how well noise is predicted, over draws that belong to each image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from wherefrom.errors import CurvatureError, MissingExtraError, ModelError
from wherefrom.gradients.batches import Batch
from wherefrom.gradients.counter import key_of, normals, uniforms
from wherefrom.gradients.objectives.base import JSON
from wherefrom.gradients.objectives.gaussian import Gaussian

__all__ = ["Condition", "Diffusion"]

Condition = Literal["none", "class_labels", "encoder_hidden_states"]
"""The argument of the model that a document's condition is given as."""

_TIME_STREAM = 5
_NOISE_STREAM = 6


class Diffusion(Gaussian):
    """Denoising with a ``diffusers`` UNet, averaged over seeded timesteps and noises.

    Documents are ``(images, conditions)``: images ``[doc, channel, height, width]`` as the model
    was trained on them (latents for a latent model), and a condition each, or anything of that
    length, as zeros, for an unconditional model. A document's log-likelihood is

        -(1/draws) sum_k |target_k - model(x_k, t_k)|^2 / 2

    with ``x_k = add_noise(image, noise_k, t_k)`` and the target that the scheduler's
    ``prediction_type`` names. That is the training loss with its sign turned, **summed** over the
    entries of the image: the log-likelihood, up to a constant, of targets with unit Gaussian noise
    around the predictions, and not of the image itself; scores are in nats of it.

    The k-th timestep is drawn from the k-th of ``draws`` equal parts of the schedule. Timesteps and
    noises are a function of the seed and the image's own bytes: an image has one gradient, as
    document and as question, alone or in any batch, and copies of it tie.

    As a mean over draws, the log-likelihood's Gauss-Newton matrix is ``(1/draws) sum_k J_k^T J_k``.

    Args:
        scheduler: The ``diffusers`` scheduler of the training, one with ``alphas_cumprod``
            (``DDPMScheduler``, ``DDIMScheduler``, ...).
        draws: Pairs of timestep and noise for each image.
        seed: Of the draws.
        condition: How the model takes the condition; ``none``: it takes none.

    Raises:
        ModelError: An argument is out of range, or the scheduler is for sampling only.
    """

    kind = "diffusion"

    def __init__(
        self, scheduler: Any, *, draws: int = 8, seed: int = 0, condition: Condition = "none"
    ) -> None:
        if draws < 1:
            raise ModelError(f"draws={draws} is not allowed; give at least 1")
        if condition not in get_args(Condition):
            raise ModelError(
                f"condition={condition!r} is unknown; choose "
                f"{', '.join(map(repr, get_args(Condition)))}"
            )
        # Those with sigmas scale x by other rules, or want their steps set before each use.
        if not hasattr(scheduler, "alphas_cumprod") or hasattr(scheduler, "sigmas"):
            raise ModelError(
                f"{type(scheduler).__name__} does not tell how training noise was added; give that "
                "of the training, as DDPMScheduler.from_config(scheduler.config)"
            )
        prediction = scheduler.config.prediction_type
        if prediction not in ("epsilon", "v_prediction", "sample"):
            raise ModelError(
                f"prediction_type={prediction!r} is not supported; it may be 'epsilon', "
                "'v_prediction' or 'sample'"
            )
        if prediction == "v_prediction" and not hasattr(scheduler, "get_velocity"):
            raise ModelError(
                f"{type(scheduler).__name__} has no get_velocity; give that of the training, as "
                "DDPMScheduler.from_config(scheduler.config)"
            )
        self.scheduler = scheduler
        self.copies = draws
        self.seed = seed
        self.condition = condition
        # A mean over K unit Gaussians is, up to a constant, one of variance K.
        self.variance = float(draws)

    def options(self) -> Mapping[str, JSON]:
        """Draws, seed, condition, and the scheduler's class and configuration."""
        config = {
            name: np.asarray(value).tolist() if isinstance(value, np.ndarray) else value
            for name, value in sorted(self.scheduler.config.items())
            if not name.startswith("_")
        }
        return {
            "scheduler": type(self.scheduler).__name__,
            "config": config,
            "draws": self.copies,
            "seed": self.seed,
            "condition": self.condition,
        }

    @classmethod
    def from_options(cls, *, scheduler: str, config: dict[str, JSON], **options: Any) -> Diffusion:
        """The objective that :meth:`options` describes.

        Raises:
            MissingExtraError: ``diffusers`` is not installed.
            ModelError: It has no such scheduler.
        """
        try:
            diffusers: Any = import_module("diffusers")
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "the index was built with a scheduler of `diffusers`, which is not installed: "
                "pip install 'wherefrom[diffusion]'"
            ) from error
        kind: Any = getattr(diffusers, scheduler, None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
            raise ModelError(
                f"diffusers {diffusers.__version__} has no scheduler {scheduler!r}; open the index "
                "with objective=wf.Diffusion(scheduler, ...)"
            )
        made: Any = kind
        return cls(made.from_config(config), **options)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Predictions ``[doc, draw, channel, height, width]``."""
        images, noise, times = self._draws(batch)
        noisy = self.scheduler.add_noise(images, noise, times)
        try:
            result = model(noisy, times, **self._conditions(batch))
        except TypeError as error:
            raise ModelError(
                f"{type(model).__name__} cannot be called as a diffusers UNet with "
                f"condition={self.condition!r} ({error}); choose another condition"
            ) from error
        predictions = getattr(result, "sample", None)
        if not isinstance(predictions, Tensor) or predictions.shape != noisy.shape:
            given = (
                f"shape {list(predictions.shape)}"
                if isinstance(predictions, Tensor)
                else type(result).__name__
            )
            raise ModelError(
                f"{type(model).__name__} returned {given} for noisy images of shape "
                f"{list(noisy.shape)}; diffusion wants a diffusers UNet whose sample has the shape "
                "of its input (no learned variance)"
            )
        return predictions.reshape(len(batch), self.copies, *predictions.shape[1:])

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Batch) -> Tensor:
        """``-(1/draws) sum_k |target_k - prediction_k|^2 / 2``, ``[doc]``; ``targets`` unused."""
        images, noise, times = self._draws(batch)
        prediction = self.scheduler.config.prediction_type
        if prediction == "epsilon":
            wanted = noise
        elif prediction == "sample":
            wanted = images
        else:
            wanted = self.scheduler.get_velocity(images, noise, times)
        predictions = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        residuals = (wanted.reshape(outputs.shape) - predictions).reshape(len(batch), -1)
        return residuals.square().sum(1) * (-0.5 / self.copies)

    def expected_terms(self, outputs: Tensor) -> int | None:
        """Not defined: one term for each pixel of each draw."""
        return None

    def expected_gradients(self, outputs: Tensor, batch: Batch) -> Iterator[Tensor]:
        """Refused.

        Raises:
            CurvatureError: Always; the message says why.
        """
        raise CurvatureError(
            f"fisher='expected' would need a backward pass for each of {outputs[0].numel()} "
            "entries of a document's predictions; use fisher='sampled'"
        )

    def _draws(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images and noises ``[doc x draw, ...]`` and timesteps ``[doc x draw]``."""
        images = batch.inputs
        if not images.dtype.is_floating_point:
            raise ModelError(
                f"images are of type {images.dtype}; give floating-point numbers scaled as in "
                "training, often to [-1, 1]"
            )
        keys = _content_keys(images)
        share = np.arange(self.copies) + uniforms(
            key_of(self.seed, _TIME_STREAM), keys, self.copies
        )
        steps = int(self.scheduler.config.num_train_timesteps)
        times = np.minimum(np.floor(share / self.copies * steps), steps - 1).astype(np.int64)
        numbers = normals(key_of(self.seed, _NOISE_STREAM), keys, self.copies * images[0].numel())
        repeated = images.repeat_interleave(self.copies, 0)
        noise = torch.from_numpy(numbers).to(images).reshape(repeated.shape)
        return repeated, noise, torch.from_numpy(times.reshape(-1)).to(images.device)

    def _conditions(self, batch: Batch) -> dict[str, Tensor]:
        if self.condition == "none":
            return {}
        return {self.condition: batch.targets.repeat_interleave(self.copies, 0)}


def _content_keys(images: Tensor) -> np.ndarray:
    """uint64 ``[doc]``, from the images' values, whatever their precision and device."""
    rows = images.detach().cpu().double().contiguous().numpy()
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.array([int.from_bytes(digest, "little") for digest in digests], np.uint64)
