"""Damage to any file of an index is named by ``verify``, and changes no answer silently.

An index with every kind of file there is: rows in two segments, some deleted, accelerators of FAISS
and of Lance. Single bits are turned at random places, files cut or removed; each time ``verify``
must name the file, and whoever asks gets an error or the same bits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wherefrom as wf
from damage import Damage, damages, files_by_kind
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import WherefromError
from wherefrom.maintenance.verification import verify

pytest.importorskip("faiss")

KINDS = {
    "deleted rows",
    "documents.lance/_deletions/.arrow",
    "documents.lance/_transactions/.txn",
    "documents.lance/_versions/.manifest",
    "documents.lance/latest_version_hint/.json",
    "documents.lance/data/.lance",
    "encoder.safetensors",
    "faiss/faiss-flat.index",
    "manifest.json",
    *(f"scan/{name}.npy" for name in ("codes", "lost", "norm", "residual", "scale", "whole")),
    "scan/facts.arrow",
    "vectors.lance/_indices/.idx",
    "vectors.lance/_transactions/.txn",
    "vectors.lance/_versions/.manifest",
    "vectors.lance/latest_version_hint/.json",
    "vectors.lance/data/.lance",
}
BACKENDS = ("scan", "faiss-flat", "lance-ivf")
QUESTION = {"prompt": "a quiet", "completion": " word"}


@dataclass
class Asked:
    """A damaged index and how it is asked."""

    path: Path
    model: Any
    objective: Any

    def answers(self) -> list[Any]:
        """All that the index can be asked for, an error in the place of an answer."""
        try:
            index = wf.open(self.path, model=self.model, objective=self.objective)
        except WherefromError as error:
            return [error] * 9
        ways: list[Any] = [lambda b=b: hits(index, backend=b) for b in BACKENDS]
        ways += [
            lambda: hits(index, where={"year": ("<", 20), "party": ("!=", "b")}),
            lambda: hits(index, where={"party": "b"}, normalise="relatif", sign="opponents"),
            lambda: (index.doc_ids(), index.table.facts.column("year")),
            lambda: index.vectors().tobytes(),
            lambda: index.documents(limit=100),
            lambda: index.self_influence().tobytes(),
        ]
        return [answered(way) for way in ways]


def answered(way: Any) -> Any:
    try:
        return way()
    except WherefromError as error:
        return error


def hits(index: wf.Index, **options: Any) -> Any:
    answer = index.query(**QUESTION, k=3, rerank="stored", **options)
    return repr((answer.proponents, answer.opponents, answer.certificate))


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    path = tmp_path_factory.mktemp("flips") / "my.index"
    model, objective = tiny_llama(), wf.CausalLM(tiny_tokenizer())
    documents = [
        replace(document, metadata={"year": None if i % 5 == 3 else i, "party": "ab"[i % 2]})
        for i, document in enumerate(text_documents(26))
    ]
    index = wf.build(
        model, documents[:22], path, objective=objective, encoder="sketch", bytes_per_document=64
    )
    index.delete([documents[3].doc_id, documents[8].doc_id])
    index.append(documents[22:])
    index.accelerate("faiss-flat")
    index.accelerate("lance-ivf")
    return Asked(path, model, objective)


@pytest.fixture(scope="module")
def expected(asked: Asked) -> list[Any]:
    answers = asked.answers()
    assert not any(isinstance(answer, WherefromError) for answer in answers)
    assert answers == asked.answers()
    return answers


def check(asked: Asked, expected: list[Any], damage: Damage) -> str:
    """Fails unless the damage is named and harmless; says what came of it."""
    with damage.done(asked.path):
        found = verify(asked.path, digests_only=True)
        assert not found.ok, damage
        named = [problem.where for problem in found.problems]
        assert damage.file in named, (damage, found.problems)
        answers = asked.answers()
    wrong = [
        (answer, whole)
        for answer, whole in zip(answers, expected, strict=True)
        if not isinstance(answer, WherefromError) and answer != whole
    ]
    assert not wrong, (damage, wrong)
    errors = sum(isinstance(answer, WherefromError) for answer in answers)
    return "refused" if errors == len(answers) else "in part" if errors else "the same"


def test_the_index_has_every_kind_of_file(asked: Asked) -> None:
    assert files_by_kind(asked.path).keys() - {"writer.lock"} == KINDS
    assert verify(asked.path, digests_only=True).ok


def test_damage_is_named_and_changes_no_answer(asked: Asked, expected: list[Any]) -> None:
    outcomes: Counter[str] = Counter()
    for damage in damages(asked.path, seed=7, flips=9):
        if damage.file != "writer.lock":
            outcomes[check(asked, expected, damage)] += 1
    assert outcomes.total() >= 200
    assert len(outcomes) == 3
    assert verify(asked.path, digests_only=True).ok
    assert asked.answers() == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(4))
def test_more_damage_changes_no_answer(asked: Asked, expected: list[Any], seed: int) -> None:
    for damage in damages(asked.path, seed=100 + seed, flips=60):
        if damage.file != "writer.lock":
            check(asked, expected, damage)


def test_every_bit_of_small_files_counts(asked: Asked, expected: list[Any]) -> None:
    """The files whose every bit can be tried."""
    small = [
        files[0]
        for kind, files in files_by_kind(asked.path).items()
        if kind in ("documents.lance/latest_version_hint/.json", "deleted rows")
    ]
    chance = np.random.default_rng(0)
    for file in small:
        bits = 8 * (asked.path / file).stat().st_size
        for where in chance.permutation(bits)[:100].tolist():
            with Damage("flip", file, where).done(asked.path):
                named = [p.where for p in verify(asked.path, digests_only=True).problems]
                assert file in named, (file, where)
