"""Marked passages: they are where the influence is, every share counts, and nothing is obeyed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from answers import HOSTILE
from wherefrom.cli.highlight import legend, marked, plain, words_of
from wherefrom.cli.shares import part_in_words
from wherefrom.query.interpretation.explanation import TokenShare
from wherefrom.query.printable import printable

FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LINK = "\x1b]8;;http://example.org\x1b\\click\x1b]8;;\x1b\\"
TEXT = "The people " * 40 + "shall abolish slavery, for ever. " + "And so on. " * 40


def tokens(text: str, shares: dict[str, float], otherwise: float = 0.0) -> list[TokenShare]:
    """Words with the space before them, as most tokenizers cut."""
    return [
        TokenShare(one[0], *one.span(), shares.get(one[0].strip(), otherwise))
        for one in re.finditer(r"\s*(\w+|[^\w\s])", text)
    ]


def line(text: str, shares: dict[str, float], cells: int = 1000, **options) -> str:
    return marked(text, tokens(text, shares), cells, plain=True, **options).line.plain


def test_words_stand_between_signs_that_say_which_way() -> None:
    text = "The Union shall be preserved"
    assert line(text, {"Union": 1.0, "be": -0.5}) == "The {+Union+} shall [-be-] preserved"


def test_neighbours_are_marked_as_one_and_small_shares_not_at_all() -> None:
    shares = {"Union": 1.0, "shall": 0.4, "be": 0.09, "preserved": -0.11}
    assert line("The Union shall be preserved", shares) == ("The {+Union shall+} be [-preserved-]")


def test_colours_tell_strong_from_weak_and_leave_the_text_alone() -> None:
    text = "The Union shall be preserved"
    shown = marked(text, tokens(text, {"Union": 1.0, "shall": 0.3, "be": -0.6}), 99, plain=False)
    assert shown.line.plain == text
    styles = {shown.line.plain[span.start : span.end]: str(span.style) for span in shown.line.spans}
    assert styles == {
        "Union": "bold underline color(32)",
        "shall": "underline color(32)",
        "be": "bold italic color(166)",
    }


def test_pieces_of_a_word_are_one_word_with_their_sum() -> None:
    text = "to abolish, 統一"
    pieces = [("to", 1), (" ab", 2), ("ol", 4), ("ish", -1), (",", 8), (" 統", 16), ("一", 32)]
    found, at = [], 0
    for piece, share in pieces:
        found.append(TokenShare(piece, at, at + len(piece), float(share)))
        at += len(piece)
    assert [(word.text, word.share) for word in words_of(text, found)] == [
        ("to", 1.0),
        ("abolish", 5.0),
        (",", 8.0),
        ("統", 16.0),
        ("一", 32.0),
    ]


def test_bytes_of_one_letter_are_one_word_and_context_is_none() -> None:
    found = [
        TokenShare("a", 0, 1, None),
        TokenShare("é", 2, 3, 0.25),
        TokenShare("é", 2, 3, 0.5),
    ]
    assert [(word.text, word.share) for word in words_of("a é", found)] == [("é", 0.75)]


def test_tokens_that_stand_for_no_text_are_part_of_no_word() -> None:
    found = [TokenShare("", 0, 0, 4.0), TokenShare("one", 0, 3, 1.0), TokenShare("", 3, 3, -2.0)]
    assert [(word.text, word.share) for word in words_of("one", found)] == [("one", 1.0)]
    assert marked("one", found, 80, plain=True).share == 1.0


def test_the_passage_is_where_the_influence_is() -> None:
    shown = marked(TEXT, tokens(TEXT, {"slavery": 1.0}, 0.001), 80, plain=True)
    assert "abolish {+slavery+}, for ever" in shown.line.plain
    assert shown.line.plain.startswith("…The people The people shall")
    assert shown.line.plain.endswith("…")
    assert not shown.whole
    inside = [one for one in re.findall(r"\w+", shown.line.plain) if one != "slavery"]
    assert shown.share == pytest.approx(
        1.0 + 0.001 * (len(inside) + shown.line.plain.count(".") + shown.line.plain.count(","))
    )


def test_without_shares_the_passage_is_the_start_or_the_shared_run() -> None:
    assert marked(TEXT, None, 30, plain=True).line.plain == "The people The people The…"
    at = TEXT.index("abolish slavery")
    shown = marked(TEXT, None, 60, plain=True, run=(at, at + 15))
    assert "shall «abolish slavery», for" in shown.line.plain
    assert shown.holds_run


def test_runs_and_marks_nest() -> None:
    text = "The Union shall be preserved"
    assert line(text, {"Union": 1.0}, run=(0, 9)) == "«The {+Union+}» shall be preserved"
    assert line(text, {"Union": 1.0}, run=(4, 15)) == "The «{+Union+} shall» be preserved"


def test_a_run_outside_of_the_passage_is_said_to_be_outside() -> None:
    shown = marked(TEXT, tokens(TEXT, {"slavery": 1.0}), 60, plain=True, run=(0, 10))
    assert not shown.holds_run
    assert "«" not in shown.line.plain


@pytest.mark.parametrize("cells", [10, 40, 200])
@pytest.mark.parametrize(
    "text", ["字" * 500, "e\u0301" * 500, "👩\u200d👩\u200d👧 " * 99, "x" * 999]
)
def test_passages_fit_their_cells(text: str, cells: int) -> None:
    found = [TokenShare(text[i], i, i + 1, float(i == 400)) for i in range(len(text))]
    shown = marked(text, found, cells, plain=False)
    assert cell_len(shown.line.plain.strip("…")) <= cells
    # Joined emoji count as if they stood apart: terminals differ.
    assert cell_len(shown.line.plain) > 0.25 * min(cells, cell_len(text))


@pytest.mark.parametrize("text", [HOSTILE, LINK, "a\u2066b\u2069", "\x1b[31mred " * 50])
@pytest.mark.parametrize("without_colours", [True, False])
def test_hostile_text_is_never_obeyed(text: str, without_colours: bool) -> None:
    found = [TokenShare(one, i, i + 1, float(i % 3 - 1)) for i, one in enumerate(text)]
    shown = marked(text, found, 60, plain=without_colours, run=(1, 4))
    console = Console(markup=True, force_terminal=True, color_system="truecolor", record=True)
    with console.capture() as capture:
        console.print(shown.line)
    assert not FORBIDDEN.search(shown.line.plain)
    assert not re.search(r"\x1b(?!\[[0-9;]*m)", capture.get())
    assert "\x1b[31m" not in capture.get()


@given(
    st.text(alphabet=st.sampled_from("ab é字 \n\t\x1b\x9bm.,\u202e"), max_size=60),
    st.lists(st.floats(-1, 1), min_size=60, max_size=60),
    st.integers(4, 80),
    st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_marks_never_change_the_words(
    text: str, shares: list[float], cells: int, run: tuple[int, int]
) -> None:
    found = [TokenShare(one, i, i + 1, shares[i]) for i, one in enumerate(text)]
    span = (min(*run, len(text)), min(max(run), len(text)))
    coloured = marked(text, found, cells, plain=False, run=span if span[0] < span[1] else None)
    signed = marked(text, found, cells, plain=True, run=span if span[0] < span[1] else None)
    bare = coloured.line.plain.replace("«", "").replace("»", "")
    assert re.sub(r"\{\+|\+\}|\[-|-\]|[«»]", "", signed.line.plain) == bare
    assert signed.share == coloured.share
    if coloured.whole:
        assert bare == printable(text)
        assert coloured.share == pytest.approx(sum(shares[: len(text)]), abs=1e-9)


def test_the_legend_looks_like_what_it_explains() -> None:
    told = legend(plain=True, run=True).plain
    assert told == "{+raises the score+} · [-lowers it-] · «in the question, too»"
    coloured = legend(plain=False, run=False)
    assert coloured.plain == "raises the score · lowers it"
    assert {str(span.style) for span in coloured.spans if span.style} == {
        "bold underline color(32)",
        "bold italic color(166)",
    }


def test_signs_where_there_is_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = Console(force_terminal=True, color_system="standard", no_color=False)
    assert not plain(colours)
    assert plain(Console(force_terminal=True, color_system=None))
    monkeypatch.setenv("NO_COLOR", "1")
    assert plain(Console(force_terminal=True, color_system="standard"))
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert plain(Console(force_terminal=True))


def test_marks_stay_on_their_words_where_characters_are_left_out() -> None:
    text = "\x1b[31mThe\x1b[0m  \n\t Union\u202e shall   be\x07 preserved"
    assert line(text, {"Union": 1.0, "preserved": -1.0}, run=(text.index("shall"), len(text))) == (
        "The {+Union+} «shall be [-preserved-]»"
    )


def test_parts_are_of_the_size_of_the_score() -> None:
    assert part_in_words(-0.5, -2.0) == "-25%"
    assert part_in_words(0.5, -2.0) == "+25%"
    assert part_in_words(30.0, 2.0) == "+2e+03%"
    assert part_in_words(0.25, 0.0) == "+0.250"
