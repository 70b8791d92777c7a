"""Takes the screenshots of ``docs/images`` from a service over an index.

``python docs/screenshots.py INDEX`` serves the index and asks it with a real Chromium. Sizes are
fixed; what is seen on them depends on the index.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parent / "images"
PROMPT, COMPLETION = "The Union shall", " be preserved"
DESKTOP = {"width": 1280, "height": 1000}
PHONE = {"width": 390, "height": 844}
PATIENCE = 120_000  # milliseconds


@contextmanager
def served(index: str) -> Iterator[str]:
    """The URL of a service over an index."""
    command = [sys.executable, "-m", "wherefrom", "serve", index, "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for told in process.stderr:
                found = re.search(r"http://\S+", told)
                if found:
                    yield found.group()
                    return
                print(told, end="", file=sys.stderr)
            raise SystemExit(f"wherefrom serve {index} ended without an address")
        finally:
            process.terminate()


def asked(browser: Browser, url: str, size: dict[str, int], scheme: str) -> Page:
    """The page with an answer, all of it."""
    page = browser.new_page(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    page.goto(url)
    page.fill("[name=prompt]", PROMPT)
    page.fill("[name=completion]", COMPLETION)
    page.get_by_role("button", name="Ask", exact=True).click()
    finish(page)
    return page


def finish(page: Page) -> None:
    """Waits for the end of an answer."""
    page.wait_for_selector("#answer[aria-busy=false]", timeout=PATIENCE)
    expect(page.get_by_role("alert")).to_be_hidden()


def shoot(page: Page, name: str) -> None:
    """Keeps what is seen."""
    page.screenshot(path=IMAGES / f"{name}.png")


def take(browser: Browser, url: str) -> None:
    """All screenshots."""
    page = asked(browser, url, DESKTOP, "light")
    shoot(page, "page")
    page.locator(".tokens [role=button]").last.click()
    shoot(page, "page-token")
    page.get_by_role("button", name="Clear").click()
    page.get_by_role("tab", name="Sums").click()
    page.locator("#sum-by").select_option("president")
    page.wait_for_selector(".sum-table", timeout=PATIENCE)
    shoot(page, "page-sums")
    page.get_by_role("tab", name="Alike").click()
    shoot(page, "page-alike")
    page.get_by_role("tab", name="Proponents").click()
    page.get_by_role("button", name=re.compile("^Open ")).first.click()
    reader = page.get_by_role("dialog")
    expect(reader).to_be_visible()
    expect(reader.locator(".neighbours button").first).to_be_visible()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    expect(reader.locator("[data-part=span]")).to_contain_text("Marked: “obeying the")
    shoot(page, "page-document")
    shoot(asked(browser, url, DESKTOP, "dark"), "page-dark")
    phone = asked(browser, url, PHONE, "light")
    phone.evaluate("document.getElementById('answer').scrollIntoView()")
    shoot(phone, "page-phone")


def main() -> None:
    """Serve, ask, shoot."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python docs/screenshots.py INDEX")
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("chromium is not installed; on Debian: apt-get install chromium")
    IMAGES.mkdir(exist_ok=True)
    with served(sys.argv[1]) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, url)
        browser.close()


if __name__ == "__main__":
    main()
