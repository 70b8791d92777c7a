"""The HTML report: complete, harmless, readable, and all or nothing on disk."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from answers import HOSTILE, INDEX, answer, hit, hostile_answer
from wherefrom.errors import StorageError
from wherefrom.query.printable import excerpt, printable, printable_lines
from wherefrom.query.report import write_report
from wherefrom.query.wording import (
    NO_PROOF,
    certificate_in_words,
    filter_in_words,
    likelihood_in_words,
    signed,
)
from wherefrom.records import SCORE_CONTRACT, Certificate

FORBIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags, attributes, text, and whether every element is closed."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.style = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def values(self, name: str) -> list[str | None]:
        return [value for key, value in self.attributes if key == name]


def page(path: Path, *sections, notes=()) -> Page:
    return Page(write_report(sections, path / "report.html", notes=notes).read_text("utf-8"))


def test_report_tells_everything(tmp_path: Path) -> None:
    shown = page(tmp_path, ("Lincoln", answer()), notes=["Made for a test."])
    passage = answer(proponents=(hit(1, 1.0, parent_id="the book", char_start=77),))
    for expected in (
        "Lincoln",
        "Made for a test.",
        "The Union shall be preserved",
        "-3.250 nats over 2 tokens (-1.625 a token)",
        "year < 1900 and party is present",
        "+0.0123",
        "-0.00309",
        "speech 2",
        "message 9",
        "president Abraham Lincoln",
        "party –",
        certificate_in_words(answer().certificate),
        SCORE_CONTRACT,
        NO_PROOF,
        *(str(value) for value in INDEX.values()),
    ):
        assert expected in shown.text, expected
    assert "passage of the book, from character 77" in page(tmp_path, ("", passage)).text


def test_completion_alone_is_marked(tmp_path: Path) -> None:
    source = write_report([("", answer())], tmp_path / "report.html").read_text("utf-8")
    assert re.findall("<mark>(.*?)</mark>", source) == [" be preserved"]
    assert "<h2>Lincoln" not in source


def test_bars_are_relative_to_the_strongest_of_both_signs(tmp_path: Path) -> None:
    shown = page(tmp_path, ("", answer()))
    widths = [value for value in shown.values("width") if value != "100%"]
    assert widths == ["100.0%", "50.0%", "25.0%"]


def test_texts_are_whole_and_keep_their_lines(tmp_path: Path) -> None:
    long = "\n".join(f"line {i}" for i in range(3000))
    one = answer(proponents=(hit(1, 1.0, text=long),))
    source = write_report([("", one)], tmp_path / "report.html").read_text("utf-8")
    assert long in source


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path) -> None:
    sections = [(HOSTILE, hostile_answer())]
    source = write_report(sections, tmp_path / "r.html", notes=[HOSTILE]).read_text("utf-8")
    shown = Page(source)
    assert "script" not in shown.tags
    assert "<script>alert(1)</script> </style> [red]danger[/red]" in shown.text
    assert "{{ 7*7 }}" in shown.text
    assert not FORBIDDEN.search(source)


def test_page_needs_nothing_and_allows_nothing(tmp_path: Path) -> None:
    shown = page(tmp_path, ("", answer()))
    names = {name for name, _ in shown.attributes}
    assert not names & {"src", "href", "style", "srcset", "action"}
    assert not {name for name in names if name.startswith("on")}
    assert "url(" not in shown.style
    assert "@import" not in shown.style
    (policy,) = (v for v in shown.values("content") if v and "default-src" in v)
    digest = base64.b64encode(hashlib.sha256(shown.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


def test_page_fits_light_dark_phone_and_paper(tmp_path: Path) -> None:
    shown = page(tmp_path, ("", answer()))
    assert "prefers-color-scheme: dark" in shown.style
    assert "@media print" in shown.style
    assert "width=device-width, initial-scale=1" in shown.values("content")


def test_answers_of_tensors_and_without_documents(tmp_path: Path) -> None:
    empty = answer(
        query=None,
        proponents=(),
        opponents=(),
        certificate=Certificate("stored", True, 0, 0, None),
    )
    shown = page(tmp_path, ("", empty))
    assert "A tensor example" in shown.text
    assert "No document passes the filter." in shown.text


def test_each_index_is_told_of_once(tmp_path: Path) -> None:
    other = answer(index={**INDEX, "manifest_sha256": "ef" * 32})
    shown = page(tmp_path, ("a", answer()), ("b", answer()), ("c", other))
    assert shown.text.count("ab" * 32) == 1
    assert shown.text.count("ef" * 32) == 1


def test_answer_writes_its_own_report(tmp_path: Path) -> None:
    path = answer().to_html(tmp_path / "report.html")
    assert path == (tmp_path / "report.html").resolve()
    assert answer().to_html(path).stat().st_size > 1000  # Again, over the first.


@pytest.mark.parametrize("place", ["missing/report.html", "", "file/report.html"])
def test_places_that_take_no_report(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match=r"cannot write .*; .*choose another path"):
        write_report([("", answer())], tmp_path / place)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(StorageError, match="not a file"):
        write_report([("", answer())], "/dev/null")


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    write_report([("", answer())], tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert "be preserved" in (tmp_path / "real.html").read_text("utf-8")


def test_certificates_in_words() -> None:
    def words(*fields) -> str:
        return certificate_in_words(Certificate(*fields))

    certified = words("stored", True, 4321, 57, 0.00123456)
    assert certified.startswith("Certified: no stronger document exists among the 4,321 documents")
    assert "57 of them were scored in full" in certified
    assert "0.00123 nats at most" in certified
    assert "Each of them was scored in full" in words("exact", True, 5, 5, None)
    assert "uncompressed" in words("exact", True, 5, 5, None)
    assert words("stored", False, 9, 3, 0.1).startswith("Not certified: the best of 3 candidates")
    assert words("stored", True, 0, 0, None).startswith("Nothing was searched")


def test_filters_in_words() -> None:
    where = {
        "year": [(">=", 1861), ("<=", 1865)],
        "party": ("in", ["Whig", "Democratic"]),
        "war": True,
        "president": None,
        "share": 0.5,
    }
    assert filter_in_words(where) == (
        "year >= 1861 and year <= 1865 and party in Whig, Democratic and war = true and "
        "president is missing and share = 0.5"
    )


def test_likelihood_of_one_token_needs_no_mean() -> None:
    assert likelihood_in_words(answer(scored_tokens=1)) == "-3.250 nats over 1 token"


@pytest.mark.parametrize(
    ("score", "written"),
    [
        (0.0123456, "+0.0123"),
        (-0.01, "-0.0100"),
        (12.0, "+12.0"),
        (-123.4, "-123"),
        (1.5e-7, "+1.50e-07"),
    ],
)
def test_scores_have_a_sign_and_three_digits(score: float, written: str) -> None:
    assert signed(score) == written


@given(st.text(st.characters(), max_size=80))
def test_printable_text_is_harmless_and_stable(text: str) -> None:
    line = printable(text)
    assert not FORBIDDEN.search(line)
    assert "\n" not in line
    assert "\t" not in line
    assert printable(line) == line
    assert not FORBIDDEN.search(printable_lines(text))


@given(st.text(max_size=300), st.integers(8, 60))
def test_excerpts_keep_to_their_limit(text: str, limit: int) -> None:
    cut = excerpt(text, limit)
    assert len(cut) <= limit
    line = printable(text)
    assert cut == line if len(line) <= limit else cut.endswith("…")
    assert line.startswith(cut.removesuffix("…"))


def test_scripts_that_need_joiners_keep_them() -> None:
    text = "क्\u200dष 👩\u200d🚀 می\u200cکنم naïve"
    assert printable(text) == text
