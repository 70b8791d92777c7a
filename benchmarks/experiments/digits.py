"""MNIST (LeCun et al. 1998): read from the format that it was published in, and by a model."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.packages import MNIST, MissingPackageError

__all__ = ["Digits", "label_share", "log_likelihoods", "mnist_digits", "read_idx"]

# MD5 of each file, uncompressed.
_FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
_BYTES = 8


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures of handwritten digits.

    Attributes:
        pixels: uint8 ``[digit, row, column]``, ink 255.
        labels: What each is, int64 ``[digit]``.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        """How many there are."""
        return len(self.labels)

    def tensors(self, chosen: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Ink from 0 to 1, float32 ``[digit, pixel]``, and labels of the chosen ones, in order."""
        pixels = torch.from_numpy(self.pixels[chosen].astype(np.float32) / 255)
        return pixels.flatten(1), torch.from_numpy(self.labels[chosen])


def mnist_digits() -> dict[Literal["train", "test"], Digits]:
    """All of MNIST: 60,000 and 10,000 digits.

    Raises:
        MissingPackageError: The package's archive is not in the cache folder, or holds other files.
    """
    found = MNIST.files(lambda name: name.removeprefix("data/") in _FILES)
    for name, digest in _FILES.items():
        content = found.get(f"data/{name}", b"")
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != digest:
            raise MissingPackageError(f"an archive that holds MNIST's {name}: delete the one here")
    parts = {part: read_idx(found[f"data/{part}"]) for part in _FILES}
    return {
        "train": _digits(parts["train-images-idx3-ubyte"], parts["train-labels-idx1-ubyte"]),
        "test": _digits(parts["t10k-images-idx3-ubyte"], parts["t10k-labels-idx1-ubyte"]),
    }


def read_idx(content: bytes) -> NDArray[np.uint8]:
    """An array of bytes in the IDX format: a magic number, the sizes, and the entries.

    Raises:
        ValueError: It is something else.
    """
    if content[:2] != b"\0\0" or content[2] != _BYTES:
        raise ValueError("no IDX file of bytes")
    dimensions = content[3]
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@torch.no_grad()
def log_likelihoods(model: nn.Module, inputs: Tensor) -> Tensor:
    """Of every class, float64 ``[digit, class]``."""
    found: Tensor = model(inputs).double().log_softmax(1)
    return found


def label_share(labels: NDArray[np.int64], wanted: NDArray[np.int64]) -> NDArray[np.float64]:
    """How many of a query's documents have the label that is wanted, float64 ``[query]``.

    Args:
        labels: Of the documents, ``[query, place]``.
        wanted: ``[query]``.
    """
    share: NDArray[np.float64] = (labels == wanted[:, None]).mean(1)
    return share


def _digits(pixels: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Digits:
    return Digits(pixels, labels.astype(np.int64))
