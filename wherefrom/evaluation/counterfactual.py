"""Counterfactual removal: does a model trained without a query's top documents lose the output?

The documents that a method scores highest for a query are removed, the model is trained anew, and
the change of the query's measurement is set against that of removing as many random documents, or
those that another method scores highest. It is the receipt of an answer: what its documents are
worth, measured and not predicted.

Every set of documents is trained on with the same seeds: changes are differences of pairs. How sure
their means are says :mod:`wherefrom.evaluation.effects`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wherefrom.errors import EvaluationError
from wherefrom.evaluation.baselines import BASELINES
from wherefrom.evaluation.effects import Effect, beyond_draws, crossed_mean
from wherefrom.evaluation.evidence import Evidence, Figure, plain
from wherefrom.evaluation.retraining import NO_CHANCE, Retrainer
from wherefrom.evaluation.statistics import CONFIDENCE, Scores, require_scores

__all__ = ["RANDOM", "removals", "require_removed"]

RANDOM = "random"
"""The method that removes documents drawn at random."""

_UNITLESS = (*BASELINES, "identity")
"""Whose scores are in no nats: a gradient's inner product under no curvature is ``dot``."""

_FEW_DRAWS = 5
_LISTED = 1000

_ENDS = {"top": 1.0, "bottom": -1.0}


@dataclass(frozen=True, slots=True)
class _Removal:
    """What one method removes from one end of the ranking.

    Attributes:
        method: Its name.
        end: ``top`` or ``bottom``.
        k: How many.
        removed: bool ``[query, document]``.
        predicted: Nats of each query, or ``None`` where scores have no unit.
    """

    method: str
    end: str
    k: int
    removed: NDArray[np.bool_]
    predicted: NDArray[np.float64] | None

    @property
    def what(self) -> str:
        """As figures are named."""
        return f"{self.end} {self.k} removed"


def removals(
    scores: Mapping[str, Scores],
    retrainer: Retrainer,
    *,
    subject: str,
    k: Sequence[int],
    seeds: Sequence[int],
    query: int | None = None,
    opponents: bool = False,
    random_draws: int = 3,
    reference: str | None = None,
    in_nats: Collection[str] | None = None,
    doc_ids: Sequence[str] | None = None,
    seed: int = 0,
) -> Evidence:
    """Remove the documents that each method scores highest, and as many random ones; retrain.

    Methods and queries that choose the same documents share the retraining; random draws are
    shared by all queries. Documents of equal score are chosen among at random.

    Args:
        scores: ``[query, document]`` of each method, positive for proponents. One called
            ``random`` is left out: random sets are drawn here.
        retrainer: Trains and measures, in the order of the scores' queries.
        subject: What is retrained, in words.
        k: How many documents to remove, one evaluation each.
        seeds: Of the models trained on each set; at least two for an interval.
        query: One of the queries; all by default.
        opponents: Whether to remove the documents scored lowest too, one evaluation more each.
        random_draws: How many random sets for each ``k``.
        reference: A method that the others are compared with as they are with random sets.
        in_nats: Methods whose scores predict the change; by default all but ``BASELINES`` and those
            of the ``identity`` curvature.
        doc_ids: Of the documents, by which ``details`` names what was removed; by default their
            positions do.
        seed: Of random sets and ties.

    Returns:
        For each method and ``k`` the figures ``change, top k removed`` (nats of the measurement,
        without the documents minus with them: negative where they were proponents),
        ``predicted change, ...`` (minus the sum of their scores) and ``change beyond random, ...``
        (and beyond the reference), whose interval says whether it could be chance. ``details`` has
        the same of each query, with the documents removed: of all queries up to a thousand
        documents together, else of the first ones.

    Raises:
        EvaluationError: Shapes, ``k``, seeds or draws are not possible, or training fails.
    """
    methods = {name: found for name, found in scores.items() if name != RANDOM}
    if reference is not None and reference not in methods:
        raise EvaluationError(f"reference {reference!r} is none of {', '.join(methods)}")
    documents = _require(methods, len(retrainer.measurement), k, seeds, query, random_draws)
    chosen = np.arange(len(retrainer.measurement)) if query is None else np.array([query])
    if doc_ids is not None and len(doc_ids) != documents:
        raise EvaluationError(f"{len(doc_ids)} doc_ids for {documents} documents; give one each")
    if in_nats is None:
        in_nats = [name for name in methods if name.partition(",")[0] not in _UNITLESS]
    # Of its own streams: another method or number must not draw other sets to be trained on.
    ties = np.random.default_rng([seed, 0]).random((len(retrainer.measurement), documents))
    planned = [
        _removal(name, end, count, found[chosen], ties[chosen], in_nats=name in in_nats)
        for end in (("top", "bottom") if opponents else ("top",))
        for count in k
        for name, found in methods.items()
    ]
    drawn = {count: _random_sets(documents, count, random_draws, seed) for count in k}
    changed, trainings = _retrained(planned, drawn, retrainer, seeds, chosen, reference)
    whole = changed.entries(slice(None))
    each: list[dict[str, Any]] = [
        {"query": int(number), "removals": changed.entries(slice(i, i + 1))}
        for i, number in enumerate(chosen)
    ]
    listed = max(1, _LISTED // sum(one.k for one in planned))
    names = np.arange(documents) if doc_ids is None else np.array(doc_ids, object)
    for i, entry in enumerate(each[:listed]):
        entry["removed"] = {f"{one.method}, {one.what}": names[one.removed[i]] for one in planned}
    return Evidence(
        "counterfactual",
        subject,
        _figures(whole),
        {
            "documents": documents,
            "queries": plain(chosen),
            "k": plain(list(k)),
            "seeds": plain(list(seeds)),
            "random_draws": random_draws,
            "seed": seed,
            "trainings": trainings,
            "recipe": retrainer.trainer.recipe,
        },
        (*_limits(changed, len(chosen), listed), *_verdicts(whole)),
        {"removals": plain(whole), "queries": plain(each)},
    )


def require_removed(k: Sequence[int], documents: int) -> None:
    """Refuse numbers of documents that cannot be removed.

    Raises:
        EvaluationError: There are none, one is given twice, or one leaves nothing or all.
    """
    if not len(k) or min(k) < 1 or max(k) >= documents or len(set(k)) < len(k):
        raise EvaluationError(
            f"k={list(k)} of {documents} documents; give different numbers from 1 to "
            f"{documents - 1}"
        )


def _require(
    scores: Mapping[str, Scores],
    queries: int,
    k: Sequence[int],
    seeds: Sequence[int],
    query: int | None,
    random_draws: int,
) -> int:
    """Refuse what cannot be retrained; the number of documents."""
    if not scores:
        raise EvaluationError("no method to judge; give the scores of at least one")
    documents = int(next(iter(scores.values())).shape[-1])
    require_scores(scores, queries, documents)
    require_removed(k, documents)
    if not len(seeds) or len(set(seeds)) < len(seeds):
        raise EvaluationError(f"seeds={list(seeds)}; give at least one, each once")
    if query is not None and not 0 <= query < queries:
        raise EvaluationError(f"query={query}; give a number from 0 to {queries - 1}")
    if random_draws < 1:
        raise EvaluationError(f"random_draws={random_draws}; give at least 1")
    return documents


def _removal(
    method: str,
    end: str,
    k: int,
    scores: Scores,
    ties: NDArray[np.float64],
    *,
    in_nats: bool,
) -> _Removal:
    best = np.lexsort((ties, -_ENDS[end] * scores), axis=1)[:, :k]
    removed = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(removed, best, True, 1)
    predicted = -np.take_along_axis(scores, best, 1).sum(1) if in_nats else None
    return _Removal(method, end, k, removed, predicted)


def _random_sets(documents: int, k: int, draws: int, seed: int) -> NDArray[np.bool_]:
    generator = np.random.default_rng([seed, k])
    removed = np.zeros((draws, documents), np.bool_)
    for row in removed:
        row[generator.permutation(documents)[:k]] = True
    return removed


def _retrained(
    planned: Sequence[_Removal],
    drawn: Mapping[int, NDArray[np.bool_]],
    retrainer: Retrainer,
    seeds: Sequence[int],
    queries: NDArray[np.int64],
    reference: str | None,
) -> tuple[_Changes, int]:
    """Train on everything, and without each set once; what changed, and how many trainings."""
    documents = planned[0].removed.shape[1]
    sets = [np.zeros((1, documents), np.bool_), *(one.removed for one in planned), *drawn.values()]
    unique, places = np.unique(np.concatenate(sets), axis=0, return_inverse=True)
    rows = np.split(places.reshape(-1), np.cumsum([len(part) for part in sets])[:-1])
    outcomes = retrainer.outcomes(~unique, list(seeds))
    nats = outcomes.nats[:, :, queries]
    changes = nats - nats[rows[0][0]]
    own, random = rows[1 : 1 + len(planned)], rows[1 + len(planned) :]
    of_query = np.arange(len(queries))
    changed = _Changes(
        planned,
        [changes[places, :, of_query] for places in own],
        {count: changes[at].transpose(2, 1, 0) for count, at in zip(drawn, random, strict=True)},
        reference,
        outcomes.by_chance,
    )
    return changed, len(unique) * len(seeds)


@dataclass(frozen=True, slots=True)
class _Changes:
    """What retraining showed.

    Attributes:
        planned: Removals, those of one end and number next to each other.
        measured: Of each the changes ``[query, seed]``.
        random: Those of random sets, ``[query, seed, draw]`` for each number of documents.
        reference: A method that others are compared with.
        by_chance: Whether seeds make a difference; see ``Outcomes``.
    """

    planned: Sequence[_Removal]
    measured: Sequence[NDArray[np.float64]]
    random: Mapping[int, NDArray[np.float64]]
    reference: str | None
    by_chance: bool

    def entries(self, queries: slice) -> list[dict[str, Any]]:
        """What each removal did to some of the queries; after the methods the random sets."""
        found: dict[str, list[dict[str, Any]]] = {}
        for one, measured in zip(self.planned, self.measured, strict=True):
            found.setdefault(one.what, []).append(self._entry(one, measured, queries))
        chance = {one.what: self.random[one.k][queries] for one in self.planned}
        for what, entries in found.items():
            drawn = chance[what]
            own = {"method": RANDOM, "what": what, "change": _shown(crossed_mean(drawn))}
            seeds = drawn.mean((0, 2))
            entries.append({**own, "by_seed": seeds, "predicted": None, "beyond": {}})
        return [entry for entries in found.values() for entry in entries]

    def _entry(
        self, one: _Removal, measured: NDArray[np.float64], queries: slice
    ) -> dict[str, Any]:
        change = measured[queries]
        drawn = self.random[one.k][queries]
        beyond = {RANDOM: _shown(beyond_draws(change, drawn))}
        if self.reference not in (None, one.method):
            others = zip(self.planned, self.measured, strict=True)
            (other,) = (
                values
                for removal, values in others
                if (removal.method, removal.what) == (self.reference, one.what)
            )
            beyond[str(self.reference)] = _shown(crossed_mean(change - other[queries]))
        predicted = None if one.predicted is None else one.predicted[queries].mean()
        return {
            "method": one.method,
            "what": one.what,
            "change": _shown(crossed_mean(change)),
            "by_seed": change.mean(0),
            "predicted": predicted,
            "beyond": beyond,
        }


def _shown(effect: Effect) -> dict[str, float | None]:
    return {
        "value": effect.value,
        "error": effect.error,
        "low": effect.low,
        "high": effect.high,
        "p": effect.p,
    }


def _figures(entries: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    figures = []
    for entry in entries:
        beyond = {f"change beyond {other}": one for other, one in entry["beyond"].items()}
        for name, effect in {"change": entry["change"], **beyond}.items():
            ends = effect["value"], effect["low"], effect["high"]
            figures.append(Figure(entry["method"], f"{name}, {entry['what']}", *ends, "nats"))
        if entry["predicted"] is not None:
            name = f"predicted change, {entry['what']}"
            figures.append(Figure.of(entry["method"], name, float(entry["predicted"]), "nats"))
    return tuple(figures)


def _limits(changed: _Changes, queries: int, listed: int) -> list[str]:
    """What figures and details cannot show."""
    _, seeds, draws = next(iter(changed.random.values())).shape
    notes = []
    if not changed.by_chance:
        notes.append(NO_CHANCE)
    elif seeds == 1:
        notes.append("One seed: how much a retraining changes by itself is in no interval.")
    if queries == 1 and draws < _FEW_DRAWS:
        notes.append(
            f"One query against {draws} random set{'s' if draws > 1 else ''} of each size: so few "
            "can show little, and a large change may not stand out; draw 10 or more."
        )
    if queries > listed:
        notes.append(
            f"The documents removed are listed for the first {listed} of {queries} queries."
        )
    return notes


def _verdicts(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where a change is chance, or the wrong one."""
    notes = []
    for entry in entries:
        beyond = entry["beyond"].get(RANDOM)
        if beyond is None or beyond["p"] is None:
            continue
        wanted = -1.0 if entry["what"].startswith("top") else 1.0
        if beyond["p"] > 1.0 - CONFIDENCE:
            found = "no further from the change without random documents than chance explains"
        elif wanted * beyond["value"] < 0.0:
            found = "on the wrong side of the change without random documents"
        else:
            continue
        notes.append(f"{entry['method']}, {entry['what']}: the change is {found}.")
    return notes
