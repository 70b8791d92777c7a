"""The corpus on disk: nothing lost, ids unique, columns typed, memory bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherefrom.errors import CorpusError, IntegrityError, StorageError, WherefromError
from wherefrom.indexer import corpus as corpus_module
from wherefrom.indexer.corpus import Corpus, read_corpus
from wherefrom.records import Document, Message

unicode_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@st.composite
def documents(draw: st.DrawFn) -> list[Document]:
    ids = draw(st.lists(unicode_text.filter(bool), min_size=1, max_size=6, unique=True))
    made = []
    for doc_id in ids:
        text = draw(unicode_text)
        cut = draw(st.integers(0, len(text)))
        made.append(
            Document(
                doc_id,
                text,
                {"n": draw(st.none() | st.integers(-(2**63), 2**63 - 1)), "é": draw(unicode_text)},
                scored=draw(st.sampled_from([None, (), ((cut, len(text)),)])),
                messages=draw(st.sampled_from([None, (Message("user", text),)])),
                special_tokens=draw(st.booleans()),
                parent_id=draw(st.none() | unicode_text),
                char_start=draw(st.integers(0, 99)),
            )
        )
    return made


@given(documents())
def test_spool_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, made: list[Document]
) -> None:
    corpus = Corpus.spool(iter(made), tmp_path_factory.mktemp("spool") / "corpus")
    assert list(corpus) == made
    assert list(corpus) == made
    assert len(corpus) == corpus.documents == len(made)
    again = Corpus.open(corpus.path, corpus.metadata, corpus.content_sha256)
    assert list(again) == made
    assert np.array_equal(again.marks, corpus.marks)


def test_null_bytes_and_huge_documents_survive(tmp_path: Path) -> None:
    made = [Document("a", "x\0y\u2028\n" * 1_000_000), Document("b\0", "\0")]
    assert list(Corpus.spool(made, tmp_path / "corpus")) == made


def test_columns_are_typed_over_all_documents(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"i": 1, "x": 1, "s": "a", "b": True, "none": None},
        {"i": None, "x": 2.5, "s": None, "b": None},
        {"i": -(2**63), "late": np.float32(0.5)},
        {"x": float("nan")},
    ]
    made = [Document(str(n), "t", row) for n, row in enumerate(rows)]
    corpus = Corpus.spool(made, tmp_path / "corpus")
    assert list(corpus.metadata.items()) == [
        ("i", "int64"),
        ("x", "float64"),
        ("s", "string"),
        ("b", "bool"),
        ("none", "string"),
        ("late", "float64"),
    ]
    first, second, third, fourth = (dict(document.metadata) for document in corpus)
    nothing = dict.fromkeys(corpus.metadata)
    assert first == nothing | {"i": 1, "x": 1.0, "s": "a", "b": True}
    assert type(first["x"]) is float
    assert second == nothing | {"x": 2.5}
    assert third == nothing | {"i": -(2**63), "late": 0.5}
    assert fourth == nothing


@pytest.mark.parametrize(
    ("one", "other", "kinds"),
    [
        (1, "x", ("int64", "string")),
        (True, 1, ("bool", "int64")),
        (0.5, False, ("float64", "bool")),
        ("x", 0.5, ("string", "float64")),
    ],
)
def test_columns_that_mix_types_are_refused(
    one: object, other: object, kinds: tuple[str, str], tmp_path: Path
) -> None:
    values: list[Any] = [one, one, other]
    made = [Document(f"d{n}", "t", {"year": value}) for n, value in enumerate(values)]
    expected = f"'year' is {kinds[0]} in document 'd0' and {kinds[1]} in document 'd2'"
    with pytest.raises(CorpusError, match=expected):
        Corpus.spool(made, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_repeated_ids_are_refused_with_both_positions(tmp_path: Path) -> None:
    made = [Document(doc_id, "t") for doc_id in ("a", "b", "c", "b")]
    with pytest.raises(CorpusError, match="doc_id 'b' is given to documents 2 and 4"):
        Corpus.spool(made, tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_content_hash_tells_any_change(tmp_path: Path) -> None:
    base = Document("a", "ab", {"x": 1, "y": "v"})
    variants = [
        [base],
        [Document("b", "ab", {"x": 1, "y": "v"})],
        [Document("a", "ac", {"x": 1, "y": "v"})],
        [Document("a", "ab", {"x": 2, "y": "v"})],
        [Document("a", "ab", {"x": "1", "y": "v"})],
        [Document("a", "ab", {"x": 1, "z": "v"})],
        [Document("a", "ab", {"x": 1, "y": "v"}, scored=((0, 1),))],
        [Document("a", "ab", {"x": 1, "y": "v"}, scored=())],
        [Document("a", "ab", {"x": 1, "y": "v"}, special_tokens=False)],
        [Document("a", "", {"x": 1, "y": "v"}, messages=(Message("user", "ab"),))],
        [base, Document("b", "")],
        [Document("b", ""), base],
    ]
    hashes = [Corpus.spool(made, tmp_path / "corpus").content_sha256 for made in variants]
    assert len(set(hashes)) == len(variants)
    reordered = Document("a", "ab", {"none": None, "y": "v", "x": 1})
    assert Corpus.spool([reordered], tmp_path / "corpus").content_sha256 == hashes[0]


def test_read_corpus_takes_paths_and_documents(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"doc_id": "a", "text": "x", "tags": [], "year": 1}')
    expected = [Document("a", "x", {"year": 1})]
    assert list(read_corpus(path, metadata_columns=["year"])) == expected
    assert list(read_corpus(str(path), metadata_columns=["year"])) == expected
    assert list(read_corpus(iter(expected))) == expected


@pytest.mark.parametrize("source", [5, None, b"docs.jsonl", {"text": "x"}])
def test_read_corpus_refuses_what_is_no_corpus(source: Any) -> None:
    with pytest.raises(CorpusError, match=r"give a path or an iterable of wherefrom\.Document"):
        read_corpus(source)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"text": "x"}, "document 2 is a value of type dict"),
        (Document("", "x"), "document 2 has the id ''"),
        (Document("d", 5), "document 'd': the text is of type int"),  # type: ignore[arg-type]
        (Document("d", "x\ud800y"), r"document 'd': not valid Unicode .*U\+D800 at character 1"),
        (Document("\udc00", "x"), r"document '\\udc00': not valid Unicode"),
        (Document.chat("d", [Message("user", "\ud800")]), "document 'd': not valid Unicode"),
        (Document("d", "x", {"k": "\ud800"}), "document 'd': metadata column 'k': not valid"),
        (Document("d", "x", {"\ud800": 1}), "document 'd': not valid Unicode"),
        (Document("d", "x", {"k": [1]}), "document 'd': metadata column 'k': a list"),  # type: ignore[dict-item]
        (Document("d", "x", {1: 1}), "metadata column 1: names are text"),  # type: ignore[dict-item]
        (Document("d", "x", {"k": 2**63}), "'k' of document 'd' holds an integer beyond 64 bits"),
        (Document("d", "x", scored=((0, 2),)), r"scored span \(0, 2\) is not within its text of 1"),
        (Document("d", "xy", scored=((2, 1),)), r"scored span \(2, 1\)"),
    ],
)
def test_bad_documents_are_named(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        Corpus.spool(read_corpus([Document("ok", "x"), document]), tmp_path / "corpus")
    assert "\n" not in str(caught.value)
    with pytest.raises(CorpusError, match=message):
        Corpus.spool([Document("ok", "x"), document], tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_no_documents(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds no documents"):
        list(read_corpus([]))
    with pytest.raises(CorpusError, match="holds no documents"):
        Corpus.spool([], tmp_path / "corpus")


def test_nothing_is_left_when_the_source_fails(tmp_path: Path) -> None:
    def failing() -> Iterator[Document]:
        yield Document("a", "x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Corpus.spool(failing(), tmp_path / "corpus")
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_source_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    def failing() -> Iterator[Document]:
        yield Document("a", "x")
        raise OSError("the user's own")

    with pytest.raises(OSError, match="the user's own") as caught:
        Corpus.spool(failing(), tmp_path / "corpus")
    assert not isinstance(caught.value, WherefromError)


@pytest.mark.parametrize("text", ["small", "large" * 100_000])
def test_full_disk_is_a_storage_error(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")

    def full(path: Path, write: Callable[[Path], object]) -> None:
        write(Path("/dev/full"))

    monkeypatch.setattr(corpus_module, "write_atomically", full)
    with pytest.raises(StorageError, match="No space left"):
        Corpus.spool([Document("a", text)], tmp_path / "corpus")


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        Corpus.spool([Document("a", "x")], tmp_path / "absent" / "corpus")


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_any_documents_can_be_read_without_those_before(count: int, tmp_path: Path) -> None:
    made = [Document(f"d{i}", "x" * (i % 7), {"i": i}) for i in range(count)]
    corpus = Corpus.spool(made, tmp_path / "corpus")
    rng = np.random.default_rng(count)
    for positions in (
        np.arange(count),
        np.array([count - 1]),
        np.flatnonzero(rng.random(count) < 0.02),
        np.flatnonzero(rng.random(count) < 0.5),
        np.arange(count // 2, count),
    ):
        assert list(corpus.at(positions)) == [made[i] for i in positions]


def test_a_corpus_that_was_changed_is_refused(tmp_path: Path) -> None:
    corpus = Corpus.spool([Document("a", "x")], tmp_path / "corpus")
    assert json.loads(corpus.path.read_text())["doc_id"] == "a"
    corpus.path.write_text(corpus.path.read_text().replace("x", "y"))
    with pytest.raises(IntegrityError, match="differs from its SHA-256"):
        Corpus.open(corpus.path, corpus.metadata, corpus.content_sha256)
    corpus.path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        Corpus.open(corpus.path, corpus.metadata, corpus.content_sha256)


MEMORY = """
import resource, sys
from wherefrom.indexer.corpus import Corpus
from wherefrom.records import Document
n = int(sys.argv[1])
made = (Document(f"d{i}", "word " * 4000, {"year": i}) for i in range(n))
corpus = Corpus.spool(made, sys.argv[2] + "/corpus")
assert sum(1 for _ in corpus) == n
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        command = [sys.executable, "-c", MEMORY, str(count), str(tmp_path)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    # 4000 documents are 80 MB of text.
    assert peak(4000) - peak(100) < 16 * 1024
