from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from subjects import DOCUMENTS, LeastSquares, least_squares, regression, tensors, train_rows
from torch import nn

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.lds import linear_datamodelling
from wherefrom.evaluation.measurement import Measurement
from wherefrom.evaluation.retraining import NO_CHANCE, Outcomes, Retrainer, random_halves
from wherefrom.evaluation.trainers import FunctionTrainer, Run

SEEDS = (0, 3)


def retrainer(trainer: object, cache: Path | None = None, **options: object) -> Retrainer:
    subject = regression()
    measurement = Measurement(subject.extractor.objective, subject.questions)
    return Retrainer(trainer, measurement, subject.digest, cache=cache, **options)


def by_hand(members: np.ndarray, seed: int) -> np.ndarray:
    """Log-likelihood of unit variance of the queries, under numpy's least squares."""
    x, y = (part.numpy() for part in tensors(DOCUMENTS, 0))
    asked, answers = (part.numpy() for part in tensors(3, 1))
    slope = np.linalg.lstsq(x[members], y[members, 0] + 0.01 * seed, rcond=None)[0]
    errors = answers[:, 0] - asked @ slope
    return -0.5 * errors**2 - 0.5 * np.log(2 * np.pi)


def test_outcomes_are_what_retrained_models_say() -> None:
    halves = random_halves(DOCUMENTS, 6, 0)
    outcomes = retrainer(LeastSquares()).outcomes(halves, SEEDS)
    assert outcomes.nats.shape == (6, 2, 3)
    for subset, seed in np.ndindex(6, 2):
        expected = by_hand(halves[subset], SEEDS[seed])
        assert outcomes.nats[subset, seed] == pytest.approx(expected, rel=1e-10)


def test_a_finished_run_is_never_made_again(tmp_path: Path) -> None:
    halves = random_halves(DOCUMENTS, 6, 0)
    first = LeastSquares()
    outcomes = retrainer(first, tmp_path).outcomes(halves, SEEDS)
    assert len(first.trained) == 6 * 2 + 1  # one is made twice
    again = LeastSquares()
    more = retrainer(again, tmp_path).outcomes(np.concatenate([halves, ~halves[:1]]), SEEDS)
    assert len(again.trained) == 2
    assert np.array_equal(more.nats[:6], outcomes.nats)


def test_an_interrupted_call_goes_on(tmp_path: Path) -> None:
    halves = random_halves(DOCUMENTS, 8, 0)

    def stop(phase: str, done: int, total: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        retrainer(LeastSquares(), tmp_path, progress=stop).outcomes(halves, (0,))
    (path,) = tmp_path.iterdir()
    with path.open("a") as file:
        file.write('{"run": "torn')
    rest = LeastSquares()
    found = retrainer(rest, tmp_path).outcomes(halves, (0,))
    assert len(rest.trained) == 1
    assert found.nats == pytest.approx(retrainer(LeastSquares()).outcomes(halves, (0,)).nats)
    assert b"torn" not in path.read_bytes()


@pytest.mark.parametrize("line", ["{}", "no json", '{"run": "a", "repeated": true, "nats": [1]}'])
def test_a_damaged_ledger_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = retrainer(LeastSquares(), tmp_path).path
    path.write_text(line + "\n")
    with pytest.raises(EvaluationError, match=f"{path.name}, line 1 holds no retraining"):
        retrainer(LeastSquares(), tmp_path)


def test_ledgers_differ_by_recipe_questions_and_documents() -> None:
    subject = regression()
    objective, questions = subject.extractor.objective, subject.questions
    other = LeastSquares()
    other.recipe = "another"
    keys = {
        Retrainer(trainer, Measurement(objective, asked), digest).key
        for trainer, asked, digest in (
            (LeastSquares(), questions, subject.digest),
            (other, questions, subject.digest),
            (LeastSquares(), questions[::-1], subject.digest),
            (LeastSquares(), questions[:2], subject.digest),
            (LeastSquares(), questions, "other documents"),
        )
    }
    assert len(keys) == 5


def test_another_torch_or_device_begins_another_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {retrainer(LeastSquares()).key, retrainer(LeastSquares()).key}
    with monkeypatch.context() as patched:
        patched.setattr("torch.__version__", "1.0")
        keys.add(retrainer(LeastSquares()).key)
    found = torch.cuda.is_available()
    monkeypatch.setattr("torch.cuda.is_available", lambda: not found)
    keys.add(retrainer(LeastSquares()).key)
    assert len(keys) == 3


def test_chance_that_no_seed_decides_is_found() -> None:
    with pytest.raises(EvaluationError, match="not deterministic; take all chance"):
        retrainer(LeastSquares(drift=1e-3)).outcomes(random_halves(DOCUMENTS, 2, 0), (0,))


class Logged:
    """Logs where it is unpickled and what it trains; can fail at a seed."""

    recipe = "logged"

    def __init__(self, log: Path, *, at_once: int = 1, fails: int = -1) -> None:
        self.log = log
        self.at_once = at_once
        self.fails = fails

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.note(f"opened {os.getpid()}")

    def note(self, line: str) -> None:
        with self.log.open("a") as file:
            file.write(line + "\n")

    def noted(self, word: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(word)]

    def train(self, runs: Sequence[Run]) -> Iterator[nn.Module]:
        self.note(f"share {len(runs)} by {os.getpid()}")
        for run in runs:
            if run.seed == self.fails:
                raise RuntimeError("boom")
            time.sleep(0.2)
            yield train_rows(np.flatnonzero(run.members), run.seed)


def test_workers_find_the_same(tmp_path: Path) -> None:
    halves = random_halves(DOCUMENTS, 5, 0)
    alone = retrainer(FunctionTrainer(train_rows)).outcomes(halves, SEEDS)
    told: list[tuple[object, ...]] = []
    trainer = Logged(tmp_path / "log", at_once=100)
    shared = retrainer(
        trainer, tmp_path / "cache", workers=2, progress=lambda *now: told.append(now)
    ).outcomes(halves, SEEDS)
    # Another process may align memory otherwise, and LAPACK's last bits depend on that.
    assert shared.nats == pytest.approx(alone.nats, rel=1e-12)
    assert alone.nats[0, 0] == pytest.approx(by_hand(halves[0], 0))
    assert told == [("retrain", done, 10) for done in range(1, 11)]
    sizes = sorted(int(line.split()[1]) for line in trainer.noted("share"))
    assert sizes == [1, 1, 4, 5]  # Both workers have some; one run was made twice, here.
    opened = trainer.noted("opened")
    assert len(opened) == 4  # Sent once and copied once, in both, whatever the runs.
    assert len(set(opened)) == 2
    assert str(os.getpid()) not in " ".join(opened)


def test_an_interrupt_stops_workers_and_keeps_what_they_finished(tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    trainer = Logged(tmp_path / "log")
    interrupted = retrainer(trainer, tmp_path / "cache", workers=2, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        interrupted.outcomes(random_halves(DOCUMENTS, 2, 0), range(12))
    begun = len(trainer.noted("share")) - 1
    assert len(interrupted.ledger) == begun  # One is made twice.
    assert 4 <= begun < 10
    assert len(trainer.noted("opened")) <= 4
    assert len(retrainer(trainer, tmp_path / "cache").ledger) == begun
    time.sleep(0.5)
    assert len(trainer.noted("share")) - 1 == begun


def test_a_run_that_fails_stops_workers(tmp_path: Path) -> None:
    trainer = Logged(tmp_path / "log", fails=2)
    failing = retrainer(trainer, workers=2)
    with pytest.raises(RuntimeError, match="boom"):
        failing.outcomes(random_halves(DOCUMENTS, 2, 0), range(12))
    begun = len(trainer.noted("share")) - 1
    assert len(failing.ledger) == begun - 1
    assert begun < 8


def test_a_worker_that_dies_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying(ThreadPoolExecutor):
        def __init__(self, workers: int, *rest: object) -> None:
            super().__init__(workers)

        def submit(self, work: object, *shares: Sequence[Run]) -> Future[object]:  # type: ignore[override]
            future: Future[object] = Future()
            future.set_exception(BrokenProcessPool("terminated\nabruptly"))
            if shares and shares[0][0].seed == 2:
                future = Future()
                future.set_result([np.zeros(3)])
            return future

    monkeypatch.setattr("wherefrom.evaluation.workers.ProcessPoolExecutor", Dying)
    dying = retrainer(FunctionTrainer(train_rows), workers=2)
    with pytest.raises(EvaluationError, match=r"was killed.*fewer workers.*__main__") as raised:
        dying.outcomes(random_halves(DOCUMENTS, 1, 0), range(4))
    assert "\n" not in str(raised.value)
    assert len(dying.ledger) == 2  # What was trained here, and what another had finished.


def test_what_cannot_be_sent_is_refused_before_the_first_training(tmp_path: Path) -> None:
    made: list[int] = []
    trainer = FunctionTrainer(lambda members, seed: made.append(seed), "mine")
    with pytest.raises(EvaluationError, match=r"with def at the top .*no lambda.*one worker") as e:
        retrainer(trainer, workers=2).outcomes(random_halves(DOCUMENTS, 2, 0), (0,))
    assert not made
    assert "\n" not in str(e.value)


def test_a_function_is_known_by_its_source() -> None:
    assert "def train_rows" in FunctionTrainer(train_rows).recipe
    assert FunctionTrainer(train_rows, "mine").recipe == "mine"


class Settings:
    def __init__(self, rate: float) -> None:
        self.rate = rate

    def train(self, members: np.ndarray, seed: int) -> nn.Module:
        return train_rows(members, seed)


def binding(value: object, default: object = 1) -> FunctionTrainer:
    def train(members: np.ndarray, seed: int, more: object = default) -> nn.Module:
        return train_rows(members, seed + len(str(value)))

    return FunctionTrainer(train)


def test_a_function_is_known_by_what_it_binds() -> None:
    def bound() -> list[object]:
        tensor = torch.arange(3.0)
        values = [0.1, 0.9, "0.1", None, [1, 2], (1, 2), {"a": 1}, {1, 2}, tensor, -tensor]
        more = [
            tensor[:2],
            tensor.double(),
            tensor.numpy(),
            Path("a"),
            Run(np.ones(2, np.bool_), 0),
        ]
        return [*values, tensor[:, None], *more]

    recipes = [binding(value).recipe for value in bound()]
    # A tensor and an array of the same values are the same data.
    assert len(set(recipes)) == len(recipes) - 1
    assert recipes == [binding(value).recipe for value in bound()]
    assert binding(1, default=2).recipe != binding(1).recipe


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FunctionTrainer(int), "what int does is not seen, for it is a type"),
        (lambda: FunctionTrainer(Settings(1.0).train), r"Settings\.train .* it is a method"),
        (lambda: FunctionTrainer(partial(train_rows, seed=1)), "it is a partial"),
        (lambda: binding(Settings(1.0)), r"train binds value, a Settings, which retrainings"),
    ],
    ids=["type", "method", "partial", "object"],
)
def test_what_cannot_be_known_needs_a_recipe(make: Callable[[], object], message: str) -> None:
    with pytest.raises(EvaluationError, match=rf"{message}.*recipe='\.\.\.'"):
        make()


def test_a_function_must_return_a_module() -> None:
    trainer = FunctionTrainer(lambda members, seed: "model", "wrong")
    with pytest.raises(EvaluationError, match="returned a str; return the trained"):
        next(trainer.train([Run(np.ones(3, np.bool_), 0)]))


def test_a_diverged_model_is_named() -> None:
    def diverged(members: np.ndarray, seed: int) -> nn.Module:
        module = least_squares(*tensors(DOCUMENTS, 0))
        with torch.no_grad():
            module.weight.fill_(torch.inf)
        return module

    with pytest.raises(EvaluationError, match="query 0 is not finite: its training diverged"):
        retrainer(FunctionTrainer(diverged)).outcomes(random_halves(DOCUMENTS, 1, 0), (0,))


def test_noise_is_the_standard_error_over_seeds() -> None:
    nats = np.random.default_rng(0).normal(size=(2, 4, 3))
    outcomes = Outcomes(np.ones((2, 5), np.bool_), nats)
    assert outcomes.noise() == pytest.approx(nats.std(1, ddof=1) / 2)
    with pytest.raises(EvaluationError, match="one seed shows no noise"):
        Outcomes(outcomes.members, nats[:, :1]).noise()


@pytest.mark.parametrize("members", [np.ones(4, np.bool_), np.ones((0, 4), np.bool_)])
def test_members_are_subsets_by_documents(members: np.ndarray) -> None:
    with pytest.raises(EvaluationError, match=r"give \[subset, document\]"):
        retrainer(LeastSquares()).outcomes(members, (0,))
    with pytest.raises(EvaluationError, match="workers=0"):
        retrainer(LeastSquares(), workers=0)


def test_seeds_that_decide_nothing_count_as_one() -> None:
    def unseeded(members: np.ndarray, seed: int) -> nn.Module:
        return train_rows(members, 0)

    outcomes = retrainer(FunctionTrainer(unseeded)).outcomes(random_halves(DOCUMENTS, 20, 0), SEEDS)
    assert outcomes.nats.shape == (20, 1, 3)
    assert not outcomes.by_chance
    scores = {"a": np.random.default_rng(0).normal(size=(3, DOCUMENTS))}
    evidence = linear_datamodelling(scores, outcomes, subject="")
    assert evidence.notes[-1] == NO_CHANCE
    assert {figure.method for figure in evidence.figures} == {"a"}


def test_members_that_decide_nothing_are_refused() -> None:
    def always_all(members: np.ndarray, seed: int) -> nn.Module:
        return train_rows(np.arange(DOCUMENTS), seed)

    with pytest.raises(EvaluationError, match="does train_fn use the members"):
        retrainer(FunctionTrainer(always_all)).outcomes(random_halves(DOCUMENTS, 3, 0), (0,))
