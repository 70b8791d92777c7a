from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Nodes
from toy import ToyJob, lines, tasks, toy_job

from wherefrom.cluster import _Stdout
from wherefrom.errors import CurvatureError, ExecutionError, MissingExtraError, StorageError
from wherefrom.indexer.executors import make_executor
from wherefrom.indexer.executors import nodes as machines
from wherefrom.indexer.executors import ray as ray_module
from wherefrom.indexer.executors.base import Outcome
from wherefrom.indexer.executors.ray import RayExecutor
from wherefrom.indexer.job import Job, ModelChoice

pytestmark = [
    pytest.mark.timeout(300),  # Starting nodes takes long on a busy machine.
    # Ray leaves sockets and files of its own open.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def executor(nodes: Nodes) -> Iterator[RayExecutor]:
    made = RayExecutor(None, threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> ToyJob:
    job: ToyJob = toy_job(tmp_path_factory.mktemp("toy"))
    return job


@pytest.fixture
def job(shared: ToyJob) -> ToyJob:
    """One job for all tests, for actors live as long as it; its log and its hooks are removed."""
    for path in shared.folder.iterdir():
        if path.name not in ("work", "opened"):
            path.unlink()
    return shared


@pytest.mark.slow
def test_actors_share_the_tasks_and_stay(executor: RayExecutor, job: ToyJob) -> None:
    outcomes: list[Outcome] = []
    threads = set()

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        threads.add(threading.get_ident())

    assert executor.workers == 3
    (job.folder / "slow").write_text("0.5")
    executor.run(job, tasks(9), done)  # type: ignore[arg-type]
    (job.folder / "slow").unlink()
    executor.run(job, tasks(4), done)  # type: ignore[arg-type]
    assert sorted(outcome.documents for outcome in outcomes) == sorted([*range(9), *range(4)])
    assert all(outcome.notes == (f"note {outcome.task.index}",) for outcome in outcomes)
    assert threads == {threading.get_ident()}
    opened = Counter(lines(job.folder / "opened"))
    assert set(opened.values()) == {1}
    assert len(opened) <= 3
    assert len({line.split()[1] for line in lines(job.folder / "log")}) > 1


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_task_only(executor: RayExecutor, job: ToyJob) -> None:
    outcomes: list[Outcome] = []
    (job.folder / "die-2").write_text("x")
    executor.run(job, tasks(5), outcomes.append)  # type: ignore[arg-type]
    done = Counter(line.split()[0] for line in lines(job.folder / "log"))
    assert done == {"0": 1, "1": 1, "2": 2, "3": 1, "4": 1}
    assert len(outcomes) == 5


@pytest.mark.slow
def test_errors_arrive_as_themselves(executor: RayExecutor, job: ToyJob) -> None:
    (job.folder / "fail-1").touch()
    with pytest.raises(CurvatureError, match=r"^task 1 cannot be done; leave it out$"):
        executor.run(job, tasks(2), lambda _: None)  # type: ignore[arg-type]
    (job.folder / "fail-1").unlink()
    (job.folder / "break-1").touch()
    with pytest.raises(ZeroDivisionError):
        executor.run(job, tasks(2), lambda _: None)  # type: ignore[arg-type]
    (job.folder / "break-1").unlink()
    executor.run(job, tasks(2), lambda _: None)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_task_that_kills_every_worker_is_named(executor: RayExecutor, job: ToyJob) -> None:
    (job.folder / "die-1").write_text("x" * 9)
    with pytest.raises(ExecutionError, match=r"died 3 times while encoding shard 1 \(.+\); ") as e:
        executor.run(job, tasks(2), lambda _: None)  # type: ignore[arg-type]
    assert "\n" not in str(e.value)
    assert len((job.folder / "die-1").read_text()) == 6


@pytest.mark.slow
def test_after_an_interruption_nobody_writes(executor: RayExecutor, job: ToyJob) -> None:
    (job.folder / "slow").write_text("0.3")

    def stop(outcome: Outcome) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        executor.run(job, tasks(30), stop)  # type: ignore[arg-type]
    left = {path.name for path in job.folder.iterdir()}
    time.sleep(0.6)
    assert {path.name for path in job.folder.iterdir()} == left


@pytest.mark.slow
def test_another_job_has_actors_of_its_own(executor: RayExecutor, tmp_path: Path) -> None:
    job = toy_job(tmp_path)
    (tmp_path / "no-model").touch()
    with pytest.raises(CurvatureError, match="toy cannot be loaded"):
        executor.run(job, tasks(1), lambda _: None)
    assert len(list((tmp_path / "work").iterdir())) == 1  # By which nodes see the folder.
    executor.close()
    assert not any((tmp_path / "work").iterdir())


def test_there_must_be_room(nodes: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_module, "_SECONDS_TO_START", 0.5)
    large = RayExecutor(1, threads=7)
    with pytest.raises(ExecutionError, match="no node of the Ray cluster has 7 free CPUs for a"):
        large.run(toy_job(tmp_path), tasks(1), lambda _: None)
    large.close()


def test_a_node_must_see_the_files(tmp_path: Path) -> None:
    nonce = machines.Nonce.leave(tmp_path)
    nonce.see()
    nonce.path.write_text("another machine's")
    late = machines.Nonce(nonce.path, nonce.contents, patience=0.2)
    with pytest.raises(StorageError, match=r"does not see the files of .* mount at the same path"):
        late.see()
    threading.Timer(0.05, nonce.path.write_text, [nonce.contents]).start()
    ray_module._Actor().start(machines.Nonce(nonce.path, nonce.contents, patience=5.0))
    nonce.remove()
    assert not any(tmp_path.iterdir())


def test_a_node_must_have_the_same_software() -> None:
    theirs = machines.software()
    machines.require_same_software({**theirs, "node": "elsewhere"})
    with pytest.raises(ExecutionError, match=r"node elsewhere has torch 1\.0, this machine "):
        machines.require_same_software({**theirs, "node": "elsewhere", "torch": "1.0"})


def test_reports_of_ray_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    stdout = _Stdout.put_in_place()
    thread = threading.Thread(target=print, args=["a node died"], name="ray_listen")
    thread.start()
    thread.join()
    print('{"documents": 3}')
    stdout.take_away()
    assert sys.stdout is before
    assert capsys.readouterr() == ('{"documents": 3}\n', "a node died\n")


def test_jobs_are_sent_with_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm").mkdir()
    choice = ModelChoice("lm", base_model="some/id", device="cpu")
    sent = machines.from_anywhere(Job(Path("an.index"), choice))
    assert sent.folder == tmp_path / "an.index"
    assert sent.choice.model == tmp_path / "lm"
    assert sent.choice.base_model == "some/id"
    assert sent.choice.device == "cpu"


def test_ray_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[ray\]'"):
        make_executor("ray", workers=None, threads=1)
