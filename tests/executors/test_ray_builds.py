from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from builds import SlowPerceptron, examples, many_shards, require_same
from cluster import Nodes

import wherefrom as wf
from wherefrom.errors import ExecutionError

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


@pytest.mark.slow
def test_an_append_outlives_a_node(
    nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wherefrom.maintenance.append.encode_shard_size", lambda dimension: 8)
    inputs, targets = examples(230)
    for name in ("ray", "serial"):
        first = (inputs[:150], targets[:150])
        wf.build(SlowPerceptron(), first, tmp_path / name, encoder="none", threads=1).close()
    killed = []

    def kill(now: str, done: int, total: int) -> None:
        if now.startswith("encoding") and 0 < done < total and not killed:
            killed.append(now)
            nodes.kill_one()

    more = (inputs[150:], targets[150:])
    with wf.open(tmp_path / "serial", model=SlowPerceptron()) as index:
        index.append(more, threads=1)
    try:
        with wf.open(tmp_path / "ray", model=SlowPerceptron(pause=0.3)) as index:
            change = index.append(more, executor="ray", threads=1, progress=kill)
    finally:
        nodes.refill()
    assert killed
    assert change.added == 80
    queries = (torch.randn(3, 6), torch.tensor([0, 1, 2]))
    with (
        wf.open(tmp_path / "ray", model=SlowPerceptron()) as index,
        wf.open(tmp_path / "serial", model=SlowPerceptron()) as expected,
    ):
        assert index.doc_ids() == expected.doc_ids()
        assert index.vectors().tobytes() == expected.vectors().tobytes()
        assert index.scores(queries).tobytes() == expected.scores(queries).tobytes()


def test_a_cluster_that_does_not_answer_is_an_error_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray itself tries for minutes."""
    pytest.importorskip("ray")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(ExecutionError, match=f"cannot reach the Ray cluster at 127.0.0.1:{port}"):
        wf.build(SlowPerceptron(), examples(), tmp_path / "i", encoder="none", executor="ray")
