"""What every test stands on: no network, fixed seeds, one thread per process."""

from __future__ import annotations

import os
import random
import socket
import sys
from functools import cache
from typing import Any

# Read when numpy, torch and tokenizers are first imported, hence before those imports. Tests run in
# several processes (`make test`): threads on top of that would only fight for the cores.
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import hypothesis
import numpy as np
import psutil
import pytest

hypothesis.settings.register_profile(
    "wherefrom",
    max_examples=50,
    deadline=None,  # The machine may be busy: slowness is measured by benchmarks, not here.
    derandomize=True,
    print_blob=True,
)
hypothesis.settings.load_profile("wherefrom")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Starts each test from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@cache
def _own_addresses() -> frozenset[str]:
    """Addresses of this machine, by one of which the nodes of a Ray cluster on it are reached."""
    found = (one.address for group in psutil.net_if_addrs().values() for one in group)
    return frozenset({"127.0.0.1", "::1", *found})


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that reaches for another machine."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        internet = self.family in (socket.AF_INET, socket.AF_INET6)
        if internet and address[0] != "localhost" and address[0] not in _own_addresses():
            pytest.fail(f"the test tried to connect to {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)
