"""Answers made by hand, for what shows them; some documents mean harm."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np

from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import (
    Explanation,
    Group,
    Grouping,
    HitShares,
    HitSimilarity,
    LayerName,
    QuestionShares,
    SimilarDocument,
    Similarity,
    TokensAre,
    TokenShare,
)
from wherefrom.records import Background, Certificate, Hit, Query, QuerySet, Recall

HOSTILE = (
    "<script>alert(1)</script> </style> [red]danger[/red] :skull: {{ 7*7 }} "
    "\x1b[31mred\x1b[0m \x9b2J"
    "\x1b]0;title\x07 \u202egnisrever\u202c \x00\x08 \ud800 end"
)

INDEX = {
    "path": "/data/my.index",
    "manifest_sha256": "ab" * 32,
    "documents": 4321,
    "objective": "causal_lm",
    "curvature": "ekfac",
    "damping": 0.1,
    "fisher": "sampled",
    "encoder": "sketch 32768, rotated, 1 bit",
    "bytes_per_document": 4096.0,
    "weights_sha256": "cd" * 32,
}


def hit(rank: int, score: float, **fields: Any) -> Hit:
    values: dict[str, Any] = {
        "doc_id": f"speech {rank}",
        "text": "The Union shall be preserved. " * 40,
        "metadata": {"year": 1860 + rank, "president": "Abraham Lincoln", "party": None},
        "parent_id": None,
        "char_start": 0,
        "tokens": 12,
        "norm": 2.0,
        "cosine": 10 * score,
        "relatif": score / 2,
        "percentile": None,
    }
    return Hit(rank=rank, score=score, **{**values, **fields})


def certificate(**fields: Any) -> Certificate:
    values: dict[str, Any] = {
        "tier": "stored",
        "certified": True,
        "documents": 4321,
        "candidates": 57,
        "backend": "scan",
        "next_proponent": 0.00123,
        "next_opponent": 0.00099,
    }
    return Certificate(**{**values, **fields})


def answer(**fields: Any) -> Answer:
    values: dict[str, Any] = {
        "query": Query("The Union shall", " be preserved"),
        "proponents": (hit(1, 0.0123456), hit(2, 0.00617)),
        "opponents": (hit(1, -0.003086, doc_id="message 9"),),
        "certificate": certificate(),
        "log_likelihood": -3.25,
        "scored_tokens": 2,
        "sign": "both",
        "normalise": "none",
        "damping": 0.1,
        "refined": 0,
        "residual": None,
        "index": INDEX,
        "where": {"year": [("<", 1900)], "party": [("!=", None)]},
    }
    return Answer(**{**values, **fields})


CLASSIFIED = {**INDEX, "objective": "sequence_classification"}

CONTRAST = Query("The Union shall", " be preserved", contrast=" be dissolved")

QUERIES = QuerySet(tuple(Query(f"Question {i}:", f" answer {i}") for i in range(1, 31)))


def hostile_answers() -> list[Answer]:
    """Harm in all that is shown: asked once, against a contrast, of a classifier, in a set."""
    one = Query(HOSTILE, HOSTILE, HOSTILE)
    fields: dict[str, Any] = {
        "proponents": (
            hit(
                1, 0.5, doc_id=HOSTILE, text=HOSTILE, metadata={HOSTILE: HOSTILE}, parent_id=HOSTILE
            ),
        ),
        "opponents": (),
        "where": {HOSTILE: ("==", HOSTILE)},
        "index": {**INDEX, "path": HOSTILE},
    }
    return [
        answer(**fields, query=Query(HOSTILE, HOSTILE)),
        answer(**fields, query=one),
        answer(**{**fields, "index": {**CLASSIFIED, "path": HOSTILE}}, query=one),
        answer(**fields, query=QuerySet((one, one), "sum")),
    ]


LAYERS = (
    *(
        LayerName(f"model.layers.{depth}.mlp.{module}", depth, f"mlp.{module}")
        for depth in range(4)
        for module in ("gate_proj", "up_proj", "down_proj")
    ),
    LayerName("lm_head", None, "lm_head"),
)


def token_shares(text: str, total: float, seed: int) -> tuple[TokenShare, ...]:
    """Words of a text as tokens; the first is context only, the shares of the rest sum up."""
    words = list(re.finditer(r"\s*\S+|\s+$", text))
    shares = np.random.default_rng(seed).standard_t(2, len(words))
    shares *= 0.3 * abs(total)
    shares[1:] += (total - shares[1:].sum()) / max(1, len(words) - 1)
    return tuple(
        TokenShare(word[0], *word.span(), None if place == 0 else float(share))
        for place, (word, share) in enumerate(zip(words, shares, strict=True))
    )


def hit_shares(hit: Hit, query: Query | QuerySet | None, seed: int = 0) -> HitShares:
    """Shares of a hit: of all layers, and of tokens where the question has text."""
    layers = abs(hit.score) * np.random.default_rng(seed).standard_normal(len(LAYERS))
    layers += (hit.score - layers.sum()) / len(layers)
    queries = query.queries if isinstance(query, QuerySet) else (query,) if query else ()
    asked = [
        QuestionShares(sign, text, token_shares(text, sign * hit.score, seed + place))
        for place, one in enumerate(queries)
        for sign, completion in ((1.0, one.completion), (-1.0, one.contrast))
        if completion is not None and (text := one.prompt + completion)
    ]
    return HitShares(
        doc_id=hit.doc_id,
        score=hit.score,
        layers=tuple(layers.tolist()),
        tokens=token_shares(hit.text, hit.score, seed) if queries else None,
        elsewhere=0.0,
        question=tuple(asked) if queries else None,
        question_elsewhere=0.0,
    )


def explained(answer: Answer, tokens_are: TokensAre = "predictions") -> Answer:
    """An answer with shares of layers and tokens."""
    shares = [hit_shares(hit, answer.query, seed) for seed, hit in enumerate(answer.hits)]
    if answer.refined:
        shares = [replace(one, question=None) for one in shares]
    has_tokens = answer.query is not None
    return replace(
        answer, explanation=Explanation(LAYERS, tokens_are if has_tokens else None, tuple(shares))
    )


def compared(answer: Answer, other: str = "The Union is perpetual, and shall be kept.") -> Answer:
    """An answer with similarity: its first hit is like the question, the others are not."""
    hits = tuple(
        HitSimilarity(
            doc_id=hit.doc_id,
            bm25=7.5 if place == 0 else 0.0,
            bm25_rank=3 if place == 0 else 900,
            shared_words=3 if place == 0 else 0,
            shared_start=min(len(hit.text), 4) if place == 0 else 0,
            shared_end=min(len(hit.text), 18) if place == 0 else 0,
            cluster=1 if place < 2 else None,
            flag=None if place == 0 else "influential but not similar",
        )
        for place, hit in enumerate(answer.hits)
    )
    near = SimilarDocument(
        doc_id="message 77" if other.startswith("The Union") else other,
        text=other,
        bm25=12.25,
        bm25_rank=1,
        shared_words=4,
        score=-0.00004,
        cosine=-0.001,
        percentile=41.5,
        flag="similar but not influential",
    )
    return replace(answer, similarity=Similarity(4321, hits, (near,)))


def grouped(answer: Answer, values: tuple[Any, ...] = ("Whig", "Democratic", None)) -> Answer:
    """An answer with influence summed by two columns, the second of them numeric."""
    groups = tuple(
        Group(value, 10 * (place + 1), 0.5 - place, 0.25 - place, 0.75 - place, 0.05 - place / 10)
        for place, value in enumerate(values)
    )
    years = (
        Group("1789 to 1860", 2000, 1.5, 1.0, 2.0, 1.5 / 2000),
        Group("1861 to 1953", 2321, -0.1, -0.3, 0.1, -0.1 / 2321),
    )
    return replace(
        answer,
        groups=(
            Grouping("party", "stored", 0.95, 1000, groups),
            Grouping("year", "exact", 0.95, 1000, years),
        ),
    )


def annotated(answer: Answer) -> Answer:
    """An answer with all that can be beside it."""
    return grouped(compared(explained(answer)))


def annotated_hostile_answers() -> list[Answer]:
    """:func:`hostile_answers` with harm in tokens, layers, similar documents and groups too."""
    layer = LayerName(HOSTILE, 0, HOSTILE)
    out = []
    for one in hostile_answers():
        whole = grouped(compared(explained(one), HOSTILE), (HOSTILE, -1.5, True))
        assert whole.explanation is not None
        layers = (layer, *LAYERS[1:])
        groups = tuple(replace(grouping, column=HOSTILE) for grouping in whole.groups)
        explanation = replace(whole.explanation, layers=layers)
        out.append(replace(whole, explanation=explanation, groups=groups))
    return out


def every_answer() -> dict[str, Answer]:
    """Answers of every form, by name."""
    judged = Background(1000, 32, 0.1, True, False, 100.0, 50.0)
    recall = Recall(0.97, 0.9, 1.0, 0.95, 32)
    plain = {
        "plain": answer(),
        "empty": answer(query=None, proponents=(), opponents=(), where={}),
        "tensors": answer(query=None),
        "contrast": answer(query=CONTRAST),
        "set": answer(query=QUERIES),
        "label": answer(query=Query("A fine film", "good"), index=CLASSIFIED),
        "refined": answer(refined=5, damping=20.0, residual=0.6),
        "judged": answer(
            proponents=(hit(1, 0.5, percentile=99.9, parent_id="the book", char_start=77),),
            certificate=certificate(
                certified=False, tier="exact", slope=0.9, recall=recall, background=judged
            ),
        ),
    }
    whole = {f"annotated {name}": annotated(one) for name, one in plain.items()}
    names = ("plain", "contrast", "label", "set")
    hostile = {f"hostile {n}": a for n, a in zip(names, hostile_answers(), strict=True)}
    worse = {f"worse {n}": a for n, a in zip(names, annotated_hostile_answers(), strict=True)}
    return {**plain, **whole, **hostile, **worse}
