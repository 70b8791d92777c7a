"""A real browser on the page, and answers made by hand that it is told."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import quote

from playwright.sync_api import Browser, Page, Route

from wherefrom.query.answer import Answer
from wherefrom.query.interpretation.explanation import (
    HitShares,
    LayerName,
    QuestionShares,
    TokenShare,
)
from wherefrom.serve.narration import answer_in_words

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}
LAYERS = tuple(
    LayerName(f"model.layers.{depth}.mlp.{module}", depth, f"mlp.{module}")
    for depth in range(2)
    for module in ("up_proj", "down_proj")
)
READY = "#index-facts:not(:empty), dialog[open]"
GLIDED = """Promise.allSettled(document.getAnimations()
.filter((one) => Number.isFinite(one.effect.getComputedTiming().endTime))
.map((one) => one.finished)).then(() => null)"""
Told = tuple[str, Any]


@dataclass
class Visit:
    """A page that is open in a browser, and what it did.

    Attributes:
        page: The page.
        home: Its URL.
        requests: Every URL that was requested, and the JSON that was posted there.
        faults: Errors of scripts, violations of the content security policy, dialogs.
    """

    page: Page
    home: str
    requests: list[tuple[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def ask(self, prompt: str, completion: str) -> None:
        """Asks with the form, and waits for the end of the answer."""
        self.page.fill("[name=prompt]", prompt)
        self.page.fill("[name=completion]", completion)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.settle()

    def settle(self) -> None:
        """Waits until no answer streams in."""
        self.page.wait_for_selector("#answer[aria-busy=false]", timeout=60_000)
        self.page.evaluate(GLIDED)

    def posted(self, path: str) -> list[Any]:
        """What was posted to a path."""
        return [body for url, body in self.requests if url == self.home + path]

    def hits(self) -> list[str]:
        """Ids of the documents in the open list, as they are ordered."""
        found = self.page.locator(".hits > li").evaluate_all(
            "all => all.map((one) => one.dataset.docId)"
        )
        return [str(doc_id) for doc_id in found]


@contextmanager
def visit(browser: Browser, home: str, **options: Any) -> Iterator[Visit]:
    """The page, in a fresh profile; leaving fails if it did what it must not."""
    context = browser.new_context(viewport=DESKTOP, **options)
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=home.rstrip("/"))
    page = context.new_page()
    visited = Visit(page, home)

    def log(route: Route) -> None:
        request = route.request
        visited.requests.append((request.url, json.loads(request.post_data or "null")))
        if request.url.startswith(home):
            route.fallback()
        else:
            route.abort()

    context.route("**/*", log)
    page.on("pageerror", lambda error: visited.faults.append(str(error)))
    page.on("dialog", lambda dialog: (visited.faults.append(dialog.message), dialog.dismiss()))
    page.on("console", lambda told: complain(visited, told.type, told.text))
    page.goto(home)
    page.wait_for_selector(READY)
    try:
        yield visited
    finally:
        context.close()
    assert visited.faults == []
    assert [url for url, _ in visited.requests if not url.startswith(home)] == []


def complain(visited: Visit, kind: str, text: str) -> None:
    """Keeps errors but those that the browser writes of every response that is one."""
    if kind in ("error", "warning") and not text.startswith("Failed to load resource"):
        visited.faults.append(text)


def tell(visited: Visit, events: Sequence[Told]) -> None:
    """Lets the service's next answers be these events."""
    body = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in events)
    visited.page.route(
        "**/v1/query/stream",
        lambda route: route.fulfill(
            status=200, headers={"content-type": "text/event-stream"}, body=body
        ),
    )


def told(answer: Answer, kind: str = "stored") -> list[Told]:
    """An answer as it is streamed, with its words."""
    return [(kind, answer.to_dict()), ("words", answer_in_words(answer))]


def shares_of(doc_id: str, text: str, carried: Sequence[float], question: Any = None) -> Told:
    """Shares of one hit: one for each word of its text, and perhaps of a question's words."""
    asked = None
    if question is not None:
        asked_text, asked_shares = question
        asked = (QuestionShares(1.0, asked_text, word_shares(asked_text, asked_shares)),)
    total = float(sum(carried))
    hit = HitShares(
        doc_id,
        total,
        tuple(total * part for part in (0.1, 0.2, 0.3, 0.4)),
        word_shares(text, carried),
        0.0,
        asked,
        0.0,
    )
    layers = [asdict(layer) for layer in LAYERS]
    return "shares", {"layers": layers, "tokens_are": "predictions", "hit": asdict(hit)}


def word_shares(text: str, shares: Sequence[float | None]) -> tuple[TokenShare, ...]:
    """A token for each word with the space before it; words past the last share have 0."""
    words = list(re.finditer(r"\s*\S+", text))
    padded = [*shares, *[0.0] * (len(words) - len(shares))]
    return tuple(
        TokenShare(word.group(), word.start(), word.end(), share)
        for word, share in zip(words, padded, strict=True)
    )


def fragment(**question: Any) -> str:
    """The fragment that asks a question."""
    return "#ask=" + quote(json.dumps(question))
