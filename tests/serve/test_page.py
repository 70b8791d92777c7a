"""The page, in a real browser."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright")

from playwright.sync_api import Browser, expect, sync_playwright

import wherefrom as wf
from answers import HOSTILE, answer, certificate, compared, hit
from browser import CHROMIUM, PHONE, Visit, fragment, shares_of, tell, told, visit
from served import COMPLETION, HOSTILE_TEXT, PROMPT, TOKEN, Running, running
from wherefrom.query.export.schema import answer_schema
from wherefrom.query.interpretation.explanation import Group, Grouping
from wherefrom.query.replay import replay_command
from wherefrom.records import Background, Query
from wherefrom.serve.app import PAGE

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")

LIKE_CHANCE = Background(8192, 32, None, False, True, 56.25, 98.0)
ODD = re.compile(
    "[" + "".join(chr(c) for c in (*range(9), *range(11, 32), *range(127, 160))) + "\u202a-\u202e]"
)
HOSTILE_JSON = HOSTILE.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that containers lack; the page's is not its business.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def home(browser: Browser, server: Running) -> Iterator[Visit]:
    with visit(browser, server.url) as visited:
        yield visited


def two_hits(**fields: Any) -> wf.Answer:
    return answer(
        proponents=(hit(1, 0.4, doc_id="first"), hit(2, 0.3, doc_id="second")),
        opponents=(hit(1, -0.2, doc_id="against"),),
        **fields,
    )


def test_an_answer_is_what_the_library_gives(home: Visit, index: wf.Index) -> None:
    expected = index.query(prompt=PROMPT, completion=COMPLETION, rerank="recompute")
    home.page.locator(".options summary").click()
    home.page.select_option("[name=rerank]", "recompute")
    home.ask(PROMPT, COMPLETION)
    assert home.hits() == [one.doc_id for one in expected.proponents]
    home.page.get_by_role("tab", name="Opponents").click()
    assert home.hits() == [one.doc_id for one in expected.opponents]
    expect(home.page.get_by_role("region", name="Certificate")).to_contain_text("exact")
    home.page.get_by_role("button", name="Copy as JSON").click()
    copied = json.loads(home.page.evaluate("navigator.clipboard.readText()"))
    plain = expected.to_dict()
    assert copied["proponents"] == plain["proponents"]
    assert copied["certificate"] == plain["certificate"]
    pytest.importorskip("jsonschema").validate(copied, json.loads(answer_schema()))
    explained = {one["doc_id"]: one["score"] for one in copied["explanation"]["hits"]}
    assert explained == pytest.approx({one.doc_id: one.score for one in expected.hits})


def test_the_question_never_stands_in_a_url_that_is_sent(home: Visit) -> None:
    home.ask("a private prompt", " shall be preserved")
    assert home.page.url.startswith(home.home + "#ask=")
    assert [url for url, _ in home.requests if "private" in url] == []
    assert home.posted("v1/query/stream")[0]["prompt"] == "a private prompt"


@pytest.mark.parametrize("size", [None, PHONE])
def test_a_list_like_background_is_said_to_be_so(home: Visit, size: Any) -> None:
    if size is not None:
        home.page.set_viewport_size(size)
    tell(home, told(two_hits(certificate=certificate(background=LIKE_CHANCE))))
    home.ask("The Union shall", " be preserved")
    warning = home.page.get_by_role("region", name="Against background")
    expect(warning.get_by_role("heading")).to_contain_text(
        "Proponents not distinguishable from background"
    )
    expect(warning).to_contain_text("44% of 32 random documents")
    expect(warning).to_be_in_viewport()
    expect(home.page.get_by_role("tab", name="Proponents")).to_contain_text("like background")
    expect(home.page.get_by_role("tab", name="Opponents")).not_to_contain_text("background")


def test_exact_scores_put_hits_in_another_order(home: Visit) -> None:
    home.page.emulate_media(reduced_motion="reduce")
    stored = two_hits()
    exact = replace(
        stored,
        proponents=(hit(1, 0.5, doc_id="second"), hit(2, 0.1, doc_id="first")),
        certificate=certificate(tier="exact"),
    )
    tell(home, told(stored))
    home.ask("The Union shall", " be preserved")
    assert home.hits() == ["first", "second"]
    expect(home.page.locator(".hit .tier").first).to_have_text("stored")
    tell(home, [*told(stored), *told(exact, "answer"), ("done", {})])
    home.page.get_by_role("button", name="Ask", exact=True).click()
    home.settle()
    assert home.hits() == ["second", "first"]
    expect(home.page.locator(".hit .tier").first).to_have_text("exact")
    expect(home.page.locator(".hit .score").first).to_contain_text("+0.500")


def test_an_answer_that_breaks_off_can_be_asked_again(home: Visit) -> None:
    tell(home, told(two_hits()))
    home.ask("The Union shall", " be preserved")
    expect(home.page.get_by_role("alert")).to_contain_text("broke off")
    tell(home, [*told(two_hits()), ("done", {})])
    home.page.get_by_role("button", name="Try again").click()
    expect(home.page.get_by_role("alert")).to_be_hidden()


def test_an_error_within_the_stream_is_shown(home: Visit) -> None:
    tell(home, [*told(two_hits()), ("error", {"error": "QueryError", "detail": "no such token"})])
    home.ask("The Union shall", " be preserved")
    expect(home.page.get_by_role("alert")).to_contain_text("No such token.")


def test_colours_lie_on_the_characters_of_their_tokens(home: Visit) -> None:
    text = "🦅nion 🇺🇸 shall\x1b be \u202epreserved\u202c ever"
    made = two_hits()
    made = replace(made, proponents=(hit(1, 1.0, doc_id="first", text=text),))
    carried = [0.5, -0.25, 0.0, 0.4, 0.3]
    tell(home, [*told(made), shares_of("first", text, carried), ("done", {})])
    home.ask("The Union shall", " be preserved")
    coloured = home.page.locator(".hit-text .token").evaluate_all(
        "all => all.map((one) => [one.textContent, one.className, one.title])"
    )
    assert coloured[0] == ["🦅nion", "token raises strong", "+0.500 nats"]
    assert coloured[1] == ["🇺🇸", "token lowers strong", "-0.250 nats"]
    shown = home.page.locator(".hit-text").text_content()
    assert shown is not None
    assert "shallU+001B be U+202EpreservedU+202C ever" in shown


def test_a_token_of_the_question_leads_to_the_hits_that_draw_on_it(home: Visit) -> None:
    asked = "The Union shall be preserved"
    shares = {"first": [None, 0.0, 0.0, 0.39, 0.01], "second": [None, 0.0, 0.0, 0.01, 0.29]}
    events = [
        shares_of(doc_id, hit(1, 1.0).text, [sum(filter(None, given))], (asked, given))
        for doc_id, given in shares.items()
    ]
    tell(home, [*told(two_hits()), *events, ("done", {})])
    home.ask("The Union shall", " be preserved")
    preserved = home.page.get_by_role("button", name="preserved", exact=True)
    expect(home.page.locator(".tokens [aria-disabled=true]")).to_have_text("The")
    preserved.click()
    assert home.hits() == ["second", "first"]
    expect(preserved).to_have_attribute("aria-pressed", "true")
    expect(home.page.locator(".hit.dimmed")).to_have_attribute("data-doc-id", "first")
    expect(home.page.locator(".hit .flow").first).to_contain_text("+0.290 nats")
    home.page.get_by_role("button", name="Clear").click()
    assert home.hits() == ["first", "second"]
    home.page.get_by_role("button", name="Show what of the question second carries").click()
    expect(home.page.locator("#question-note")).to_contain_text("proponent 2")
    expect(preserved).to_have_attribute("title", "+0.290 nats")


def test_tokens_of_the_question_are_reached_by_keys(home: Visit) -> None:
    home.ask(PROMPT, COMPLETION)
    tokens = home.page.locator(".tokens [role=button]")
    assert tokens.evaluate_all("all => all.filter((one) => one.tabIndex === 0).length") == 1
    tokens.first.focus()
    for _ in range(tokens.count() - 1):
        home.page.keyboard.press("ArrowRight")
    home.page.keyboard.press("Space")
    expect(tokens.last).to_have_attribute("aria-pressed", "true")
    expect(tokens.last).to_be_focused()


def test_a_span_marked_by_keys_is_traced(home: Visit) -> None:
    home.ask(PROMPT, COMPLETION)
    home.page.get_by_role("button", name="Open long speech#0").click()
    reader = home.page.get_by_role("dialog")
    expect(reader).to_contain_text("by law and not by war")
    trace = reader.get_by_role("button", name="Trace this span")
    expect(trace).to_be_disabled()
    for _ in range(3):
        home.page.keyboard.press("ArrowRight")
    home.page.keyboard.press("Shift+ArrowRight")
    expect(trace).to_be_enabled()
    home.page.keyboard.press("Enter")
    home.settle()
    asked = home.posted("v1/query/stream")[-1]
    assert (asked["prompt"], asked["completion"]) == ("the union", " shall be")
    expect(reader).to_be_hidden()


def test_a_span_marked_with_the_mouse_is_traced_and_back_leads_back(home: Visit) -> None:
    home.ask(PROMPT, COMPLETION)
    before = home.hits()
    home.page.get_by_role("button", name="Open long speech#0").click()
    text = home.page.locator(".reader-text")
    expect(text).to_be_visible()
    box = text.bounding_box()
    assert box is not None
    home.page.mouse.move(box["x"] + 60, box["y"] + 22)
    home.page.mouse.down()
    home.page.mouse.move(box["x"] + 150, box["y"] + 22, steps=4)
    home.page.mouse.up()
    home.page.get_by_role("button", name="Trace this span").click()
    home.settle()
    asked = home.posted("v1/query/stream")[-1]
    assert "the union shall be preserved ".startswith(asked["prompt"] + asked["completion"])
    assert asked["completion"].strip() == asked["completion"].lstrip() != ""
    posts = len(home.posted("v1/query/stream"))
    home.page.go_back()
    expect(home.page.locator("[name=completion]")).to_have_value(COMPLETION)
    home.settle()
    assert home.hits() == before
    assert len(home.posted("v1/query/stream")) == posts


SPANS = [
    ("one two three", (4, 7), 99, ("one", " two")),
    ("one two three", (5, 6), 99, ("one", " two")),
    ("one two three", (3, 9), 99, ("one", " two three")),
    ("one two three", (0, 2), 99, ("", "one")),
    ("one, two three", (3, 8), 99, ("one,", " two")),
    ("one two three", (8, 13), 5, ("two", " three")),
    ("one\ntwo", (4, 7), 99, ("one\n", "two")),
    ("🦅🦅 two", (3, 4), 99, ("🦅🦅", " two")),
]


def test_spans_are_whole_words_after_the_text_before_them(home: Visit) -> None:
    found = home.page.evaluate(
        """async (cases) => {
          const { questionOfSpan, wholeWords } = await import("./page/reader.js");
          return cases.map(([text, [start, end], most]) => {
            const characters = Array.from(text);
            const span = wholeWords(characters, start, end);
            const { prompt, completion } = questionOfSpan(characters, span, most);
            return [prompt, completion];
          });
        }""",
        [case[:3] for case in SPANS],
    )
    assert found == [list(case[3]) for case in SPANS]


def test_filters_are_typed(home: Visit) -> None:
    def add(column: str, operator: str, value: str | None) -> None:
        home.page.get_by_role("button", name="Add a filter").click()
        row = home.page.get_by_role("group", name="Filter", exact=True).last
        row.get_by_label("Column").select_option(column)
        row.get_by_label("Operator").select_option(operator)
        if value is not None:
            row.get_by_label("Value").fill(value)

    add("year", "≥", "1800")
    add("year", "not in", "1810, 1811")
    add("party", "in", 'Whig, "a, ""b"""')
    add("party", "is present", None)
    home.ask(PROMPT, COMPLETION)
    where = {
        "year": [[">=", 1800], ["not in", [1810, 1811]]],
        "party": [["in", ["Whig", 'a, "b"']], ["!=", None]],
    }
    assert home.posted("v1/query/stream")[0]["where"] == where
    home.page.reload()
    home.settle()
    assert home.posted("v1/query/stream")[-1]["where"] == where
    home.page.locator(".hit .metadata button", has_text="Whig").first.click()
    home.settle()
    assert home.posted("v1/query/stream")[-1]["where"]["party"] == [["==", "Whig"]]


def test_sums_are_shown_by_column(home: Visit, index: wf.Index) -> None:
    expected = index.groups(wf.Query(PROMPT, COMPLETION), by="party")
    home.ask(PROMPT, COMPLETION)
    home.page.get_by_role("tab", name="Sums").click()
    home.page.get_by_label("Sum influence by").last.select_option("party")
    rows = home.page.locator(".sum-table tbody tr")
    expect(rows).to_have_count(len(expected.groups))
    expect(rows.first).to_contain_text(f"{expected.groups[0].total:+.3g}"[:5])


def test_a_token_is_asked_for_and_kept_in_the_tab(browser: Browser, index: wf.Index) -> None:
    with running(index, token=TOKEN) as locked, visit(browser, locked.url) as visited:
        field = visited.page.get_by_role("textbox", name="Token")
        use = visited.page.get_by_role("button", name="Use it")
        field.fill("a wrong one of sixteen and more")
        use.click()
        expect(visited.page.get_by_text("That token was not accepted.")).to_be_visible()
        field.fill(TOKEN)
        use.click()
        expect(visited.page.get_by_role("dialog")).to_be_hidden()
        visited.ask(PROMPT, COMPLETION)
        assert visited.hits()
        visited.page.reload()
        visited.settle()
        assert visited.hits()
        assert TOKEN not in visited.page.url
        assert visited.page.evaluate("localStorage.length") == 0


def test_a_full_queue_is_said_with_a_way_to_try_again(home: Visit) -> None:
    home.page.route(
        "**/v1/query/stream",
        lambda route: route.fulfill(
            status=429,
            headers={"content-type": "application/json", "retry-after": "3"},
            body=json.dumps({"error": "BusyError", "detail": "8 questions wait already"}),
        ),
    )
    home.ask(PROMPT, COMPLETION)
    alert = home.page.get_by_role("alert")
    expect(alert).to_contain_text("8 questions wait already. Try again in 3 seconds.")
    home.page.unroute("**/v1/query/stream")
    home.page.get_by_role("button", name="Try again").click()
    home.settle()
    expect(alert).to_be_hidden()
    assert home.hits()


def test_errors_of_the_question_are_one_line(home: Visit) -> None:
    home.page.fill("[name=prompt]", PROMPT)
    home.page.get_by_role("button", name="Ask", exact=True).click()
    assert home.posted("v1/query/stream") == []  # The browser says that a completion is missing.
    home.page.goto(home.home + fragment(completion=COMPLETION, where={"nowhere": [["==", 1]]}))
    expect(home.page.get_by_role("alert")).to_contain_text("No metadata column 'nowhere'")


def test_nothing_that_documents_say_is_run_or_reordered(home: Visit) -> None:
    bad = HOSTILE_JSON + ' <img src="https://example.org/x.png"> javascript:alert(1)'
    made = answer(
        query=Query(bad, bad),
        proponents=(hit(1, 0.5, doc_id=bad, text=bad, metadata={bad: bad}, parent_id=bad),),
        opponents=(),
        where={},
        index={**answer().index, "path": bad},
    )
    events = [*told(made), shares_of(bad, bad, [0.5, -0.5], (bad, [0.1])), ("done", {})]
    tell(home, events)
    home.page.goto(home.home + fragment(prompt=bad, completion=bad, contrast=bad))
    home.settle()
    assert not ODD.search(home.page.evaluate("document.body.textContent"))
    attributes = home.page.evaluate(
        """[...document.querySelectorAll("*")].flatMap((e) => [...e.attributes])
        .filter((a) => a.name !== "data-doc-id").map((a) => a.value)"""
    )
    assert [value for value in attributes if ODD.search(value)] == []
    assert home.page.locator("#answer img, #answer script, #answer a").count() == 0
    expect(home.page.locator(".hit-text")).to_contain_text("U+202E")


def test_a_hostile_document_of_the_index_is_read_as_text(home: Visit) -> None:
    home.page.goto(home.home + fragment(prompt=PROMPT, completion=COMPLETION, k=30))
    home.settle()
    if "<b>harm</b>" not in home.hits():
        home.page.get_by_role("tab", name="Opponents").click()
    home.page.get_by_role("button", name="Open <b>harm</b>").click()
    text = home.page.locator(".reader-text")
    expect(text).to_contain_text("<img src=x onerror=alert(1)>")
    spelled = "".join(
        f"U+{ord(c):04X}" if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\t" else c
        for c in HOSTILE_TEXT
    )
    assert text.text_content() == spelled


def copied(home: Visit) -> str:
    return str(home.page.evaluate("navigator.clipboard.readText()"))


def test_the_command_is_the_one_of_reports(home: Visit, index: wf.Index) -> None:
    where = {"party": [["in", ["Whig", "Democratic"]]], "year": [["<", 1900]]}
    asked = {"completion": COMPLETION, "where": where, "group_by": ["party"], "k": 3}
    home.page.goto(home.home + fragment(prompt="it's\n\x1b[31m\u202e", **asked))
    home.settle()
    home.page.get_by_role("button", name="Copy as command").click()
    expect(home.page.get_by_role("status")).to_have_text("Copied")
    command = copied(home)
    assert not ODD.search(command)
    assert command.startswith(f"wherefrom query {index.path.name} --prompt $'it\\'s\\n\\x1b[31m")
    assert command.endswith("--where 'year < 1900' --explain --similar --group-by party")
    assert "-k 3 --rerank recompute" in command


def test_a_question_that_no_command_line_holds_has_no_command(home: Visit) -> None:
    tell(home, [*told(two_hits(where={"party": ("==", " Whig ")})), ("done", {})])
    home.ask("The Union shall", " be preserved")
    expect(home.page.get_by_role("button", name="Copy as JSON")).to_be_visible()
    expect(home.page.get_by_role("button", name="Copy as command")).to_have_count(0)


NO_CLIPBOARD = {
    "insecure": 'Object.defineProperty(navigator, "clipboard", {value: undefined})',
    "denied": """() => {
      navigator.clipboard.writeText = async () => {
        throw new DOMException("no", "NotAllowedError");
      };
    }""",
}


@pytest.mark.parametrize("reason", NO_CLIPBOARD)
def test_without_a_clipboard_texts_are_shown_to_be_copied(home: Visit, reason: str) -> None:
    home.page.evaluate(NO_CLIPBOARD[reason])
    bad = "two\n\x1b[31m\u202e\U000e0001 end"
    made = answer(proponents=(hit(1, 0.5, doc_id=bad, text=bad),), opponents=())
    tell(home, [*told(made), ("done", {})])
    home.ask("The Union shall", " be preserved")
    home.page.get_by_role("button", name="Copy as JSON").click()
    field = home.page.get_by_role("textbox", name="Text to copy")
    expect(field).to_be_focused()
    shown = field.input_value()
    assert not ODD.search(shown)
    assert "\U000e0001" not in shown
    assert json.loads(shown)["proponents"] == made.to_dict()["proponents"]
    marked = field.evaluate("(field) => [field.selectionStart, field.selectionEnd]")
    assert marked == [0, len(shown)]
    home.page.get_by_role("button", name="Close", exact=True).click()
    home.page.get_by_role("button", name="Copy as command").click()
    expect(field).to_have_value(str(replay_command(made)))


def test_parts_on_no_text_are_told_and_sum_to_the_score(home: Visit) -> None:
    text, question = "law and order", "The Union shall be preserved"
    kind, data = shares_of("first", text, [0.25, -0.5, 0.125], (question, [None, 0.5]))
    special = {"text": "", "start": 0, "end": 0, "share": 2.0}
    end = {"text": "", "start": 13, "end": 13, "share": -0.5}
    shares = data["hit"]
    shares["tokens"] = [special, *shares["tokens"], end]
    shares |= {"elsewhere": 0.25, "score": 1.625, "question_elsewhere": 0.125}
    asked = shares["question"][0]
    asked["tokens"] = [{**special, "share": 1.0}, *asked["tokens"]]
    made = answer(proponents=(hit(1, 1.625, doc_id="first", text=text),), opponents=())
    tell(home, [*told(made), (kind, data), ("done", {})])
    home.ask("The Union shall", " be preserved")
    number = r"([+-][\d.]+) nats"
    sentence = re.compile(
        rf"{number} lie on the text itself; {number} lie on special tokens, which stand for no "
        rf"text; {number} come from layers that see no tokens\."
    )
    for place in (".hit-facts", "#question-note"):
        words = home.page.locator(place).text_content()
        assert words is not None
        (parts,) = sentence.findall(words)
        assert sum(map(float, parts)) == 1.625, place
    assert parts == ("+0.500", "+1.00", "+0.125")


def test_runs_of_few_words_are_not_shown(home: Visit) -> None:
    made = compared(answer())
    assert made.similarity is not None
    alike = asdict(made.similarity)
    tell(home, [*told(answer()), ("similarity", alike), ("done", {})])
    home.ask("The Union shall", " be preserved")
    home.page.select_option("#paint", "shared")
    expect(home.page.locator(".hit-text mark")).to_have_text("Union shall be")
    expect(home.page.locator(".hits")).to_contain_text("3 shared words: “Union shall be”")
    for one in (*alike["hits"], *alike["most_similar"]):
        one["shared_words"] = min(2, one["shared_words"])
    tell(home, [*told(answer()), ("similarity", alike), ("done", {})])
    home.page.get_by_role("button", name="Ask", exact=True).click()
    home.settle()
    expect(home.page.locator(".hit-text mark")).to_have_count(0)
    expect(home.page.locator(".hits")).not_to_contain_text("shared word")
    home.page.get_by_role("tab", name="Alike in words").click()
    expect(home.page.locator(".similar-list")).to_contain_text("message 77")
    expect(home.page.locator(".similar-list")).not_to_contain_text("shared word")


def test_of_very_many_groups_both_ends_are_shown(home: Visit) -> None:
    groups = tuple(Group(f"g{n:02}", 1, 50.0 - n, 50.0 - n, 50.0 - n, 0.0) for n in range(99))
    many = asdict(Grouping("party", "stored", 0.95, 100, groups))
    tell(home, [*told(two_hits()), ("groups", many), ("done", {})])
    home.ask("The Union shall", " be preserved")
    home.page.get_by_role("tab", name="Sums").click()
    rows = home.page.locator(".sum-table tbody tr").evaluate_all(
        "all => all.map((row) => row.cells[0].textContent)"
    )
    shown = [f"g{n:02}" for n in (*range(12), *range(87, 99))]
    assert rows == [*shown[:12], "and 75 more between", *shown[12:]]


def test_every_control_has_a_name_and_every_id_is_one(home: Visit) -> None:
    home.ask(PROMPT, COMPLETION)
    home.page.get_by_role("button", name="Add a filter").click()
    nameless = home.page.evaluate(
        """[...document.querySelectorAll("button, input, select, textarea, [role=button]")]
        .filter((e) => !(e.labels?.length || e.ariaLabel || e.textContent.trim()))
        .map((e) => e.outerHTML)"""
    )
    assert nameless == []
    ids = home.page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_readable(home: Visit, scheme: Any) -> None:
    home.page.emulate_media(color_scheme=scheme)
    contrasts = home.page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const light = (name) => {
            const probe = document.createElement("canvas").getContext("2d");
            probe.fillStyle = style.getPropertyValue(name).trim();
            probe.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...probe.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
              .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const found = {};
          for (const ink of ["--ink", "--faint", "--pro", "--con"])
            for (const paper of ["--paper", "--card"]) {
              const [a, b] = [light(ink), light(paper)].sort((x, y) => y - x);
              found[`${ink} on ${paper}`] = (a + 0.05) / (b + 0.05);
            }
          return found;
        }"""
    )
    assert [pair for pair, contrast in contrasts.items() if contrast < 4.5] == []


def test_a_phone_needs_no_sideways_scrolling(home: Visit) -> None:
    home.page.set_viewport_size(PHONE)
    home.ask(PROMPT, COMPLETION)
    for tab in home.page.get_by_role("tab").all():
        tab.click()
        assert home.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_page_names_no_other_place_and_its_files_are_short() -> None:
    for path in sorted(PAGE.iterdir()):
        text = path.read_text()
        assert len(text.splitlines()) < 400, path
        namespaces = ("http://www.w3.org/2000/svg",)
        urls = [url for url in re.findall(r"https?://[^\"'\s)]+", text) if url not in namespaces]
        assert urls == [], path
        for inline in (".innerHTML", "insertAdjacentHTML", "document.write", "eval(", ' style="'):
            assert inline not in text, path
    assert re.findall(r"<script(?![^>]*\ssrc=)", Path(PAGE / "index.html").read_text()) == []
