from __future__ import annotations

from pathlib import Path

import pytest
import torch
from builds import SlowPerceptron, examples, many_shards, require_same
from cluster import Nodes

import wherefrom as wf

pytestmark = [
    pytest.mark.timeout(300),  # Starting nodes takes long on a busy machine.
    # Ray leaves sockets and files of its own open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:scores correlate"),
]


@pytest.mark.parametrize(
    "phase", ["encoding the documents", pytest.param("fitting", marks=pytest.mark.slow)]
)
def test_a_node_killed_in_the_middle_changes_nothing(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    many_shards(monkeypatch)
    documents = examples()
    wf.build(SlowPerceptron(), documents, tmp_path / "serial", encoder="none", threads=1).close()
    killed = []

    def kill(now: str, done: int, total: int) -> None:
        if now.startswith(phase) and 0 < done < total and not killed:
            killed.append(now)
            nodes.kill_one()

    try:
        wf.build(
            SlowPerceptron(pause=0.3),
            documents,
            tmp_path / "ray",
            encoder="none",
            executor="ray",
            threads=1,
            progress=kill,
        ).close()
    finally:
        nodes.refill()
    assert killed
    queries = (torch.randn(3, 6), torch.tensor([0, 1, 2]))
    require_same(tmp_path / "ray", tmp_path / "serial", queries, model=SlowPerceptron())
