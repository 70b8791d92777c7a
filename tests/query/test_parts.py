"""Where scores lie: what reports and the terminal tell of a classifier's hits sums to them."""

from __future__ import annotations

import html
import math
import re
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

import wherefrom as wf
from answers import answer, explained
from tiny_bert import CONTEXT, LABELS, WORDS, bert_classifier, bert_tokenizer
from wherefrom.cli.render import answer_table
from wherefrom.query.interpretation.explanation import (
    HitShares,
    QuestionShares,
    ScoreParts,
    TokenShare,
)
from wherefrom.query.wording import parts_in_words, signed

NUMBER = r"([+-][\d.]+(?:e[+-]\d+)?)"
TOLD = re.compile(
    rf"{NUMBER} nats lie on the text itself; {NUMBER} nats lie on special tokens, which stand for "
    rf"no text; {NUMBER} nats come from layers that see no tokens"
)
IN_PER_CENT = re.compile(
    r"parts ([+-]\d+)% on the text, ([+-]\d+)% on special tokens, ([+-]\d+)% in layers that see "
    "no tokens"
)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> wf.Answer:
    """Hits of a BERT that reads ``[CLS]`` and ``[SEP]``, and whose head sees no tokens."""
    rng = np.random.default_rng(0)
    documents = [
        wf.Document(f"d{i}", " ".join(rng.choice(WORDS, 6)), {"mood": LABELS[i % 3]})
        for i in range(12)
    ]
    index = wf.build(
        bert_classifier(),
        documents,
        tmp_path_factory.mktemp("parts") / "i",
        objective=wf.SequenceClassification(bert_tokenizer(), label="mood", context=CONTEXT),
        layers="linear",
    )
    asked = index.query(prompt=documents[0].text, completion="calm", contrast="angry", k=3)
    return index.annotate(asked, explain=True)


def hits_of(answer: wf.Answer) -> list[HitShares]:
    assert answer.explanation is not None
    assert len(answer.explanation.hits) > 3
    return list(answer.explanation.hits)


def share(tokens: tuple[TokenShare, ...] | None, *places: int) -> float:
    assert tokens is not None
    return sum(tokens[place].share or 0.0 for place in places)


def roughly(parts: list[float], score: float) -> bool:
    """Whether parts of three digits each sum to a score."""
    return math.isclose(sum(parts), score, abs_tol=0.01 * sum(map(abs, parts)))


def test_parts_are_special_tokens_other_layers_and_the_text(classified: wf.Answer) -> None:
    for hit in hits_of(classified):
        parts, asked = hit.parts(), hit.question_parts()
        assert parts is not None
        assert asked is not None
        assert parts.special == pytest.approx(share(hit.tokens, 0, -1), rel=1e-12)
        assert parts.text == pytest.approx(share(hit.tokens, *range(1, 7)), rel=1e-12)
        assert parts.elsewhere == hit.elsewhere != 0.0
        assert hit.question is not None
        assert len(hit.question) == 2
        assert asked.special == pytest.approx(
            sum(share(text.tokens, 0, -1) for text in hit.question), rel=1e-12
        )
        for found in (parts, asked):
            assert min(map(abs, (found.text, found.special, found.elsewhere))) > 0.0
            total = found.text + found.special + found.elsewhere
            assert total == pytest.approx(hit.score, rel=1e-9)


def test_what_reports_tell_sums_to_the_scores(classified: wf.Answer, tmp_path: Path) -> None:
    source = classified.to_html(tmp_path / "r.html").read_text("utf-8")
    cards = re.findall(r"<article>(.*?)</article>", source, re.DOTALL)
    hits = hits_of(classified)
    assert len(cards) == len(hits)
    for card, hit in zip(cards, hits, strict=True):
        told = TOLD.findall(html.unescape(card))
        assert len(told) == 2, "of the document, and of the question"
        for parts in told:
            assert roughly([float(part) for part in parts], hit.score)


def test_what_the_terminal_tells_sums_to_the_scores(classified: wf.Answer) -> None:
    out = StringIO()
    answer_table(classified, Console(file=out, width=400, markup=False, highlight=False))
    text = " ".join(out.getvalue().split())
    hits = hits_of(classified)
    told = IN_PER_CENT.findall(text)
    assert len(told) == len(hits)
    for parts, hit in zip(told, hits, strict=True):
        assert abs(sum(map(int, parts)) - math.copysign(100, hit.score)) <= 2
    first = len(classified.proponents)
    sums = [sum(hit.score for hit in some) for some in (hits[:first], hits[first:])]
    for parts, total in zip(TOLD.findall(text), sums, strict=True):
        assert roughly([float(part) for part in parts], total)


def test_where_all_lies_on_the_text_nothing_is_told() -> None:
    plain = explained(answer())
    assert plain.explanation is not None
    for hit in plain.explanation.hits:
        parts = hit.parts()
        assert parts is not None
        assert parts.text == pytest.approx(hit.score, rel=1e-12)
        assert parts_in_words(parts) is None
    tensors = explained(answer(query=None))
    assert tensors.explanation is not None
    assert tensors.explanation.hits[0].parts() is None
    assert tensors.explanation.hits[0].question_parts() is None
    assert parts_in_words(None) is None


def test_parts_of_several_scores_add_up() -> None:
    tokens = (TokenShare("", 0, 0, 0.5), TokenShare("a", 0, 1, None), TokenShare("b", 1, 2, -2.0))
    one = QuestionShares(1.0, "ab", tokens)
    hit = HitShares("d", -2.75, (), tokens, 0.25, (one, one), 0.25)
    assert hit.parts() == ScoreParts(-2.0, 0.5, 0.25)
    assert hit.question_parts() == ScoreParts(-4.0, 1.0, 0.25)
    assert ScoreParts(1.0, 2.0, 3.0) + ScoreParts(4.0, 8.0, 16.0) == ScoreParts(5.0, 10.0, 19.0)
    assert parts_in_words(ScoreParts(0.0, -0.5, 0.0)) == (
        f"{signed(0.0)} nats lie on the text itself; -0.500 nats lie on special tokens, which "
        "stand for no text"
    )
