"""Readers: every format gives the same documents, and bad input one line that helps."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherefrom.errors import CorpusError
from wherefrom.indexer.readers import document_from_row, read_documents
from wherefrom.indexer.rows import metadata_value
from wherefrom.records import Document, Message

ROWS: list[dict[str, Any]] = [
    {"doc_id": "a", "text": 'One, "two"\nthree.', "year": 1790, "share": 0.5, "war": False},
    {"doc_id": "b", "text": "Zwölf 🙂\u2028Boxkämpfer", "year": 1863, "share": 2.0, "war": True},
    {"doc_id": "c", "text": "", "year": None, "share": None, "war": None},
]
DOCUMENTS = [
    Document(row["doc_id"], row["text"], {k: row[k] for k in ("year", "share", "war")})
    for row in ROWS
]


def write_json_lines(path: Path, rows: Sequence[object]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    data = text.encode()
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_dataset(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(list(rows)).save_to_disk(str(path))
    return path


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_json_lines, "docs.jsonl"),
        (write_json_lines, "docs.json"),
        (write_json_lines, "DOCS.JSONL"),
        (write_json_lines, "docs.jsonl.gz"),
        (write_csv, "docs.csv"),
        (write_csv, "docs.csv.gz"),
        (write_parquet, "docs.parquet"),
        (write_dataset, "docs"),
    ],
)
def test_every_format_gives_the_same_documents(
    write: Callable[[Path, Sequence[Any]], Path], name: str, tmp_path: Path
) -> None:
    documents = list(read_documents(write(tmp_path / name, ROWS)))
    assert documents == DOCUMENTS
    for document, expected in zip(documents, DOCUMENTS, strict=True):
        kinds = [type(value) for value in document.metadata.values()]
        assert kinds == [type(value) for value in expected.metadata.values()]


def test_reading_streams(tmp_path: Path) -> None:
    path = tmp_path / "docs.jsonl"
    path.write_text('{"text": "good"}\n{"text": broken\n')
    documents = read_documents(str(path))
    assert next(documents).text == "good"
    with pytest.raises(CorpusError, match="line 2: malformed JSON"):
        next(documents)


def test_ids_are_numbered_where_there_are_none(tmp_path: Path) -> None:
    path = write_json_lines(tmp_path / "speeches.v2.jsonl", [{"text": "x"}, {"text": "y", "id": 7}])
    path.write_text("\n" + path.read_text() + "\n\n" + '{"text": "z"}')
    assert [d.doc_id for d in read_documents(path)] == ["speeches-000000", "7", "speeches-000002"]


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name in ("docs.jsonl", "docs.csv", "docs.txt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + b'{"text": "x"}')
    (tmp_path / "docs.csv").write_bytes(b"\xef\xbb\xbftext\nx\n")
    assert [d.text for d in read_documents(tmp_path / "docs.jsonl")] == ["x"]
    assert [d.text for d in read_documents(tmp_path / "docs.csv")] == ["x"]
    assert [d.text for d in read_documents(tmp_path / "docs.txt")] == ['{"text": "x"}']


def test_csv_columns_are_typed_by_all_their_values(tmp_path: Path) -> None:
    path = tmp_path / "docs.csv"
    path.write_text(
        "id,text,n,x,zip,flag,mixed,big,none\n"
        "007,1,1,1,01234,TRUE,1,9223372036854775807,\n"
        "008,2,-2,2.5e3,99999,false,true,9223372036854775808,\n"
        "\n"
        "009,,,,,,,,\n"
    )
    first, second, third = read_documents(path)
    assert (first.doc_id, first.text, third.text) == ("007", "1", "")
    assert dict(second.metadata) == {
        "n": -2,
        "x": 2500.0,
        "zip": "99999",
        "flag": False,
        "mixed": "true",
        "big": "9223372036854775808",
        "none": None,
    }
    assert [type(value) for value in first.metadata.values()][:4] == [int, float, str, bool]
    assert set(third.metadata.values()) == {None}


def test_csv_takes_long_fields_and_line_breaks(tmp_path: Path) -> None:
    text = "line\r\nline, " * 50_000
    path = write_csv(tmp_path / "docs.csv", [{"text": text, "n": 1}])
    assert [d.text for d in read_documents(path)] == [text]


@given(st.lists(st.one_of(st.integers(), st.floats(allow_nan=False)), min_size=1, max_size=8))
def test_csv_numbers_survive(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("csv")
    path = write_csv(folder / "docs.csv", [{"text": "x", "n": value} for value in values])
    read = [d.metadata["n"] for d in read_documents(path)]
    if all(isinstance(value, (int, float)) for value in read):
        assert read == values
    else:
        assert read == [str(value) for value in values]


def test_text_file_is_one_document_kept_to_the_letter(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_bytes("Grüße\r\n\n end ".encode())
    assert list(read_documents(tmp_path / "novel.txt")) == [
        Document("novel.txt", "Grüße\r\n\n end ")
    ]


def test_folder_of_texts_is_read_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.md", "a.txt", "a/b/c.TXT", "picture.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"this is {name}")
    documents = list(read_documents(tmp_path))
    assert [d.doc_id for d in documents] == ["a.txt", "a/b/c.TXT", "a/z.md", "b.txt"]
    assert documents[2].text == "this is a/z.md"


def test_saved_splits_are_picked_by_name(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    splits = {name: datasets.Dataset.from_list([{"text": name}]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "saved"))
    assert [d.text for d in read_documents(f"{tmp_path}/saved#test")] == ["test"]
    with pytest.raises(CorpusError, match=r"holds the splits 'train', 'test'; .*saved#train"):
        read_documents(tmp_path / "saved")
    with pytest.raises(CorpusError, match="not 'dev'"):
        read_documents(f"{tmp_path}/saved#dev")
    plain = write_dataset(tmp_path / "plain", ROWS)
    with pytest.raises(CorpusError, match="leave out #train"):
        read_documents(f"{plain}#train")


def test_saved_datasets_are_read_without_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_dataset(tmp_path / "saved", ROWS)
    expected = list(read_documents(saved))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert list(read_documents(saved)) == expected


def test_broken_saved_dataset(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(CorpusError, match="not a readable saved dataset"):
        read_documents(tmp_path)


def test_row_forms() -> None:
    assert document_from_row({"text": "t"}, "f", 3, stem="s") == Document("s-000003", "t")
    assert document_from_row(
        {"id": "x", "prompt": "2+2=", "completion": "4", "year": 1}, "f", 0
    ) == Document("x", "2+2=4", {"year": 1}, scored=((4, 5),))
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    assert document_from_row({"id": "x", "messages": turns, "prompt": "hi"}, "f", 0) == Document(
        "x", metadata={"prompt": "hi"}, messages=(Message("user", "hi"), Message("assistant", "yo"))
    )


def test_null_content_fields_are_padding_not_metadata() -> None:
    row = {"id": "x", "text": "t", "messages": None, "prompt": None, "note": None}
    assert document_from_row(row, "f", 0) == Document("x", "t", {"note": None})


def test_both_id_fields_keep_the_second_as_metadata() -> None:
    document = document_from_row({"doc_id": "a", "id": 5, "text": "t"}, "f", 0)
    assert (document.doc_id, document.metadata) == ("a", {"id": 5})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1], "expected an object with fields, got a list"),
        ("x", "expected an object with fields, got text"),
        ({}, "fields seen: none"),
        ({"body": "x", "text": None}, r"fields seen: 'body', 'text' \(null\)"),
        ({"prompt": "x"}, "has no text"),
        ({"text": 5}, "'text' must be text, got a value of type int"),
        ({"text": "x", "messages": []}, "has both text and messages"),
        ({"text": "x", "prompt": "p", "completion": "c"}, "both text and prompt/completion"),
        ({"prompt": [{}], "completion": [{}]}, "one 'messages' field"),
        ({"messages": []}, "got an empty list"),
        ({"messages": "hi"}, "got text"),
        ({"messages": ["hi"]}, "message 1 must be an object"),
        ({"messages": [{"role": "user"}]}, "message 1: 'content' must be text, got null"),
        (
            {"messages": [{"role": "a", "content": "b", "tool_calls": [], "name": None}]},
            "has 'tool_calls'; only",
        ),
        ({"text": "x", "id": None}, "'id' is null"),
        ({"text": "x", "doc_id": ""}, "'doc_id' is empty text"),
        ({"text": "x", "doc_id": True}, "'doc_id' is true/false"),
        ({"text": "x", "tags": ["a"]}, "field 'tags': a list is not .*metadata_columns"),
        ({"text": "x", "meta": {"a": 1}}, "field 'meta': an object is not"),
        ({"text": "x", "": 1}, "has no name"),
    ],
)
def test_bad_rows_are_named(row: object, message: str) -> None:
    with pytest.raises(CorpusError, match=message) as caught:
        document_from_row(row, "docs.jsonl line 7", 6)
    assert str(caught.value).startswith("docs.jsonl line 7")
    assert "\n" not in str(caught.value)


def test_metadata_columns_select(tmp_path: Path) -> None:
    rows = [{"text": "x", "tags": ["a"], "year": 1}, {"text": "y", "tags": [], "party": "p"}]
    path = write_json_lines(tmp_path / "docs.jsonl", rows)
    documents = read_documents(path, metadata_columns=["year", "party"])
    assert [dict(d.metadata) for d in documents] == [{"year": 1}, {"party": "p"}]
    assert [d.metadata for d in read_documents(path, metadata_columns=[])] == [{}, {}]
    with pytest.raises(CorpusError, match="has no column 'yaer'; its columns are 'text', 'tags'"):
        list(read_documents(path, metadata_columns=["yaer"]))


def test_metadata_values() -> None:
    import datetime

    assert metadata_value(np.int64(3)) == 3
    assert type(metadata_value(np.int64(3))) is int
    assert metadata_value(np.bool_(True)) is True
    assert type(metadata_value(np.str_("x"))) is str
    assert metadata_value(float("nan")) is None
    assert metadata_value(np.float32("nan")) is None
    for infinite in (float("inf"), -np.float32("inf")):
        with pytest.raises(TypeError, match="infinity"):
            metadata_value(infinite)
    assert metadata_value(datetime.date(1863, 11, 19)) == "1863-11-19"
    assert metadata_value(np.datetime64("1863-11-19T01:02:03")) == "1863-11-19T01:02:03"
    for nested in ([1], {"a": 1}, b"x", np.zeros(2), object()):
        with pytest.raises(TypeError):
            metadata_value(nested)


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("docs.jsonl", b"", "holds no documents"),
    ("docs.jsonl", b"\n \n", "holds no documents"),
    ("docs.csv", b"", "holds no documents"),
    ("docs.csv", b"text,year\n", "holds no documents"),
    ("docs.txt", b"", "holds no documents"),
    ("docs.jsonl", b'{"text": "a"}\n{"text": "b"\n', r"line 2: malformed JSON \(.*column"),
    ("docs.jsonl", b'{"text": "a"} {"text": "b"}\n', "line 1: malformed JSON"),
    ("docs.json", b'[\n{"text": "a"}]', "line 1: malformed JSON .*one whole JSON object per line"),
    ("docs.json", b'[{"text": "a"}]', "line 1: expected an object"),
    ("docs.jsonl", b"[" * 100_000, "line 1: "),
    ("docs.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1: JSON that cannot be read"),
    (
        "docs.jsonl",
        b'{"text": "a"}\n{"text": "\xff"}\n',
        r"line 2: not UTF-8 \(byte 0xff at offset 24",
    ),
    ("docs.txt", b"caf\xe9", r"not UTF-8 \(byte 0xe9 at offset 3"),
    ("docs.txt", b"ab\0c", "NUL byte at offset 2"),
    ("docs.jsonl", b"\x7fELF\0\0", "NUL byte at offset 4: a binary file"),
    ("docs.csv", b"text\nab\n\0\n", "line 3: a NUL byte at offset 8"),
    ("docs.csv", b"text,year\na,1\nb\n", "line 3: 1 fields where the header has 2"),
    ("docs.csv", b'text\n"a\nb', "line 2: malformed CSV"),
    ("docs.csv", b"text,text\na,b\n", "names 'text' more than once"),
    ("docs.csv", b"body\na\n", "line 2: has no text: .*'body'"),
    ("docs.csv", b",text\n0,a\n", "column has no name"),
    ("docs.parquet", b"PAR1 but not really", "not a readable Parquet file"),
    ("docs.parquet", b"", "not a readable Parquet file"),
    ("docs.jsonl.gz", b'{"text": "a"}\n', "not a whole gzip file"),
    (
        "docs.jsonl.gz",
        gzip.compress(b'{"text": "a"}\n' * 999, mtime=0)[:-12],
        "not a whole gzip file",
    ),
    ("docs.tsv", b"text\n", r"files of kind '.tsv' are not read; give .jsonl"),
    ("docs.parquet.gz", b"", "files of kind '.gz' are not read"),
    ("docs", b"x", "'without suffix'"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES)
def test_bad_files_get_one_line(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=message) as caught:
        list(read_documents(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unlistable_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match="does not exist"):
        read_documents(tmp_path / "absent.jsonl")
    with pytest.raises(CorpusError, match="does not exist"):
        read_documents(f"{tmp_path}/absent#train")
    with pytest.raises(CorpusError, match=r"holds no \.txt or \.md file"):
        read_documents(tmp_path)
    with pytest.raises(CorpusError, match="only a saved DatasetDict has splits"):
        read_documents(f"{tmp_path}#train")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write_json_lines(tmp_path / "docs.jsonl", ROWS)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CorpusError, match=r"docs\.jsonl cannot be read \(Permission denied\)"):
        list(read_documents(path))


def test_folders_that_cannot_be_listed_are_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.txt").write_text("x")

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"cannot be read \(Permission denied\)"):
        read_documents(tmp_path)


def test_parquet_dates_become_text_and_chats_survive(tmp_path: Path) -> None:
    import datetime

    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": turns, "day": datetime.date(1863, 11, 19)}]
    (document,) = read_documents(write_parquet(tmp_path / "docs.parquet", rows))
    assert document.messages == (Message("user", "q"), Message("assistant", "a"))
    assert document.metadata == {"day": "1863-11-19"}
