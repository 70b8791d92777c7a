"""Running out of memory: telling it from other failures, so that a smaller batch can be tried."""

from __future__ import annotations

import torch

from wherefrom.errors import ModelError

__all__ = ["no_room", "out_of_memory"]

_SIGNS = (
    "out of memory",  # CUDA, MPS, XPU
    "can't allocate memory",  # torch's allocator on the CPU
    "not enough memory",  # the same on Windows
    "bad_alloc",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that memory ran out.

    Args:
        error: Of a model, or :class:`~wherefrom.errors.ModelError` over one.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (MemoryError, torch.OutOfMemoryError)):
            return True
        if isinstance(cause, RuntimeError) and any(sign in str(cause) for sign in _SIGNS):
            return True
        cause = cause.__cause__
    return False


def no_room(documents: int) -> ModelError:
    """What to raise, from the error that said so, when a batch does not fit into memory.

    Args:
        documents: In the batch.
    """
    return ModelError(
        f"memory ran out on a batch of {documents} documents; give a smaller batch_size or "
        "context, or fewer layers"
    )
