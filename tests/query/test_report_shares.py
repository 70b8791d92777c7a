"""What stands beside influence in reports: shares in colours, heat maps, bars, similarity."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from answers import (
    CLASSIFIED,
    CONTRAST,
    LAYERS,
    annotated,
    answer,
    certificate,
    compared,
    explained,
    grouped,
    hit,
)
from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import (
    Explanation,
    Group,
    Grouping,
    HitShares,
    LayerName,
    TokenShare,
)
from wherefrom.query.report.bars import bars
from wherefrom.query.report.heat_map import heat_map
from wherefrom.query.report.highlights import pieces, step, strongest
from wherefrom.query.report.html import write_report
from wherefrom.query.wording import (
    SHARES,
    SIMILARITY,
    TOKENS_ARE,
    grouping_in_words,
    replay_command,
    signed,
    similarity_in_words,
)
from wherefrom.records import Background, Query


def source_of(path: Path, *answers: Answer) -> str:
    return write_report([("", one) for one in answers], path / "r.html").read_text("utf-8")


def words_of(source: str) -> str:
    body = source[source.index("<body>") :]
    return " ".join(html.unescape(re.sub("<[^>]*>", "", body)).split())


def tokens_of(text: str, shares: Sequence[float | None]) -> tuple[TokenShare, ...]:
    words = re.finditer(r"\s*\S+", text)
    return tuple(
        TokenShare(word[0], *word.span(), share) for word, share in zip(words, shares, strict=True)
    )


def one_hit(text: str, shares: Sequence[float | None], **fields: object) -> Answer:
    total = sum(share or 0.0 for share in shares)
    shown = HitShares("d", total, (), tokens_of(text, shares), 0.0, (), 0.0)
    explanation = Explanation((), "predictions", (replace(shown, **fields),))
    first = hit(1, total, doc_id="d", text=text)
    return answer(proponents=(first,), opponents=(), explanation=explanation)


def test_tokens_are_coloured_by_sign_and_strength(tmp_path: Path) -> None:
    source = source_of(tmp_path, one_hit("one two three four five", [None, 1.0, -0.5, 0.01, 0.25]))
    shown = re.findall(r'(.)<span class="([rl]\d)" title="(.*?)">(.*?)</span>', source)
    assert shown == [
        (" ", "r8", "+1.00 nats", "two"),
        (" ", "l4", "-0.500 nats", "three"),
        (" ", "r2", "+0.250 nats", "five"),
    ]
    assert "Tokens that raise most: “two” +1.00, “five” +0.250, “four” +0.0100" in words_of(source)
    assert "lower most: “three” -0.500 nats" in words_of(source)


def test_steps_are_relative_to_the_largest() -> None:
    assert [step(share, 2.0) for share in (2.0, -2.0, 1.0, 0.1, -0.05, 0.0, None)] == [
        *(8, -8, 4, 0, 0, 0, 0)
    ]
    assert step(1.0, 0.0) == 0


def test_line_breaks_and_escapes_within_tokens(tmp_path: Path) -> None:
    text = "one\r\ntwo\x1b[31m\u202ethree"
    cuts = [0, 3, 4, 5, 9, 10, len(text)]
    tokens = tuple(TokenShare(text[a:b], a, b, 1.0) for a, b in pairwise(cuts))
    one = one_hit("x", [1.0], tokens=tokens)
    one = replace(one, proponents=(replace(one.proponents[0], text=text),))
    source = source_of(tmp_path, one)
    (shown,) = re.findall('<div class="text".*?>(.*?)</div>', source, re.DOTALL)
    assert re.sub("<[^>]*>", "", shown) == "one\ntwo[31mthree"


@given(
    st.text("ab \n", min_size=1, max_size=30),
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 8), st.none() | st.floats(-1, 1))),
    st.tuples(st.integers(0, 30), st.integers(0, 30)),
)
def test_pieces_are_the_whole_text(
    text: str, spans: list[tuple[int, int, float | None]], run: tuple[int, int]
) -> None:
    tokens = [TokenShare("", start, start + size, share) for start, size, share in spans]
    low, high = sorted(run)
    cut = list(pieces(text, tokens, 1.0, (low, high)))
    assert "".join(piece.text for piece in cut) == text
    assert all(piece.text for piece in cut)
    position = 0
    for piece in cut:
        inside = low <= position and position + len(piece.text) <= high
        assert piece.run == inside
        position += len(piece.text)
    framed = sum(len(piece.text) for piece in cut if piece.run)
    assert framed == max(0, min(high, len(text)) - min(low, len(text)))


def test_bytes_of_one_letter_are_one_piece() -> None:
    tokens = [TokenShare("é", 1, 2, 0.5), TokenShare("é", 1, 2, 0.25), TokenShare("b", 2, 3, None)]
    cut = list(pieces("aéb", tokens, 0.75))
    assert [(p.text, p.share, p.step) for p in cut] == [
        ("a", None, 0),
        ("é", 0.75, 8),
        ("b", None, 0),
    ]


def test_strongest_tokens_keep_their_signs() -> None:
    tokens = tokens_of("a b c d", [0.5, -0.1, 0.2, 0.0])
    raising, lowering = strongest(tokens, 3)
    assert [token.share for token in raising] == [0.5, 0.2]
    assert [token.share for token in lowering] == [-0.1]
    assert strongest((TokenShare("\n", 0, 1, 1.0),), 3) == ([], [])


def test_what_no_token_carries_is_told(tmp_path: Path) -> None:
    no_tokens = one_hit("one", [1.0], elsewhere=0.25)
    told = words_of(source_of(tmp_path, no_tokens))
    assert (
        "+1.00 nats lie on the text itself; +0.250 nats come from layers that see no tokens."
        in told
    )
    special = (TokenShare("", 0, 0, 0.5), TokenShare("one", 0, 3, 1.0), TokenShare("", 3, 3, None))
    told = words_of(source_of(tmp_path, one_hit("one", [1.0], tokens=special)))
    assert (
        "+1.00 nats lie on the text itself; +0.500 nats lie on special tokens, which stand for no "
        "text." in told
    )
    assert "the text itself" not in words_of(source_of(tmp_path, one_hit("one", [1.0])))


def test_question_tokens_are_shown_for_each_hit(tmp_path: Path) -> None:
    one = explained(answer(query=CONTRAST))
    source = source_of(tmp_path, one)
    shown = re.findall(
        r"<summary>Which tokens of the question it bears on</summary>(.*?)</details>",
        source,
        re.DOTALL,
    )
    assert len(shown) == len(one.hits)
    for part in shown:
        told = words_of("<body>" + part)
        assert told == "The Union shall be preserved The contrast: The Union shall be dissolved"
        assert 'class="r' in part
        assert 'class="l' in part
    refined = source_of(tmp_path, explained(answer(refined=2)))
    assert "tokens of the question" not in refined


def test_exact_scores_of_shares_are_told_beside_stored_ones(tmp_path: Path) -> None:
    stored, exact = (
        words_of(source_of(tmp_path, explained(answer(certificate=certificate(tier=tier)))))
        for tier in ("stored", "exact")
    )
    assert "Shares are of the exact score, +0.0123 nats." in stored
    assert "Shares are of" not in exact


def test_what_shares_are_of_is_told(tmp_path: Path) -> None:
    told = words_of(source_of(tmp_path, explained(answer())))
    assert SHARES in told
    assert told.count(TOKENS_ARE["predictions"]) == 2
    assert TOKENS_ARE["positions"] not in told
    label = answer(query=Query("A fine film", "good"), index=CLASSIFIED)
    assert TOKENS_ARE["positions"] in words_of(source_of(tmp_path, explained(label, "positions")))
    assert SHARES not in words_of(source_of(tmp_path, answer()))


def test_heat_maps_hold_every_layer_and_add_up() -> None:
    shares = [float(number) for number in range(1, len(LAYERS) + 1)]
    found = heat_map(LAYERS, shares)
    assert found.modules == ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "lm_head")
    assert found.depths == ("0", "1", "2", "3", "")
    assert found.total == sum(shares)
    cells = {
        (found.modules[cell.module], found.depths[cell.depth]): cell
        for row in found.cells
        for cell in row
        if cell.share is not None
    }
    assert len(cells) == len(LAYERS)
    for layer, share in zip(LAYERS, shares, strict=True):
        cell = cells[layer.module, "" if layer.depth is None else str(layer.depth)]
        assert cell.share == share
        assert math.isclose(cell.percent or 0.0, 100 * share / sum(shares))
    assert found.largest.share == 13.0
    assert found.across
    assert found.columns == found.depths


def test_signs_of_cells_are_those_of_the_shares() -> None:
    names = [LayerName(f"l.{depth}.a", depth, "l.a") for depth in range(3)]
    found = heat_map(names, [-3.0, 1.0, 0.0])
    assert [(c.percent, c.step) for c in found.cells[0]] == [(-150.0, -8), (50.0, 3), (0.0, 0)]
    nothing = heat_map(names, [1.0, -1.0, 0.0])
    assert [cell.percent for cell in nothing.cells[0]] == [None] * 3


def test_deep_models_have_depths_as_rows_and_experts_are_summed() -> None:
    deep = [LayerName(f"l.{d}.{m}", d, f"l.{m}") for d in range(40) for m in "abc"]
    found = heat_map(deep, [1.0] * 120)
    assert not found.across
    assert found.columns == ("l.a", "l.b", "l.c")
    assert [name for name, _ in found.rows] == [str(depth) for depth in range(40)]
    assert [cell.module for cell in found.rows[7][1]] == [0, 1, 2]
    experts = [LayerName(f"l.0.experts.{e}.up", 0, f"l.experts.{e}.up") for e in range(64)]
    summed = heat_map(experts, [0.5] * 64)
    assert summed.modules == ("l.experts.*.up",)
    assert summed.cells[0][0].share == 32.0


def test_heat_maps_in_reports_are_tables_of_sums(tmp_path: Path) -> None:
    one = explained(answer())
    source = source_of(tmp_path, one)
    whole = source[source.index("<h3>Where in the model</h3>") :]
    first, second = re.findall(r'<table class="heat">(.*?)</table>', whole, re.DOTALL)
    total = sum(hit.score for hit in one.proponents)
    assert f"in per cent of {signed(total)} nats" in words_of("<body>" + first)
    assert f"in per cent of {signed(one.opponents[0].score)} nats" in words_of("<body>" + second)
    cells = re.findall(r'<td(?: class="([rl])\d")?>([+-]\d+)</td>', first)
    assert len(cells) == len(LAYERS)
    assert abs(sum(int(number) for _, number in cells) - 100) <= len(cells)
    assert all((sign == "r") == (number[0] == "+") for sign, number in cells if sign)
    shares = sum(shown.layers[4] for shown in one.explanation.hits[:2])
    assert f">{100 * shares / total:+.0f}</td>" in first
    assert source.count('<svg class="strip"') == len(one.hits)
    assert words_of(source).count("Where in the model: most in ") == len(one.hits)


def test_similarity_stands_beside_each_hit(tmp_path: Path) -> None:
    one = compared(answer())
    source = source_of(tmp_path, one)
    told = words_of(source)
    assert "BM25 rank 3 of 4,321; longest shared run 3 words; near-duplicates" in told
    assert "no word in common by BM25; no run of 3 words shared" in told
    assert source.count('<span class="flag">influential but not similar</span>') == 2
    assert re.findall('<span class="run">(.*?)</span>', source)[1:] == ["Union shall be"]
    assert SIMILARITY in told
    assert SIMILARITY not in words_of(source_of(tmp_path, answer()))


def test_shared_runs_are_framed_across_tokens(tmp_path: Path) -> None:
    source = source_of(tmp_path, annotated(answer()))
    framed = re.findall(r'<span class="run">((?:<span.*?</span>|[^<])*)</span>', source)
    assert re.sub("<[^>]*>", "", framed[1]) == "Union shall be"


def test_runs_of_few_words_are_not_shown(tmp_path: Path) -> None:
    one = compared(answer())
    assert one.similarity is not None
    hits = [replace(hit, shared_words=min(hit.shared_words, 2)) for hit in one.similarity.hits]
    near = [replace(other, shared_words=2) for other in one.similarity.most_similar]
    few = replace(one.similarity, hits=tuple(hits), most_similar=tuple(near))
    source = source_of(tmp_path, replace(one, similarity=few))
    assert re.findall('<span class="run">(.*?)</span>', source) == ["Framed"]
    (table,) = re.findall('<table class="wide similar">(.*?)</table>', source, re.DOTALL)
    assert '<td class="number">–</td>' in table


def test_similarity_in_words() -> None:
    near, far, _ = compared(answer()).similarity.hits
    assert similarity_in_words(near, 4321) == (
        "BM25 rank 3 of 4,321; longest shared run 3 words; near-duplicates among the hits: group 1"
    )
    assert similarity_in_words(replace(near, shared_words=2, cluster=None), 10) == (
        "BM25 rank 3 of 10; no run of 3 words shared"
    )
    assert "no word in common" in similarity_in_words(far, 4321)


def test_most_similar_documents_are_listed_with_their_influence(tmp_path: Path) -> None:
    source = source_of(tmp_path, compared(answer(proponents=(hit(1, 1.0, percentile=99.0),))))
    (table,) = re.findall('<table class="wide similar">(.*?)</table>', source, re.DOTALL)
    told = words_of("<body>" + table)
    for expected in ("message 77", "similar but not influential", "-4.00e-05", "41.5", "perpetual"):
        assert expected in told, expected


def test_groups_are_bars_with_whiskers(tmp_path: Path) -> None:
    source = source_of(tmp_path, grouped(answer()))
    told = words_of(source)
    for expected in (
        "Influence by party. Sums, over all documents searched, of the scores of the stored",
        "95% intervals by 1,000 bootstrap draws",
        "Whig10+0.500 (+0.250 to +0.750)",
        "–30-1.50 (-1.75 to -1.25)",
        "1789 to 18602,000+1.50",
        "+0.000750",
    ):
        assert expected in told, expected


def test_bars_share_one_scale() -> None:
    groups = (
        Group("a", 1, 3.0, 1.0, 4.0, 3.0),
        Group("b", 1, -1.0, -1.0, -0.5, -1.0),
    )
    laid = bars(Grouping("it", "stored", 0.95, 100, groups))
    assert laid.zero == 20.0
    first, second = laid.shown
    assert (first.start, first.width, first.low, first.high) == (20.0, 60.0, 40.0, 100.0)
    assert (second.start, second.width, second.low, second.high) == (0.0, 20.0, 0.0, 10.0)
    nothing = bars(Grouping("it", "stored", 0.95, 100, (Group("a", 1, 0.0, 0.0, 0.0, 0.0),)))
    assert (nothing.zero, nothing.shown[0].width) == (0.0, 0.0)
    assert bars(Grouping("it", "stored", 0.95, 100, ())).shown == ()


def test_of_many_groups_both_ends_are_shown(tmp_path: Path) -> None:
    groups = tuple(Group(n, 1, 50.0 - n, 50.0 - n, 50.0 - n, 0.0) for n in range(100))
    grouping = Grouping("it", "exact", 0.9, 100, groups)
    laid = bars(grouping)
    assert [bar.group.value for bar in laid.shown] == [*range(12), *range(88, 100)]
    assert laid.hidden == 76
    told = words_of(source_of(tmp_path, replace(answer(), groups=(grouping,))))
    assert "and 76 more between" in told
    assert grouping_in_words(grouping) in told


def test_doubts_come_first(tmp_path: Path) -> None:
    background = Background(1000, 32, 0.1, False, True, 50.0, 100.0)
    doubted = answer(certificate=certificate(background=background))
    source = source_of(tmp_path, doubted)
    assert '<section class="trust no">' in source
    badges = re.findall('<span class="badge (yes|no)">(.*?)</span>', source)
    assert badges == [
        ("yes", "✓ certified"),
        ("no", "! proponents do not stand out"),
        ("yes", "✓ opponents stand out"),
    ]
    assert source.index('<section class="trust') < source.index("<h3>Proponents")
    assert '<section class="trust yes">' in source_of(tmp_path, answer())
    uncertain = source_of(tmp_path, answer(certificate=certificate(certified=False)))
    assert '<section class="trust no">' in uncertain
    assert "! not certified" in uncertain


def test_the_question_can_be_asked_again(tmp_path: Path) -> None:
    command = replay_command(annotated(answer()))
    source = source_of(tmp_path, annotated(answer()))
    (shown,) = re.findall("<code>(.*?)</code>", source, re.DOTALL)
    assert html.unescape(shown) == command
    assert "To ask this again" not in source_of(tmp_path, answer(query=None))


def test_several_answers_have_a_table_of_contents(tmp_path: Path) -> None:
    shown = write_report(
        [("Union", answer()), ("", answer()), ("", answer(query=None))], tmp_path / "r.html"
    ).read_text("utf-8")
    assert re.findall('<li><a href="#(.*?)">(.*?)</a>', shown) == [
        ("answer-1", "Union"),
        ("answer-2", "The Union shall be preserved"),
        ("answer-3", "Asked with tensors"),
    ]
    assert re.findall("<h2 id=.*?>(.*?)</h2>", shown) == ["Union", "Question 2", "Question 3"]
    assert "<nav" not in source_of(tmp_path, answer())


@pytest.mark.parametrize("explain", [True, False])
def test_tensors_have_layers_only(tmp_path: Path, explain: bool) -> None:
    bare = answer(query=None, proponents=(hit(1, 1.0, text=""),), opponents=())
    source = source_of(tmp_path, explained(bare) if explain else bare)
    assert ('<table class="heat">' in source) == explain
    assert "Tokens that" not in source
    assert '<div class="legend">' not in source
