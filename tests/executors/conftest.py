"""A Ray cluster of three nodes on this machine."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Nodes

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def nodes() -> Iterator[Nodes]:
    """Three nodes of one processor each; drivers run on the first."""
    pytest.importorskip("ray")
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "executors")))
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves files of its own open.
        patch.setenv("PYTHONPATH", path)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)
        cluster = Nodes()
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield cluster
        finally:
            cluster.shutdown()
