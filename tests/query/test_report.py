"""The HTML report: complete, harmless, readable, and all or nothing on disk."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from answers import (
    CLASSIFIED,
    CONTRAST,
    HOSTILE,
    INDEX,
    QUERIES,
    annotated,
    annotated_hostile_answers,
    answer,
    certificate,
    every_answer,
    hit,
    hostile_answers,
)
from wherefrom.errors import StorageError
from wherefrom.query.answer import Answer
from wherefrom.query.measurement import measurement_of
from wherefrom.query.printable import excerpt, printable, printable_lines
from wherefrom.query.report import html as report
from wherefrom.query.report.html import write_report
from wherefrom.query.wording import (
    NO_PROOF,
    PERCENTILE,
    background_in_words,
    certificate_in_words,
    filter_in_words,
    index_in_words,
    percentile_in_words,
    residual_in_words,
    signed,
    worth_in_words,
)
from wherefrom.records import SCORE_CONTRACT, Background, Query, QuerySet, Recall

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
        self.source = source
        self.feed(source)
        self.close()
        assert self.open == []

    def texts_of(self, tag: str, kind: str = "") -> list[str]:
        """Texts of all innermost elements of a tag and class."""
        start = f"<{tag} " + rf'[^>]*class="{kind}"[^>]*' if kind else f"<{tag}[^>]*"
        found = re.findall(rf"{start}>(.*?)</{tag}>", self.source, re.DOTALL)
        return [html.unescape(re.sub("<[^>]*>", "", text)) for text in found]

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


def widths(shown: Page) -> list[str]:
    return re.findall('<rect width="(.*?)"', shown.source)


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
        certificate_in_words(answer()),
        SCORE_CONTRACT,
        NO_PROOF,
        *(value for _, value in index_in_words(INDEX)),
    ):
        assert expected in shown.text, expected
    assert "passage of the book, from character 77" in page(tmp_path, ("", passage)).text


def test_completion_alone_is_marked(tmp_path: Path) -> None:
    source = write_report([("", answer())], tmp_path / "report.html").read_text("utf-8")
    assert re.findall("<mark>(.*?)</mark>", source) == [" be preserved"]
    assert ">Lincoln<" not in source


def test_bars_are_relative_to_the_strongest_of_both_signs(tmp_path: Path) -> None:
    shown = page(tmp_path, ("", answer()))
    assert widths(shown) == ["100.0%", "50.0%", "25.0%"]


def test_texts_are_whole_and_keep_their_lines(tmp_path: Path) -> None:
    long = "\n".join(f"line {i}" for i in range(3000))
    one = answer(proponents=(hit(1, 1.0, text=long),))
    source = write_report([("", one)], tmp_path / "report.html").read_text("utf-8")
    assert long in source


@pytest.mark.parametrize(
    "hostile",
    [*hostile_answers(), *annotated_hostile_answers()],
    ids=lambda one: f"{'annotated' if one.groups else 'plain'}",
)
def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path, hostile: Answer) -> None:
    sections = [(HOSTILE, hostile), ("", hostile)]
    source = write_report(sections, tmp_path / "r.html", notes=[HOSTILE]).read_text("utf-8")
    shown = Page(source)
    asked = source[source.index("<h2") : source.index("<h3>")]
    queries = getattr(hostile.query, "queries", (hostile.query,))
    texts = sum(1 + 1 + bool(query.contrast) for query in queries)
    assert asked.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= texts
    assert "script" not in shown.tags
    assert "<script>alert(1)</script> </style> [red]danger[/red]" in shown.text
    assert "{{ 7*7 }}" in shown.text
    assert not FORBIDDEN.search(source)


@given(st.text(st.characters(), min_size=1, max_size=60))
@settings(max_examples=25)
def test_no_text_ever_makes_an_element(text: str) -> None:
    one = annotated(answer(proponents=(hit(1, 1.0, text=text, doc_id=text),), opponents=()))
    source = report._page([(text, one)], [text])
    plain = annotated(answer(proponents=(hit(1, 1.0, text="x", doc_id="x"),), opponents=()))
    allowed = {*Page(report._page([("x", plain)], ["x"])).tags, "details"}
    assert set(Page(source).tags) <= allowed
    assert not FORBIDDEN.search(source)


@pytest.mark.parametrize("name", every_answer())
def test_page_needs_nothing_and_allows_nothing(tmp_path: Path, name: str) -> None:
    one = every_answer()[name]
    shown = page(tmp_path, ("", one), ("again", one))
    names = {name for name, _ in shown.attributes}
    assert not names & {"src", "style", "srcset", "action", "xlink:href", "nonce"}
    assert not {name for name in names if name.startswith("on")}
    assert shown.values("href") == ["#answer-1", "#answer-2"]
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(shown.tags)
    assert "url(" not in shown.style
    assert "@import" not in shown.style
    (policy,) = (v for v in shown.values("content") if v and "default-src" in v)
    digest = base64.b64encode(hashlib.sha256(shown.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'")


@pytest.mark.parametrize("name", ["judged", "annotated set", "worse contrast"])
def test_same_answers_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    one = every_answer()[name]
    first = one.to_html(tmp_path / "first.html").read_bytes()
    assert replace(one, seconds=12.5).to_html(tmp_path / "second.html").read_bytes() == first


@pytest.mark.parametrize("name", [n for n in every_answer() if not n.startswith("hostile")])
def test_page_can_be_walked_by_ear_and_keyboard(tmp_path: Path, name: str) -> None:
    one = every_answer()[name]
    shown = page(tmp_path, ("", one), ("", one))
    assert '<html lang="en">' in shown.source
    assert shown.tags.count("h1") == shown.tags.count("main") == 1
    assert {"header", "nav", "footer"} <= set(shown.tags)
    levels = [int(tag[1]) for tag in shown.tags if re.fullmatch("h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels)), levels
    ids = shown.values("id")
    assert len(set(ids)) == len(ids)
    assert set(shown.values("aria-labelledby")) <= set(ids)
    assert shown.tags.count("table") == shown.tags.count("caption")
    for tag, attributes in re.findall("<(th)( [^>]*)?>", shown.source):
        assert "scope=" in attributes, tag
    for attributes in re.findall("<svg([^>]*)>", shown.source):
        assert 'aria-hidden="true"' in attributes
    for attributes in re.findall('<[a-z]+[^>]*tabindex="0"[^>]*>', shown.source):
        assert "<pre" in attributes or ("role=" in attributes and "aria-label=" in attributes)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_colours_can_be_read_in_light_and_dark(tmp_path: Path) -> None:
    style = page(tmp_path, ("", answer())).style
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    for part in (light, dark.split("* {")[0]):
        named = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", part))
        steps = [f"{kind}{step}" for kind in "rl" for step in range(1, 9)]
        for ground in ("paper", "panel", "mark", *steps):
            assert contrast(named["ink"], named[ground]) >= 4.5, ground
        for ground in ("paper", "panel"):
            for ink in ("faint", "pro", "con"):
                assert contrast(named[ink], named[ground]) >= 4.5, (ink, ground)
        assert contrast(named["frame"], named["paper"]) >= 3.0
        # Steps of a sign get ever stronger, in greys as well.
        for kind in "rl":
            reach = [contrast(named["paper"], named[f"{kind}{step}"]) for step in range(1, 9)]
            assert reach == sorted(reach)


def test_signs_of_tokens_differ_by_more_than_colour(tmp_path: Path) -> None:
    style = page(tmp_path, ("", answer())).style
    assert re.search(r"\.r8 \{ text-decoration: underline solid", style)
    assert re.search(r"\.l8 \{ text-decoration: underline dashed", style)


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
        certificate=certificate(documents=0, candidates=0),
    )
    shown = page(tmp_path, ("", empty))
    assert "Asked with tensors" in shown.text
    assert "The bars are relative" in shown.text
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


def words(**fields: object) -> str:
    """The words of a certificate in an answer of two proponents and an opponent."""
    said = {name: fields.pop(name) for name in ("normalise", "proponents") if name in fields}
    return certificate_in_words(answer(**said, certificate=certificate(**fields)))


def test_certificates_in_words() -> None:
    assert words() == (
        "Certified: no stronger document exists among the 4,321 documents searched, by the scores "
        "of the stored vectors. 57 of them were scored in full; bounds on all others rule them out "
        "(at most 0.00123 nats for proponents and 0.00099 nats for opponents)."
    )
    one_sign = words(next_opponent=None)
    assert one_sign.endswith("rule them out (at most 0.00123 nats for proponents).")
    assert words(next_opponent=None, next_proponent=None).endswith("all others rule them out.")
    everything = words(tier="exact", documents=57, next_opponent=None, next_proponent=None)
    assert "by scores of uncompressed gradients, computed anew" in everything
    assert everything.endswith("Each of them was scored in full.")
    assert words(certified=False).startswith("Not certified: the best of 57 candidates among 4,321")
    assert words(certified=False).endswith("a stronger document may be missing.")
    assert words(documents=0).startswith("Nothing was searched")


def test_backends_are_told_where_they_are_not_the_scan() -> None:
    assert "57 of them, proposed by faiss-flat, were scored" in words(backend="faiss-flat")
    assert "proposed" not in words()


def test_bounds_are_in_the_unit_of_the_ranking() -> None:
    cosine = words(normalise="cosine")
    assert "by the cosines of the stored vectors" in cosine
    assert "(at most a cosine of 0.00123 for proponents and a cosine of 0.00099" in cosine
    assert "0.00123 nats per unit of norm for proponents" in words(normalise="relatif")


def test_estimated_recall_in_words() -> None:
    recall = Recall(0.9712, 0.9, 1.0, 0.95, 32)
    fields = {"tier": "exact", "certified": False, "candidates": 232, "recall": recall}
    assert words(**fields) == (
        "Not certified: the best of 232 candidates among 4,321 documents, by scores of "
        "uncompressed gradients, computed anew; they are expected to hold 97% of the true top "
        "2 + 1 (95% interval 90% to 100%, from 32 random documents scored exactly)."
    )
    nearly = {**fields, "recall": Recall(0.9999, 0.998, 1.0, 0.95, 32)}
    assert "hold over 99% of" in words(**nearly), "only a certificate calls it all"
    assert "interval over 99% to 100%" in words(**nearly)
    none = answer(proponents=(), opponents=(), certificate=certificate(**fields))
    assert certificate_in_words(none).endswith("a stronger document may be missing.")
    alone = answer(opponents=(), certificate=certificate(**fields))
    assert "the true top 2 (95%" in certificate_in_words(alone)


@pytest.mark.parametrize(
    ("noise", "proponents", "opponents", "written"),
    [
        (
            None,
            (True, 100.0),
            (True, 97.0),
            "Proponents stand out: nearer than the best hits of 100% of 32 random documents in the "
            "query's place. Opponents stand out: nearer than the best hits of 97% of 32 random",
        ),
        (0.1, (False, 96.0), (None, None), "Proponents do not stand out: the encoder's own noise"),
        (None, (None, None), (None, None), None),
        (
            None,
            (None, None),
            (False, 50.0),
            "Opponents are not distinguishable from background: 50% of 32 random documents",
        ),
    ],
)
def test_verdicts_on_chance(
    tmp_path: Path,
    noise: float | None,
    proponents: tuple[bool | None, float | None],
    opponents: tuple[bool | None, float | None],
    written: str | None,
) -> None:
    verdicts = zip(proponents, opponents, strict=True)
    (ahead, behind), beyond = verdicts
    background = Background(5000, 32, noise, ahead, behind, *beyond)
    one = answer(certificate=certificate(background=background))
    said = background_in_words(one)
    if written is None:
        assert said is None
        assert "stand out" not in page(tmp_path, ("", one)).text
    else:
        assert said is not None
        assert said.startswith(written)
        assert said in page(tmp_path, ("", one)).text
    assert background_in_words(answer()) is None


def test_percentiles_reach_an_end_only_where_they_do() -> None:
    shown = {0.0: "0.0", 0.004: "0.1", 50.0: "50.0", 99.99: "99.9", 100.0: "100.0"}
    assert {value: percentile_in_words(value) for value in shown} == shown


def test_percentiles_and_rankings_in_reports(tmp_path: Path) -> None:
    plain = page(tmp_path, ("", answer())).text
    assert "ercentile" not in plain
    assert "ranked by" not in plain
    ranked = (hit(1, 0.5, percentile=99.97), hit(2, 0.25, percentile=98.0))
    shown = page(tmp_path, ("", answer(proponents=ranked, opponents=(), normalise="cosine")))
    for expected in (
        "more likely; ranked by cosine in the whitened space",
        "+5.00 cosine · +0.500 nats · percentile 99.9",
        "percentile 98.0",
        f"Percentile: {PERCENTILE}.",
    ):
        assert expected in shown.text, expected
    relatif = page(tmp_path, ("", answer(normalise="relatif")))
    assert "+0.00617 l-RelatIF · +0.0123 nats" in relatif.text


def test_bars_follow_the_ranking(tmp_path: Path) -> None:
    hits = (hit(1, 1.0, cosine=0.8), hit(2, 3.0, cosine=0.2))
    shown = page(tmp_path, ("", answer(proponents=hits, opponents=(), normalise="cosine")))
    assert widths(shown) == ["100.0%", "25.0%"]


def test_refined_questions_are_told_of(tmp_path: Path) -> None:
    shown = page(tmp_path, ("", answer(refined=5, damping=20.0, residual=0.6))).text
    assert "Refined: 5 steps of conjugate gradients on the Gauss-Newton matrix" in shown
    assert "damping 20 Residual: 0.6 of the query's gradient" in shown
    assert "Damping:" not in shown, "it is another matrix's"


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


def test_contrasts_in_reports(tmp_path: Path) -> None:
    one = answer(query=CONTRAST, log_likelihood=0.5, scored_tokens=4)
    source = write_report([("", one)], tmp_path / "report.html").read_text("utf-8")
    shown = Page(source)
    assert re.findall(r"<mark.*?>(.*?)</mark>", source) == [" be preserved", " be dissolved"]
    for expected in (
        "The Union shall be preserved Rather than: The Union shall be dissolved",
        "Measured: the completion's log-likelihood minus the contrast's, +0.500 nats over 4 tokens",
        "Proponents They favour the completion over the contrast",
        "Opponents They favour the contrast over the completion",
        measurement_of(CONTRAST).contract,
    ):
        assert expected in shown.text, expected
    assert "more likely" not in shown.text
    assert SCORE_CONTRACT not in shown.text


def test_sets_in_reports(tmp_path: Path) -> None:
    shown = page(tmp_path, ("", answer(query=QUERIES, scored_tokens=60)))
    for expected in (
        "Asked as one: the mean over 30 questions",
        "Question 20: answer 20 and 10 more",
        "Measured: the mean log-likelihood of the completions, -3.250 nats over 60 tokens",
        "Proponents They raise the mean log-likelihood",
        "Opponents They lower the mean log-likelihood",
    ):
        assert expected in shown.text, expected
    assert "Question 21" not in shown.text.split("To ask this again")[0]
    summed = page(tmp_path, ("", answer(query=QuerySet((CONTRAST, *QUERIES.queries[:1]), "sum"))))
    assert "the sum over 2 questions" in summed.text
    assert "Rather than: The Union shall be dissolved" in summed.text
    assert "Proponents They raise the summed difference" in summed.text
    assert " more" not in summed.text.split("Proponents")[0]


def test_labels_in_reports(tmp_path: Path) -> None:
    label = answer(
        query=Query("A fine film", "good"),
        index=CLASSIFIED,
        log_likelihood=-0.25,
        scored_tokens=1,
    )
    shown = page(tmp_path, ("", label))
    assert "A fine film Label: good Measured" in shown.text
    assert "the label's log-likelihood, -0.250 nats (probability 0.779)" in shown.text
    assert "Proponents They make the label more likely" in shown.text
    other = answer(query=Query("A fine film", "good", "bad"), index=CLASSIFIED, log_likelihood=2.0)
    shown = page(tmp_path, ("", other))
    assert "A fine film Label: good, rather than bad Measured" in shown.text
    assert "+2.000 nats over 2 labels" in shown.text
    assert "They favour the label over the contrast" in shown.text


def test_another_damping_and_residuals_are_told(tmp_path: Path) -> None:
    plain = page(tmp_path, ("", answer())).text.split("Proponents")[0]
    assert "Damping" not in plain
    assert "Residual" not in plain
    shown = page(tmp_path, ("", answer(damping=0.5, residual=0.00312))).text
    assert "Damping: 0.5 for this answer; the index was built with 0.1" in shown
    assert f"Residual: {residual_in_words(answer(residual=0.00312))}" in shown
    assert "0.0031 of the query's gradient" in shown
    assert "Residual: 0 of" in page(tmp_path, ("", answer(residual=0.0))).text


def test_each_contract_is_told_once(tmp_path: Path) -> None:
    shown = page(tmp_path, ("a", answer()), ("b", answer()), ("c", answer(query=CONTRAST)))
    assert shown.text.count(SCORE_CONTRACT) == 1
    assert shown.text.count("score = nats of") == 2


def test_contracts_fit_what_was_measured() -> None:
    assert measurement_of(Query("p", "c")).contract == SCORE_CONTRACT
    for query, objective, quantity in (
        (None, None, "the log-likelihood"),
        (Query("p", "c"), "sequence_classification", "the label's log-likelihood"),
        (CONTRAST, None, "the completion's log-likelihood minus the contrast's"),
        (QUERIES, None, "the mean log-likelihood of the completions"),
        (QUERIES, "sequence_classification", "the mean log-likelihood of the labels"),
        (
            QuerySet((CONTRAST,), "sum"),
            None,
            "the summed difference in log-likelihood, completion minus contrast",
        ),
    ):
        contract = measurement_of(query, objective).contract
        assert contract.startswith(f"score = nats of {quantity} per added copy of the document")
        assert contract.endswith(
            "positive = proponent (raises it), negative = opponent (lowers it)"
        )


@pytest.mark.parametrize(
    ("fields", "written"),
    [
        ({"scored_tokens": 1}, "-3.250 nats over 1 token"),
        ({}, "-3.250 nats over 2 tokens (-1.625 a token)"),
        ({"query": None}, "-3.250 nats over 2 predictions"),
        ({"query": CONTRAST, "log_likelihood": 1.0}, "+1.000 nats over 2 tokens"),
        ({"query": QUERIES}, "-3.250 nats over 2 tokens"),
        ({"query": QUERIES, "index": CLASSIFIED}, "-3.250 nats over 2 labels"),
    ],
)
def test_what_was_measured_is_worth(fields: dict[str, object], written: str) -> None:
    assert worth_in_words(answer(**fields)) == written


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
