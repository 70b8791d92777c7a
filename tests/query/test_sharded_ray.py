"""Shards on a Ray cluster: one actor each, the same candidates, nodes that go away."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray")

from wherefrom.errors import IntegrityError
from wherefrom.query.scan import scan
from wherefrom.query.shard_workers import RayShards, sharded_scan
from wherefrom.query.sharded import ShardedScan
from wherefrom.records import Document
from wherefrom.store import DocumentTable, ScanCopy

COUNT, WIDTH = 300, 40
BOTH = (1, -1)

pytestmark = [
    pytest.mark.timeout(300),
    # Ray leaves files and sockets of its own open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def opener(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("index")
    vectors = np.random.default_rng(0).standard_t(4, (COUNT, WIDTH)).astype(np.float32)
    table = DocumentTable.create(folder, metadata={}, dimension=WIDTH, bits=32)
    table.append(
        [Document(f"d{i:03d}", f"text {i}") for i in range(COUNT)],
        vectors,
        norms=np.linalg.norm(vectors.astype(np.float64), axis=1),
        tokens=np.ones(COUNT, np.int64),
    )
    record = ScanCopy.build(table, folder / "scan")
    return partial(ScanCopy.open, folder / "scan", record, table.live)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one processor each on this machine, connected to."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False},
    )
    nodes.add_node(num_cpus=1)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def queries() -> Any:
    return np.random.default_rng(1).standard_normal((2, WIDTH)).astype(np.float32)


def assert_as_one_scan(searched: ShardedScan, copy: ScanCopy) -> None:
    for k in (3, COUNT):
        found, whole = searched(queries(), k, BOTH), scan(copy, queries(), k, BOTH)
        for one, other in zip(found, whole, strict=True):
            for ours, theirs in zip(one, other, strict=True):
                assert ours.ordinals.tolist() == theirs.ordinals.tolist()
                assert ours.estimate.tobytes() == theirs.estimate.tobytes()
                assert ours.error.tobytes() == theirs.error.tobytes()
                assert ours.rest == theirs.rest


def test_actors_find_what_one_scan_finds_and_a_lost_node_is_no_loss(
    opener: Any, cluster: Any
) -> None:
    searched = sharded_scan("ray", opener, COUNT, None)
    assert searched is not None
    workers = searched._workers
    assert isinstance(workers, RayShards)
    assert [len(rows) for rows in workers.shards] == [100, 100, 100]
    try:
        assert_as_one_scan(searched, opener())
        workers._ray.kill(workers._actors[1], no_restart=False)
        assert_as_one_scan(searched, opener())
        cluster.add_node(num_cpus=1)
        cluster.remove_node(next(iter(cluster.worker_nodes)))
        assert_as_one_scan(searched, opener())
    finally:
        searched.close()
    assert workers._ray.is_initialized(), "a cluster that was there before stays connected"


def test_an_actors_error_comes_as_itself(opener: Any, cluster: Any, tmp_path: Path) -> None:
    elsewhere = partial(opener.func, tmp_path, *opener.args[1:])
    with pytest.raises(IntegrityError, match="every node sees it") as caught:
        RayShards(elsewhere, COUNT, 1)
    assert "\n" not in str(caught.value)
