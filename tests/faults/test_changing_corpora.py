"""A corpus that changes: while it is read, and between an interruption and its resumption."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import wherefrom as wf
from tiny_lm import text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import CorpusError, IndexExistsError
from wherefrom.gradients.extractor import GradientExtractor


def rows(count: int = 600, suffix: str = "") -> list[str]:
    return [
        json.dumps({"doc_id": f"{i}", "text": f"gold and silver {i}{suffix}"}) for i in range(count)
    ]


def build(path: Path, documents: Any, **options: Any) -> wf.Index:
    return wf.build(
        tiny_llama(),
        documents,
        path,
        objective=wf.CausalLM(tiny_tokenizer()),
        curvature="identity",
        encoder="none",
        **options,
    )


def grown(corpus: Path) -> None:
    with corpus.open("a") as stream:
        stream.write("\n" + "\n".join(rows(5, " more")).replace('"doc_id": "', '"doc_id": "new '))


def cut(corpus: Path) -> None:
    corpus.write_text("\n".join(rows(300)))


def replaced(corpus: Path) -> None:
    other = corpus.with_name("other")
    other.write_text("\n".join(rows(600, " other")))
    other.replace(corpus)


def rewritten(corpus: Path) -> None:
    corpus.write_text("\n".join(rows(600, "!")))


CHANGES = [grown, cut, replaced, rewritten]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(rows()))
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    objective = wf.CausalLM(tiny_tokenizer())
    tokenise, calls = type(objective).tokenise, []

    def tokenise_and_change(self: Any, documents: Any) -> Any:
        if len(documents) > 1:
            calls.append(len(documents))
        if len(calls) == 2:
            change(corpus)
        return tokenise(self, documents)

    monkeypatch.setattr(type(objective), "tokenise", tokenise_and_change)
    with pytest.raises(CorpusError, match="corpus") as caught:
        build(tmp_path / "i", corpus)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "i").exists()


def test_a_file_that_changes_after_it_was_read_does_no_harm(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = build(tmp_path / "wanted", corpus)
    forward = GradientExtractor.forward

    def change_and_forward(self: Any, batch: Any) -> Any:
        corpus.unlink(missing_ok=True)
        return forward(self, batch)

    monkeypatch.setattr(GradientExtractor, "forward", change_and_forward)
    found = build(tmp_path / "found", corpus)
    assert found.vectors().tobytes() == wanted.vectors().tobytes()
    assert found.manifest.corpus == wanted.manifest.corpus


def interrupted(path: Path, documents: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build until the model has run a few times."""
    forward, calls = GradientExtractor.forward, []

    def forward_and_stop(self: Any, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return forward(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(GradientExtractor, "forward", forward_and_stop)
        with pytest.raises(KeyboardInterrupt):
            build(path, documents)


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_between_attempts_is_refused(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    """What was done is left alone, and goes on if the file comes back."""
    interrupted(tmp_path / "i", corpus, monkeypatch)
    before = corpus.read_bytes()
    change(corpus)
    with pytest.raises(IndexExistsError, match="documents") as caught:
        build(tmp_path / "i", corpus)
    assert "\n" not in str(caught.value)
    assert "--overwrite" in str(caught.value)
    changed = build(tmp_path / "i", corpus, overwrite=True)
    assert len(changed) == len(corpus.read_text().splitlines())
    interrupted(tmp_path / "j", corpus, monkeypatch)
    now = corpus.read_bytes()
    corpus.write_bytes(before)
    with pytest.raises(IndexExistsError):
        build(tmp_path / "j", corpus)
    corpus.write_bytes(now)
    resumed = build(tmp_path / "j", corpus)
    assert resumed.vectors().tobytes() == changed.vectors().tobytes()


def test_a_generator_that_gives_other_documents_the_second_time_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(count: int) -> Iterator[wf.Document]:
        yield from text_documents(count)

    interrupted(tmp_path / "i", stream(100), monkeypatch)
    with pytest.raises(CorpusError, match="other documents") as caught:
        build(tmp_path / "i", stream(101))
    assert "\n" not in str(caught.value)
    resumed = build(tmp_path / "i", stream(100))
    assert resumed.vectors().tobytes() == build(tmp_path / "j", stream(100)).vectors().tobytes()
