"""The site and the folder that pages start from, each made once for all processes of a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers
from filelock import FileLock

import buckets
import wherefrom as wf
from docs.pages import ROOT
from tiny_lm import save_tiny_lm, text_documents


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first process makes and the others find."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    done = shared / f"{name}.done"
    with FileLock(shared / f"{name}.lock"):
        if not done.exists():
            make(shared / name)
            done.touch()
    return shared / name


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a process of its own, as ``make docs`` does."""
    return once(tmp_path_factory, "site", build_site)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pages start from: ``my-model/``, ``corpus.jsonl`` and ``my.index``."""
    return once(tmp_path_factory, "workplace", build_workplace)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The bucket that the page on object storage publishes to, with its credentials set."""
    with buckets.store() as store:
        buckets.reach(monkeypatch, store.endpoint, tmp_path)
        store.bucket("my-bucket")
        yield


def build_site(folder: Path) -> None:
    built = subprocess.run(
        # Not --quiet: what is not logged, --strict does not count.
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr, built.stderr


def build_workplace(folder: Path) -> None:
    folder.mkdir()
    transformers.utils.logging.disable_progress_bar()
    lengthen(save_tiny_lm(folder / "my-model"))
    with (folder / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        for i, document in enumerate(text_documents(20)):
            row = {
                "doc_id": document.doc_id,
                "text": document.text,
                "source": ("archive", "scraped")[i % 2],
                "president": ("Washington", "Lincoln", "Hoover")[i % 3],
                **document.metadata,
            }
            stream.write(json.dumps(row) + "\n")
    wf.build(folder / "my-model", folder / "corpus.jsonl", folder / "my.index")


def lengthen(model: Path) -> None:
    """Let the model read the tutorial's sentences, of which its tokenizer makes many tokens."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["max_position_embeddings"] = 256
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
