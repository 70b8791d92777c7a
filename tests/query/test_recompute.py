"""Exact scores of the best candidates: what is shown, what is proved, what is estimated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.query.recall import SAMPLE, drawn, expected_missed, noise_interval, recall_of

ASKED: dict[str, Any] = {"prompt": "gold", "completion": " silver trade ships"}
QUESTION = wf.Query("gold", " silver trade ships")
COUNT = 120
ENCODERS: dict[str, dict[str, Any]] = {
    "whole": {"encoder": "none"},
    "bytes": {"encoder": "none", "bits": 8},
    "signs": {"encoder": "sketch", "bits": 1, "bytes_per_document": 128},
    "energy": {"encoder": "energy", "bits": 4, "bytes_per_document": 128},
}


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, wf.Index]:
    folder = tmp_path_factory.mktemp("recompute")
    return {
        name: wf.build(
            tiny_llama(),
            text_documents(COUNT),
            folder / name,
            objective=wf.CausalLM(tiny_tokenizer()),
            **wanted,
        )
        for name, wanted in ENCODERS.items()
    }


def truth(index: wf.Index) -> dict[str, float]:
    return dict(zip(index.doc_ids(), index.scores([QUESTION])[0].tolist(), strict=True))


def best(scores: dict[str, float], k: int, sign: int) -> list[str]:
    order = sorted(scores, key=lambda i: (-sign * scores[i], i))
    return [i for i in order if sign * scores[i] > 0][:k]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_candidates_make_an_answer_brute_force(
    indexes: dict[str, wf.Index], encoder: str
) -> None:
    index = indexes[encoder]
    answer = index.query(**ASKED, k=7, rerank="recompute", candidates=COUNT)
    exact = truth(index)
    for hits, sign in ((answer.proponents, 1), (answer.opponents, -1)):
        assert [hit.doc_id for hit in hits] == best(exact, 7, sign)
        for hit in hits:
            assert hit.score == pytest.approx(exact[hit.doc_id], rel=1e-9)
    certificate = answer.certificate
    assert (certificate.tier, certificate.certified, certificate.recall) == ("exact", True, None)
    assert (certificate.candidates == COUNT) == (encoder in ("signs", "energy"))


@pytest.mark.parametrize("encoder", ["whole", "bytes"])
def test_vectors_that_hold_everything_prove_exact_answers(
    indexes: dict[str, wf.Index], encoder: str
) -> None:
    index = indexes[encoder]
    answer = index.query(**ASKED, k=3, rerank="recompute", candidates=3)
    exact = truth(index)
    assert [hit.doc_id for hit in answer.proponents] == best(exact, 3, 1)
    assert [hit.doc_id for hit in answer.opponents] == best(exact, 3, -1)
    certificate = answer.certificate
    assert certificate.certified
    assert certificate.candidates < COUNT // 2
    assert certificate.next_proponent is not None
    assert answer.proponents[-1].score > certificate.next_proponent
    shown = {hit.doc_id for hit in (*answer.proponents, *answer.opponents)}
    left = [score for doc_id, score in exact.items() if doc_id not in shown]
    assert sum(score > certificate.next_proponent for score in left) <= certificate.candidates


def test_what_is_not_proved_is_estimated(indexes: dict[str, wf.Index]) -> None:
    answer = indexes["signs"].query(**ASKED, k=5, rerank="recompute", candidates=20)
    certificate = answer.certificate
    assert certificate.tier == "exact"
    assert not certificate.certified
    assert (certificate.next_proponent, certificate.next_opponent) == (None, None)
    recall = certificate.recall
    assert recall is not None
    assert 0.0 <= recall.low <= recall.estimate <= recall.high <= 1.0
    assert (recall.sample, recall.confidence) == (SAMPLE, 0.95)
    assert 40 <= certificate.candidates <= 40 + SAMPLE


def test_a_score_does_not_depend_on_the_other_candidates(indexes: dict[str, wf.Index]) -> None:
    index = indexes["signs"]
    found: dict[str, set[float]] = {}
    for candidates in (5, 20, COUNT):
        for k in (2, 5):
            answer = index.query(**ASKED, k=k, rerank="recompute", candidates=candidates)
            for hit in (*answer.proponents, *answer.opponents):
                found.setdefault(hit.doc_id, set()).add(hit.score)
    batch = index.answers([wf.Query("", "war or peace"), QUESTION], rerank="recompute")
    for hit in (*batch[1].proponents, *batch[1].opponents):
        found.setdefault(hit.doc_id, set()).add(hit.score)
    assert all(len(scores) == 1 for scores in found.values())
    assert len(found) > 6


def test_time_decides_where_nothing_else_was_said(indexes: dict[str, wf.Index]) -> None:
    index = indexes["signs"]
    assert index.manifest.seconds_per_document is not None
    assert index.query(**ASKED, rerank_seconds=1e6).certificate.tier == "exact"
    assert index.query(**ASKED, rerank_seconds=0.0).certificate.tier == "stored"
    assert index.query(**ASKED, rerank="stored").certificate.tier == "stored"


def test_one_sign_alone_is_what_both_give(indexes: dict[str, wf.Index]) -> None:
    index = indexes["bytes"]
    both = index.query(**ASKED, k=4, rerank="recompute", candidates=COUNT)
    for sign in ("proponents", "opponents"):
        one = index.query(**ASKED, k=4, rerank="recompute", candidates=COUNT, sign=sign)
        assert getattr(one, sign) == getattr(both, sign)
        assert one.sign == sign
        other = {"proponents": "opponents", "opponents": "proponents"}[sign]
        assert getattr(one, other) == ()


@pytest.mark.parametrize("rerank", ["stored", "recompute"])
def test_normalised_answers_rank_by_what_they_say(
    indexes: dict[str, wf.Index], rerank: Any
) -> None:
    index = indexes["bytes"]
    plain = index.query(**ASKED, k=COUNT, candidates=COUNT, rerank=rerank)
    every = (*plain.proponents, *plain.opponents)
    for normalise, of in (("cosine", "cosine"), ("relatif", "relatif")):
        answer = index.query(**ASKED, k=6, candidates=COUNT, rerank=rerank, normalise=normalise)
        ranked = sorted(every, key=lambda hit: (-getattr(hit, of), hit.doc_id))
        assert [hit.doc_id for hit in answer.proponents] == [hit.doc_id for hit in ranked[:6]]
        assert answer.normalise == normalise
    assert [hit.doc_id for hit in plain.proponents[:6]] != [hit.doc_id for hit in ranked[:6]]
    norms = index.self_influence() * COUNT
    at = {doc_id: i for i, doc_id in enumerate(index.doc_ids())}
    vector = index.encode([QUESTION])[0].astype(float)
    for hit in every:
        norm = math.sqrt(norms[at[hit.doc_id]])
        assert hit.norm == pytest.approx(norm)
        assert hit.relatif == pytest.approx(hit.score / norm)
        assert hit.cosine == pytest.approx(
            hit.score * COUNT / (norm * float(np.linalg.norm(vector)))
        )
        assert hit.percentile is not None
        assert 0.0 <= hit.percentile <= 100.0


def test_the_background_is_that_of_random_pairs(indexes: dict[str, wf.Index]) -> None:
    index = indexes["whole"]
    record = index.manifest.background
    assert record is not None
    assert record.quantiles == tuple(sorted(record.quantiles))
    assert record.pairs <= record.queries * COUNT
    assert record.highest == tuple(sorted(record.highest))
    assert len(record.highest) == len(record.lowest) == record.queries
    assert record.highest[0] > 0 > record.lowest[-1]
    answer = index.query(**ASKED, k=COUNT, rerank="stored")
    hits = (*answer.proponents, *answer.opponents)
    order = sorted(hits, key=lambda hit: hit.cosine)
    percentiles = [hit.percentile for hit in order]
    assert percentiles == sorted(percentiles)
    verdict = answer.certificate.background
    assert verdict is not None
    assert verdict.noise is None, "nothing is lost, so there is no noise"
    strongest = answer.proponents[0].cosine
    assert verdict.proponents_beyond == 100 * np.mean(np.array(record.highest) < strongest)
    alone = index.query(**ASKED, k=1, rerank="stored").certificate.background
    assert alone == verdict, "how many are shown does not matter"
    for changed in ({"damping": 0.5}, {"normalise": "cosine"}):
        assert index.query(**ASKED, rerank="stored", **changed).certificate.background is None
    assert verdict.proponents == (verdict.proponents_beyond >= 95)
    noisy = indexes["signs"].query(**ASKED, rerank="stored").certificate.background
    assert noisy is not None
    assert noisy.noise is not None
    exact = indexes["signs"].query(**ASKED, rerank="recompute").certificate.background
    assert exact is not None
    assert exact.noise is None


def test_random_queries_rarely_stand_out(tmp_path: Path) -> None:
    """Queries drawn as the documents were: one in twenty may be nearer than 95 % of such."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(700, 8, generator=generator)
    y = torch.randint(0, 3, (700,), generator=generator)
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    index = wf.build(model, (x[:600], y[:600]), tmp_path / "i", encoder="none")
    verdicts = [
        answer.certificate.background
        for answer in index.answers((x[600:660], y[600:660]), rerank="stored")
    ]
    assert np.mean([v.proponents for v in verdicts]) < 0.25
    assert np.mean([v.opponents for v in verdicts]) < 0.25
    middle = np.mean([v.proponents_beyond for v in verdicts])
    assert 25 < middle < 75


@pytest.mark.parametrize("rerank", ["stored", "recompute"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_cosines_are_at_most_one(indexes: dict[str, wf.Index], encoder: str, rerank: Any) -> None:
    index = indexes[encoder]
    for normalise in ("none", "cosine"):
        answer = index.query(**ASKED, k=COUNT, rerank=rerank, candidates=COUNT, normalise=normalise)
        hits = (*answer.proponents, *answer.opponents)
        largest = max(abs(hit.cosine) for hit in hits)
        # Stored vectors of few bits are longer than what they stand for.
        assert largest <= (1.0 + 1e-6 if rerank == "recompute" or encoder == "whole" else 1.6)
    if rerank == "recompute":
        exact = index.scores([QUESTION])[0]
        norms = np.sqrt(np.array([truth_norm(indexes, d) for d in index.doc_ids()]))
        at = dict(zip(index.doc_ids(), exact / norms, strict=True))
        ranked = sorted(at, key=lambda i: -at[i])[:5]
        assert [hit.doc_id for hit in answer.proponents[:5]] == ranked


def truth_norm(indexes: dict[str, wf.Index], doc_id: str) -> float:
    whole = indexes["whole"]
    energies = dict(zip(whole.doc_ids(), whole.self_influence() * COUNT, strict=True))
    return energies[doc_id]


def test_lists_within_the_noise_do_not_stand_out(tmp_path: Path) -> None:
    """A handful of bytes: what comes to the top is noise, and is said to be."""
    index = wf.build(
        tiny_llama(),
        text_documents(COUNT),
        tmp_path / "i",
        objective=wf.CausalLM(tiny_tokenizer()),
        encoder="sketch",
        bits=1,
        bytes_per_document=64,
    )
    record = index.manifest.model_copy(
        update={
            "encoder": index.manifest.encoder.model_copy(
                update={
                    "fidelity": index.manifest.encoder.fidelity.model_copy(update={"noise": 0.5})
                }
            )
        }
    )
    index.manifest = record
    verdict = index.query(**ASKED, rerank="stored").certificate.background
    assert verdict is not None
    assert verdict.noise == pytest.approx(0.5 * math.sqrt(2 * math.log(COUNT)))
    assert (verdict.proponents, verdict.opponents) == (False, False)


def test_a_filter_that_nothing_passes_gives_an_empty_answer(indexes: dict[str, wf.Index]) -> None:
    for rerank in ("stored", "recompute"):
        answer = indexes["signs"].query(**ASKED, where={"year": (">", 3000)}, rerank=rerank)
        assert (answer.proponents, answer.opponents) == ((), ())
        assert answer.certificate.certified
        assert (answer.certificate.documents, answer.certificate.candidates) == (0, 0)
        verdict = answer.certificate.background
        assert verdict is not None
        assert (verdict.proponents, verdict.opponents) == (None, None)


@pytest.mark.parametrize("rerank", ["stored", "recompute"])
def test_more_than_all_documents_may_be_asked_for(
    indexes: dict[str, wf.Index], rerank: Any
) -> None:
    answer = indexes["signs"].query(**ASKED, k=10 * COUNT, rerank=rerank)
    assert answer.certificate.certified
    assert len(answer.proponents) + len(answer.opponents) == COUNT


def test_refining_comes_nearer_to_the_whole_matrix(indexes: dict[str, wf.Index]) -> None:
    index = indexes["whole"]
    plain = index.query(**ASKED, rerank="stored")
    assert plain.refined == 0
    few, many = (
        index.query(**ASKED, rerank="stored", refine=steps, refine_damping=1.0) for steps in (1, 6)
    )
    assert (few.refined, many.refined) == (1, 6)
    assert few.residual is not None
    assert many.residual is not None
    assert many.residual < few.residual
    assert many.damping == 1.0
    again = index.query(**ASKED, rerank="stored", refine=6, refine_damping=1.0)
    assert again.proponents == many.proponents
    exact = index.query(**ASKED, rerank="recompute", candidates=COUNT, refine=6, refine_damping=1.0)
    assert [hit.doc_id for hit in exact.proponents] == [hit.doc_id for hit in many.proponents]
    for a, b in zip(exact.proponents, many.proponents, strict=True):
        assert a.score == pytest.approx(b.score, rel=1e-5)


def test_refining_warns_where_codes_spoil_it(indexes: dict[str, wf.Index]) -> None:
    with pytest.warns(UserWarning, match="1-bit codes"):
        indexes["signs"].query(**ASKED, rerank="stored", refine=1)
    indexes["signs"].query(**ASKED, rerank="recompute", refine=1)
    indexes["energy"].query(**ASKED, rerank="stored", refine=1)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"rerank": "best"}, "rerank='best'"),
        ({"normalise": "length"}, "normalise='length'"),
        ({"candidates": 0}, "candidates=0"),
        ({"refine": -1}, "refine=-1"),
        ({"refine": 1.5}, "refine=1.5"),
        ({"refine": 1, "damping": 0.5}, "refine_damping="),
        ({"refine_damping": 1.0}, "goes with refine="),
        ({"refine_documents": 3}, "goes with refine="),
        ({"rerank_seconds": "5"}, "rerank_seconds='5'"),
        ({"refine": 1, "refine_damping": 0.0}, "damping > 0"),
        ({"rerank_seconds": -1.0}, "rerank_seconds=-1.0"),
        ({"rerank_seconds": math.nan}, "rerank_seconds=nan"),
        ({"backend": "faiss-flat"}, "'faiss-flat'"),
        ({"backend": "annoy"}, "'annoy'"),
        ({"backend": "faiss-flat", "normalise": "cosine"}, "leave backend out"),
    ],
)
def test_bad_options_get_one_line(
    indexes: dict[str, wf.Index], wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(wf.WherefromError, match=message) as caught:
        indexes["whole"].query(**ASKED, **wanted)
    assert "\n" not in str(caught.value)


def simulated(
    rng: np.random.Generator, count: int, noise: float, *, blurred: bool
) -> tuple[float, Any]:
    """Recall of a list of 10 picked by stored values among 40, and the estimate of it."""
    drawn_values = rng.standard_t(4, count)
    errors = noise * rng.standard_normal(count)
    exact, seen = drawn_values, drawn_values + errors
    if not blurred:
        exact, seen = seen, exact
    chosen = np.argsort(-seen)[:40]
    listed = np.sort(exact[chosen])[::-1][:10]
    top = np.argsort(-exact)[:10]
    others = np.setdiff1d(np.arange(count), chosen)
    sample = drawn(SAMPLE, others, int(rng.integers(1 << 30)))
    left = np.isin(np.arange(count), others)
    missed = [
        expected_missed(seen, left, np.ones(count), listed.tolist(), sigma, blurred=blurred)
        for sigma in noise_interval(exact[sample] - seen[sample])
    ]
    return float(np.isin(top, chosen).mean()), recall_of(10, [missed], SAMPLE)


@pytest.mark.parametrize("blurred", [True, False])
@pytest.mark.parametrize("noise", [0.05, 0.5, 1.0, 2.0])
def test_the_interval_of_recall_holds_it(noise: float, blurred: bool) -> None:
    rng = np.random.default_rng(11)
    runs = [simulated(rng, 1000, noise, blurred=blurred) for _ in range(40)]
    inside = np.mean([r.low - 1e-9 <= true <= r.high + 1e-9 for true, r in runs])
    assert inside >= 0.9
    bias = np.mean([r.estimate - true for true, r in runs])
    assert abs(bias) < 0.06


def test_noise_interval_holds_the_truth() -> None:
    rng = np.random.default_rng(12)
    ends = [noise_interval(rng.standard_normal(SAMPLE)) for _ in range(2000)]
    inside = np.mean([low <= 1.0 <= high for _, low, high in ends])
    assert inside == pytest.approx(0.95, abs=0.02)
    assert noise_interval(np.zeros(0)) == (0.0, 0.0, 0.0)


def test_nothing_is_missed_without_noise() -> None:
    stored = np.linspace(-1.0, 1.0, 1001)
    left, units = stored < 0.5, np.ones(1001)
    for blurred in (True, False):
        few, many = expected_missed(stored, left, units, [0.51, 0.4], 0.0, blurred=blurred)
        assert few < 0.01
        assert many == pytest.approx(50, abs=4)
        doubled = expected_missed(stored, left, 2.0 * units, [0.8], 0.0, blurred=blurred)
        assert doubled == pytest.approx(50, abs=4)
        none = np.zeros(1001, bool)
        assert not expected_missed(stored, none, units, [0.0], 0.1, blurred=blurred).any()


@given(
    st.lists(st.lists(st.floats(0, 2000), min_size=6, max_size=6).map(sorted), max_size=2),
    st.integers(6, 40),
)
def test_recall_is_a_share_and_its_interval_holds_it(means: list[list[float]], k: int) -> None:
    missed = [[np.array(one), np.array(one) / 2, np.array(one) * 2] for one in means]
    recall = recall_of(k, missed, SAMPLE)
    assert 0.0 <= recall.low <= recall.estimate <= recall.high <= 1.0


def test_recall_counts_what_is_pushed_out() -> None:
    """Five missed above the first of ten push the last five out, and no more."""
    certain = [np.full(10, 5.0)] * 3
    recall = recall_of(10, [certain], SAMPLE)
    assert recall.estimate == pytest.approx(0.5, abs=0.06)
    assert recall_of(10, [[np.zeros(10)] * 3], SAMPLE).low == 1.0
    below = np.r_[np.zeros(9), 50.0]
    assert recall_of(10, [[below] * 3], SAMPLE).estimate == pytest.approx(0.9)


def test_a_sample_is_fixed_by_its_seed() -> None:
    every = np.arange(1000)
    first = drawn(SAMPLE, every, 3)
    np.testing.assert_array_equal(first, drawn(SAMPLE, every, 3))
    assert len(np.unique(first)) == SAMPLE
    assert set(first.tolist()) != set(drawn(SAMPLE, every, 4).tolist())
    few: NDArray[np.int64] = drawn(SAMPLE, np.arange(5), 3)
    np.testing.assert_array_equal(few, np.arange(5))


def test_nothing_is_proved_of_half_precision(tmp_path: Path) -> None:
    index = wf.build(
        tiny_llama().bfloat16(),
        text_documents(40),
        tmp_path / "i",
        objective=wf.CausalLM(tiny_tokenizer()),
        encoder="none",
    )
    answer = index.query(**ASKED, k=3, rerank="recompute", candidates=3)
    assert not answer.certificate.certified
    assert answer.certificate.recall is not None
    assert index.query(**ASKED, k=3, rerank="recompute", candidates=40).certificate.certified


def test_stored_scores_that_are_too_small_are_said_to_be(indexes: dict[str, wf.Index]) -> None:
    index = indexes["energy"]
    certificate = index.query(**ASKED, rerank="stored").certificate
    exact = index.scores([QUESTION, wf.Query("", "war or peace")])
    stored = index.scores([QUESTION, wf.Query("", "war or peace")], tier="stored")
    slope = np.mean((exact * stored).sum(1) / (exact**2).sum(1))
    assert certificate.slope == pytest.approx(slope, abs=0.2)
    assert certificate.slope < 1.0
    assert index.query(**ASKED, rerank="recompute").certificate.slope is None
    assert indexes["whole"].query(**ASKED, rerank="stored").certificate.slope is None
