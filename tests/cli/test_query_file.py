"""Files of questions: read whole, in order, and refused by line."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherefrom.cli.query_file import read_queries
from wherefrom.errors import QueryError
from wherefrom.records import Query

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def test_questions_in_order(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "completion": "b"}\r\n\r\n  \n'
        b'{"completion": "c\\n", "prompt": null, "contrast": "d"}\n'
        b'{"completion": "", "contrast": null}'
    )
    assert read_queries(path) == [Query("a", "b"), Query("", "c\n", "d"), Query("", "")]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"completion": "\xc3\xa9"}')))
    assert read_queries(Path("-")) == [Query("", "é")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no")))
    with pytest.raises(QueryError, match="standard input, line 1 is not JSON"):
        read_queries(Path("-"))


@given(st.lists(st.builds(Query, TEXT, TEXT, st.none() | TEXT), min_size=1, max_size=4))
def test_whatever_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, queries: list[Query]
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.jsonl"
    rows = [
        {"prompt": query.prompt, "completion": query.completion, "contrast": query.contrast}
        for query in queries
    ]
    for escaped in (True, False):
        lines = [json.dumps(row, ensure_ascii=escaped) for row in rows]
        path.write_bytes("\n".join(lines).encode())
        assert read_queries(path) == queries


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no query"),
        (b"\n \n", "holds no query"),
        (b'{"completion": "a"}\n{"completion":', "line 2 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b'["a"]', "line 1 is no JSON object"),
        (b'\n{"prompt": "a"}', "line 2 has no completion"),
        (b'{"completion": null}', "line 1 has no completion"),
        (b'{"completion": 7}', "line 1: completion is 7"),
        (b'{"completion": "a", "contrast": ["b"]}', r'line 1: contrast is \["b"\]'),
        (b'{"completion": "a", "contrst": "b"}', "unknown field 'contrst'"),
        (b'{"completion": "\\ud800"}', "half a character"),
        (b'{"completion": "caf\xe9"}', "not UTF-8"),
    ],
)
def test_what_is_no_question(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "queries.jsonl"
    path.write_bytes(content)
    with pytest.raises(QueryError, match=told) as error:
        read_queries(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match=r"cannot read .*absent: No such file"):
        read_queries(tmp_path / "absent")
    with pytest.raises(QueryError, match="cannot read"):
        read_queries(tmp_path)
