"""The report in a real browser: nothing is asked for, nothing runs, nothing is cut off."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright")

from playwright.sync_api import Browser, sync_playwright

from answers import annotated_hostile_answers, every_answer
from wherefrom.query.report.html import write_report

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that containers lack; the page's is not its business.
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    one = every_answer()["annotated judged"]
    sections = [("", one), *(("", hostile) for hostile in annotated_hostile_answers())]
    return write_report(sections, tmp_path_factory.mktemp("report") / "report.html")


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_report_in_a_browser(browser: Browser, report: Path, width: int, scheme: str) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=True
    )
    page = context.new_page()
    told: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: told.append(message.text))
    page.on("dialog", lambda dialog: told.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert told == [], "the browser refuses nothing, for the page asks for nothing"
    assert asked == [report.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    styled = page.evaluate("getComputedStyle(document.querySelector('.r8')).backgroundColor")
    assert styled == ("rgb(98, 164, 236)" if scheme == "light" else "rgb(31, 99, 181)")
    context.close()
