"""The site builds strictly, asks no other machine for anything, and documents all there is."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections import defaultdict
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import click
import pytest

import wherefrom as wf
from docs.pages import DOCS
from wherefrom import errors, evaluation
from wherefrom.cli.main import commands

pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")

pytestmark = pytest.mark.timeout(600)  # a busy machine builds the site in minutes

LOADED = {
    "audio": "src",
    "embed": "src",
    "form": "action",
    "iframe": "src",
    "image": "href",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "use": "href",
    "video": "src",
}
"""What a browser fetches by itself, or sends a form to."""


class Page(HTMLParser):
    """Anchors, links and what is loaded of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.styles: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors.update(given[name] for name in ("id", "name") if name in given)
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in LOADED and LOADED[tag] in given and given.get("rel") not in ("next", "prev"):
            self.loaded.append(given[LOADED[tag]])
        if "srcset" in given:
            self.loaded.extend(part.split()[0] for part in given["srcset"].split(","))
        if "style" in given:
            self.styles.append(given["style"])


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_nothing_is_loaded_from_elsewhere(pages: dict[Path, Page]) -> None:
    assert len(pages) > 30
    for page in pages.values():
        for address in page.loaded:
            parts = urlsplit(address)
            assert parts.scheme in ("", "data"), f"{page.path}: {address}"
            assert not parts.netloc, f"{page.path}: {address}"
        assert not any("url(" in style for style in page.styles), page.path


def test_styles_load_nothing_from_elsewhere(site: Path) -> None:
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.findall(r"url\([\"']?(?:https?:)?//", text), style
        assert not re.findall(r"@import\s+(?:url\()?[\"']?(?:https?:)?//", text), style


def test_links_and_anchors_lead_somewhere(pages: dict[Path, Page]) -> None:
    followed = 0
    for page in pages.values():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or page.path.name == "404.html":
                continue
            target = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            if target.is_dir():
                target /= "index.html"
            assert target.is_file(), f"{page.path}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{page.path}: {link}"
            followed += 1
    assert followed > 1000


def test_formulas_need_no_script(site: Path) -> None:
    page = (site / "explanation" / "mathematics.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 7
    assert "\\frac" not in page
    assert "\\sum" not in page


def every_command(
    command: click.Command, words: tuple[str, ...]
) -> dict[tuple[str, ...], click.Command]:
    """Written apart from the generator of the page, which it checks."""
    found = {words: command}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found |= every_command(child, (*words, name))
    return found


def test_every_command_and_option_is_on_the_site(site: Path, pages: dict[Path, Page]) -> None:
    path = site / "reference" / "commands.html"
    text = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
    known = every_command(commands, ("wherefrom",))
    assert len(known) > 10
    for words, command in known.items():
        if command.hidden:
            continue
        assert "-".join(words) in pages[path].anchors, words
        begins = text.index(f"Usage: {' '.join(words)} ")
        own = text[begins : text.find("Usage: ", begins + 1) % len(text)]
        for parameter in command.params:
            for written in parameter.opts if isinstance(parameter, click.Option) else []:
                assert re.search(rf"(?<![\w-]){re.escape(written)}(?![\w-])", own), (words, written)


def test_the_commands_page_does_not_depend_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(DOCS / "_generate")
    help_pages = import_module("commands").help_pages
    monkeypatch.setenv("COLUMNS", "50")
    narrow = help_pages()
    monkeypatch.setenv("COLUMNS", "200")
    assert help_pages() == narrow


def test_every_public_name_is_on_the_site(pages: dict[Path, Page]) -> None:
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    for name in wf.__all__:
        value = getattr(wf, name)
        assert f"{value.__module__}.{value.__qualname__}" in anchors, name
    for name in errors.__all__:
        assert f"wherefrom.errors.{name}" in anchors
    for method, value in inspect.getmembers(wf.Index):
        if not method.startswith("_") and (callable(value) or isinstance(value, property)):
            assert f"wherefrom.maintenance.index.Index.{method}" in anchors, method


def test_every_name_of_the_evaluation_is_on_the_site(pages: dict[Path, Page]) -> None:
    anchors = {anchor for page in pages.values() for anchor in page.anchors}
    for module in pkgutil.iter_modules(evaluation.__path__, "wherefrom.evaluation."):
        for name in import_module(module.name).__all__:
            assert f"{module.name}.{name}" in anchors, f"{module.name}.{name}"


def test_no_role_is_left_as_it_was_written(site: Path) -> None:
    for path in (site / "reference").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r":(?:class|func|meth|attr|mod|data):[<`]", text), path


def test_nothing_but_pages_and_pictures_is_published(site: Path) -> None:
    kinds = defaultdict(list)
    for path in site.rglob("*"):
        if path.is_file() and "assets" not in path.parts and "search" not in path.parts:
            kinds[path.suffix].append(path)
    assert set(kinds) <= {".html", ".png", ".css", ".xml", ".gz"}, dict(kinds)
