"""Fits of EK-FAC in a process of their own: prints the most memory that each took, in bytes.

``python -m curvature.peak WIDTH LAYERS FOLDER MEMORY ...``; after the bounded fits one without a
bound. What is mapped from files is not counted: the system takes it back when it needs to.
"""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import torch
from torch import nn

from wherefrom.curvature.ekfac import EKFAC
from wherefrom.gradients.batches import stack_examples
from wherefrom.gradients.extractor import GradientExtractor
from wherefrom.gradients.fisher import PseudoGradients
from wherefrom.gradients.layers import select_layers
from wherefrom.gradients.objectives import Classification


def anonymous() -> int:
    """Bytes of this process that no file holds."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError("no RssAnon in /proc/self/status")
    return 1024 * int(found[1])


def source_of(width: int, layers: int) -> PseudoGradients:
    """Two documents, one a batch, and layers that are much larger than these."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(layers)))
    x = torch.randn(2, width)
    batches = [stack_examples(x[[i]], torch.tensor([i]), [f"d{i}"]) for i in range(2)]
    extractor = GradientExtractor(model, Classification(), select_layers(model, "linear"))
    return PseudoGradients(extractor, lambda: batches, "empirical")


def peak(source: PseudoGradients, memory: int | None, folder: Path) -> int:
    """What a fit took, above what was taken before it."""
    before, most, over = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.001):
            most = max(most, anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    EKFAC().fit(source, memory=memory, folder=folder)
    over.set()
    watcher.join()
    return most - before


if __name__ == "__main__":
    given = source_of(int(sys.argv[1]), int(sys.argv[2]))
    given.run(lambda pair: None)
    torch.linalg.eigh(torch.eye(64, dtype=torch.float64))
    for memory in (*map(int, sys.argv[4:]), None):
        print(peak(given, memory, Path(sys.argv[3])))
