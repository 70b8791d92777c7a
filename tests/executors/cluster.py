"""A Ray cluster on this machine, whose nodes can be killed."""

from __future__ import annotations

from typing import Any

NODE = {"num_cpus": 1, "object_store_memory": 1 << 27}


class Nodes:
    """A cluster whose nodes can be killed and replaced.

    Attributes:
        address: For drivers.
    """

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={**NODE, "include_dashboard": False}
        )
        self.address: str = self._cluster.address
        self._others: list[Any] = []
        self.refill()

    def refill(self) -> None:
        """Have three nodes again."""
        while len(self._others) < 2:
            self._others.append(self._cluster.add_node(wait=False, **NODE))
        self._cluster.wait_for_nodes()

    def kill_one(self) -> None:
        """End a node and all its processes, at once."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)

    def shutdown(self) -> None:
        self._cluster.shutdown()
