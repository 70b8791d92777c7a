from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builds import many_shards, require_same

import wherefrom as wf
from tiny_lm import save_tiny_lm, text_documents
from wherefrom.errors import ExecutionError
from wherefrom.indexer.executors import make_executor
from wherefrom.indexer.executors.torchrun import TorchrunExecutor, is_follower, serve
from wherefrom.store import state

pytestmark = pytest.mark.timeout(300)  # Starting ranks takes long on a busy machine.
HERE = Path(__file__).parent
OPTIONS = ["--bytes-per-document", "64", "--fit-documents", "120", "--threads", "1"]


def on_two_ranks(folder: Path, killed_at: str) -> subprocess.CompletedProcess[str]:
    """``wherefrom build`` of ``corpus.jsonl`` under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    build = ["build", "corpus.jsonl", "--model", "lm", "--index", "ranks", "--json", *OPTIONS]
    path = os.pathsep.join(map(str, (HERE.parents[1], HERE.parent, HERE)))
    return subprocess.run(
        [*launcher, str(HERE / "ranks.py"), killed_at, *build],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a corpus, and the index that one process builds of them."""
    folder = tmp_path_factory.mktemp("ranks")
    save_tiny_lm(folder / "lm")
    documents = [
        {"id": f"{i} {d.doc_id}", "text": d.text, **d.metadata}
        for i, d in enumerate(text_documents(20) * 7)
    ]
    corpus = "".join(f"{json.dumps(document)}\n" for document in documents)
    (folder / "corpus.jsonl").write_text(corpus)
    with pytest.MonkeyPatch.context() as patch:
        many_shards(patch)
        wf.build(
            folder / "lm",
            folder / "corpus.jsonl",
            folder / "serial",
            bytes_per_document=64,
            fit_documents=120,
            threads=1,
        ).close()
    return folder


def require_same_as_serial(home: Path, output: str) -> None:
    assert json.loads(output)["documents"] == 140  # Rank 0 alone prints.
    queries = [wf.Query("the union of states", " shall be"), wf.Query("gold", " silver")]
    require_same(home / "ranks", home / "serial", queries)
    shutil.rmtree(home / "ranks")


@pytest.mark.filterwarnings("ignore:scores correlate")
def test_two_ranks_build_what_one_process_builds(home: Path) -> None:
    built = on_two_ranks(home, "none")
    assert built.returncode == 0, built.stderr
    require_same_as_serial(home, built.stdout)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:scores correlate")
@pytest.mark.parametrize("phase", ["pass 2", "encoding"])
def test_a_rank_that_dies_ends_all_and_the_same_command_goes_on(home: Path, phase: str) -> None:
    died = on_two_ranks(home, phase)
    assert died.returncode == 1
    assert died.stdout == ""
    assert state(home / "ranks") == "unfinished"
    gone_on = on_two_ranks(home, "none")
    assert gone_on.returncode == 0, gone_on.stderr
    require_same_as_serial(home, gone_on.stdout)


def test_outside_of_torchrun_its_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert not is_follower()
    for join in (TorchrunExecutor, serve):
        with pytest.raises(ExecutionError, match=r"run 'torchrun --nproc-per-node 2 -m wherefrom"):
            join()
    assert make_executor(None, workers=None, threads=1).name == "serial"
