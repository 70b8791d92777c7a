"""The fit of a curvature: statistics of shards, added up in a fixed tree, pass by pass."""

from __future__ import annotations

from wherefrom.curvature.fitted import FittedCurvature
from wherefrom.curvature.kinds import curvature_from_state
from wherefrom.errors import IntegrityError
from wherefrom.indexer.counting import Counter
from wherefrom.indexer.executors.base import Executor, Task
from wherefrom.indexer.job import Job
from wherefrom.indexer.ledger import CURVATURE, CURVATURE_FILE, Work
from wherefrom.indexer.plan import Plan, Tree
from wherefrom.indexer.provenance import curvature_record
from wherefrom.indexer.sealed import load_tensors, save_tensors
from wherefrom.indexer.workshop import Workshop
from wherefrom.records import Progress
from wherefrom.store import CurvatureRecord

__all__ = ["fit_curvature"]

_FEWEST_AT_ONCE = 8


def fit_curvature(
    executor: Executor, job: Job, workshop: Workshop, progress: Progress
) -> tuple[FittedCurvature, CurvatureRecord, tuple[str, ...]]:
    """Fit the curvature of a build, from wherever the ledger says that the fit is.

    Args:
        executor: Carries out the tasks.
        job: For its workers.
        workshop: Of this process.
        progress: Told how far it is.

    Returns:
        The curvature as any process would load it, its record, and what to warn of.

    Raises:
        WherefromError: The fit fails; the layer or the document is named.
    """
    work = workshop.work
    notes: tuple[str, ...] = ()
    if not work.file(CURVATURE_FILE).exists():
        step, fit = work.passes_done(), workshop.fit(work.passes_done())
        if fit.passes == 0:
            _keep(work, fit.result(), workshop.plan)
        for number in range(step, fit.passes):
            notes += _pass(executor, job, workshop, number, progress)
    record = work.read(CURVATURE, CurvatureRecord)
    if record is None:
        raise IntegrityError(
            f"{work.file(CURVATURE)} is missing; begin anew with --no-resume (resume=False)"
        )
    tensors = load_tensors(
        work.file(CURVATURE_FILE),
        workshop.extractor.device,
        "remove it and run the same command again, which fits anew",
    )
    curvature = curvature_from_state(
        record.kind,
        workshop.extractor.layers,
        tensors,
        documents=record.fit_documents,
        damping=record.damping,
        report=record.report,
    )
    return curvature, record, notes


def _pass(
    executor: Executor, job: Job, workshop: Workshop, step: int, progress: Progress
) -> tuple[str, ...]:
    """One pass, to its end: the state of the fit after it is on disk."""
    work, tree = workshop.work, workshop.tree(step)
    passes = workshop.fit(step).passes
    counter = Counter(
        progress, f"fitting the curvature, pass {step + 1} of {passes}", len(workshop.chosen)
    )
    left, done = _left(work, tree)
    counter.begin(sum(len(workshop.shard_of(task)) for task in done))
    workshop.told = counter.ahead
    at_once = _FEWEST_AT_ONCE
    while at_once < 4 * executor.workers:
        at_once *= 2
    for start in range(0, len(left), at_once):
        executor.run(job, left[start : start + at_once], counter.done)
        _merge(executor, job, work, tree, counter)
    _merge(executor, job, work, tree, counter)
    _finish(workshop, step, tree)
    return counter.notes


def _left(work: Work, tree: Tree) -> tuple[list[Task], list[Task]]:
    """The shards whose statistics are not there yet, not even as part of a sum, and the others."""
    covered = {task for task in tree.shards() if work.is_done(task)}
    for level in tree.levels():
        for merge in filter(work.is_done, level):
            covered.update(tree.shards_under(merge))
    left = [task for task in tree.shards() if task not in covered]
    return left, sorted(covered)


def _merge(executor: Executor, job: Job, work: Work, tree: Tree, counter: Counter) -> None:
    """Add up whatever can be: sums take less room than what they are of."""
    for level in tree.levels():
        ready = [
            merge
            for merge in level
            if not work.is_done(merge) and all(map(work.is_done, tree.children(merge)))
        ]
        if ready:
            executor.run(job, ready, counter.done)


def _finish(workshop: Workshop, step: int, tree: Tree) -> None:
    """End a pass; what it was made of is needed no more."""
    work, fit = workshop.work, workshop.fit(step)
    fit.finish_pass(workshop.statistics(tree.top))
    if fit.done < fit.passes:
        save_tensors(work.fit_file(step + 1), fit.state())
    else:
        _keep(work, fit.result(), workshop.plan)
    workshop.forget_fit()
    for name in (f"fit-{step + 1}", work.fit_file(step).name):
        work.forget(name)


def _keep(work: Work, curvature: FittedCurvature, plan: Plan) -> None:
    """Write the fitted curvature; its tensors last, for they say that it is there."""
    work.write(CURVATURE, curvature_record(curvature, plan.fisher, plan.seed))
    save_tensors(work.file(CURVATURE_FILE), curvature.state())
