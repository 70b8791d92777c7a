"""Hits as tables and files: typed, complete, the same in all formats, harmless in spreadsheets."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from answers import (
    CONTRAST,
    HOSTILE,
    INDEX,
    QUERIES,
    annotated,
    answer,
    certificate,
    every_answer,
    hit,
)
from wherefrom.errors import MissingExtraError, QueryError, StorageError
from wherefrom.query.export import tables as export
from wherefrom.query.export.json_text import json_text
from wherefrom.query.export.tables import (
    HITS_SCHEMA,
    hits_dataset,
    hits_frame,
    hits_table,
    write_csv,
    write_jsonl,
    write_parquet,
)
from wherefrom.query.printable import printable
from wherefrom.records import SCORE_CONTRACT, Background, Query, Recall

ANSWERS = list(every_answer().values())
FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    " =1",
    "\n=1",
    "\x00=1",
    "\u200b=1",
    "\uff1d1",
    '=HYPERLINK("http://example.com","x")',
    "=cmd|' /C calc'!A0",
]


def of_sheet(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_hit_in_the_order_of_the_answers() -> None:
    rows = hits_table([answer(), answer(query=CONTRAST)]).to_pylist()
    assert [(r["answer"], r["sign"], r["rank"], r["doc_id"]) for r in rows] == [
        (0, "proponent", 1, "speech 1"),
        (0, "proponent", 2, "speech 2"),
        (0, "opponent", 1, "message 9"),
        (1, "proponent", 1, "speech 1"),
        (1, "proponent", 2, "speech 2"),
        (1, "opponent", 1, "message 9"),
    ]
    assert [r["contrast"] for r in rows] == [None] * 3 + [" be dissolved"] * 3
    assert [r["metadata.year"] for r in rows] == [1861, 1862, 1861] * 2
    assert [r["bound"] for r in rows[:3]] == [0.00123, 0.00123, 0.00099]


def test_rows_hold_what_answers_hold() -> None:
    judged = Background(1000, 32, 0.1, True, False, 100.0, 50.0)
    whole = annotated(
        answer(
            certificate=certificate(
                certified=False, recall=Recall(0.97, 0.9, 1.0, 0.95, 32), background=judged
            )
        )
    )
    first, _, opponent = hits_table([whole]).to_pylist()
    shown, similar = whole.proponents[0], whole.similarity.hits[0]
    for name in ("score", "cosine", "relatif", "norm", "tokens", "text", "percentile"):
        assert first[name] == getattr(shown, name), name
    for name in ("bm25", "bm25_rank", "shared_words", "cluster", "flag"):
        assert first[name] == getattr(similar, name), name
    for name in ("tier", "certified", "documents", "candidates", "backend", "slope"):
        assert first[name] == getattr(whole.certificate, name), name
    assert (first["recall_estimate"], first["recall_low"], first["recall_high"]) == (0.97, 0.9, 1.0)
    assert (first["stands_out"], opponent["stands_out"]) == (True, False)
    assert opponent["flag"] == "influential but not similar"
    assert first["manifest_sha256"] == INDEX["manifest_sha256"]
    assert first["schema"] == HITS_SCHEMA
    assert json.loads(first["query"]) == whole.to_dict()["query"]
    assert json.loads(first["where"]) == whole.to_dict()["where"]
    assert math.isclose(sum(one["share"] for one in first["layer_shares"]), shown.score)
    assert math.isclose(sum(one["share"] or 0.0 for one in first["token_shares"]), shown.score)
    assert first["token_shares"][0]["share"] is None
    token = first["token_shares"][2]
    assert shown.text[token["start"] : token["end"]] == token["text"]


def test_columns_do_not_depend_on_what_was_asked() -> None:
    fixed = [n for n in hits_table([]).column_names if not n.startswith("metadata.")]
    tables = [hits_table([one]) for one in ANSWERS]
    types = {name: hits_table([]).schema.field(name).type for name in fixed}
    for table in tables:
        assert table.column_names[: len(fixed)] == fixed
        assert {name: table.schema.field(name).type for name in fixed} == types
    assert len(set(fixed)) == len(fixed)
    assert types["score"] == pa.float64()
    assert types["rank"] == pa.int64()


def test_tables_tell_their_version_and_contracts() -> None:
    told = hits_table([answer(), answer(), answer(query=CONTRAST)]).schema.metadata
    assert told[b"schema"].decode() == HITS_SCHEMA
    first, second = told[b"contract"].decode().split("\n")
    assert first == SCORE_CONTRACT
    assert "minus the contrast's" in second


def test_sets_and_tensors_have_no_prompt() -> None:
    of_set, of_tensors = (
        hits_table([answer(query=query)]).to_pylist()[0] for query in (QUERIES, None)
    )
    assert of_set["prompt"] is of_set["completion"] is None
    assert len(json.loads(of_set["query"])["queries"]) == 30
    assert of_set["measured"] == "the mean log-likelihood of the completions"
    assert of_tensors["query"] is None


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((1, None), pa.int64()),
        ((1, 0.5), pa.float64()),
        ((0.5, None), pa.float64()),
        ((True, False), pa.bool_()),
        (("a", None), pa.string()),
        ((None, None), pa.string()),
    ],
)
def test_metadata_columns_are_typed(values: tuple[Any, ...], kind: Any) -> None:
    hits = tuple(hit(1, 1.0, metadata={"it": value}) for value in values)
    table = hits_table([answer(proponents=hits, opponents=())])
    assert table.schema.field("metadata.it").type == kind
    assert table["metadata.it"].to_pylist() == list(values)


def test_columns_that_some_hits_lack_are_missing_there() -> None:
    hits = (hit(1, 1.0, metadata={"a": 1}), hit(2, 0.5, metadata={"b": "x"}))
    table = hits_table([answer(proponents=hits, opponents=())])
    assert table["metadata.a"].to_pylist() == [1, None]
    assert table["metadata.b"].to_pylist() == [None, "x"]


@pytest.mark.parametrize("values", [(1, "a"), (True, 1), (True, 0.5)])
def test_metadata_of_two_types_is_refused(values: tuple[Any, ...]) -> None:
    each = [answer(proponents=(hit(1, 1.0, metadata={"it": v}),), opponents=()) for v in values]
    with pytest.raises(QueryError, match=r"'it' is of several types .* export the answers of each"):
        hits_table(each)


def test_every_format_holds_the_same(tmp_path: Path) -> None:
    table = hits_table(ANSWERS)
    rows = table.to_pylist()
    assert parquet.read_table(write_parquet(ANSWERS, tmp_path / "hits.parquet")).equals(table)
    lines = write_jsonl(ANSWERS, tmp_path / "hits.jsonl").read_text("utf-8").split("\n")
    assert lines.pop() == ""
    assert [json.loads(line) for line in lines] == rows
    sheet = of_sheet(write_csv(ANSWERS, tmp_path / "hits.csv"))
    assert [float(row["score"]) for row in sheet] == [row["score"] for row in rows]
    flat = [name for name in table.column_names if not name.endswith("_shares")]
    assert list(sheet[0]) == [printable(name) for name in flat]


def test_parquet_keeps_its_version_in_its_footer(tmp_path: Path) -> None:
    path = answer().to_parquet(tmp_path / "hits.parquet")
    assert parquet.read_schema(path).metadata[b"schema"].decode() == HITS_SCHEMA


def test_frames_have_whole_numbers_that_may_be_missing() -> None:
    whole = annotated(answer())
    frame = hits_frame([answer(), whole])
    assert frame["bm25_rank"].dtype == "Int64"
    assert frame["certified"].dtype == "boolean"
    assert frame["score"].dtype == "float64"
    assert frame["bm25_rank"].isna().tolist() == [True] * 3 + [False] * 3
    assert frame.attrs["schema"] == HITS_SCHEMA
    assert whole.to_pandas()["doc_id"].tolist() == ["speech 1", "speech 2", "message 9"]


def test_datasets_have_the_same_rows() -> None:
    whole = annotated(answer())
    dataset = hits_dataset([answer(), whole])
    assert list(dataset["score"]) == hits_table([answer(), whole])["score"].to_pylist()
    assert dataset.features["metadata.year"].dtype == "int64"
    assert len(whole.to_dataset()) == 3


@pytest.mark.parametrize(
    ("name", "make"),
    [("pandas", hits_frame), ("datasets", hits_dataset)],
    ids=["pandas", "datasets"],
)
def test_missing_extras_are_named(monkeypatch: pytest.MonkeyPatch, name: str, make: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'wherefrom\[{name}\]'"):
        make([answer()])


@pytest.mark.parametrize("formula", FORMULAS)
def test_formulas_become_text(tmp_path: Path, formula: str) -> None:
    column = f"{formula} column"
    harmful = hit(1, 1.0, doc_id=formula, text=formula, metadata={"it": formula, column: formula})
    one = answer(query=Query(formula, formula), proponents=(harmful,), opponents=())
    (row,) = of_sheet(one.to_csv(tmp_path / "hits.csv"))
    for name in ("doc_id", "text", "prompt", "completion", "metadata.it"):
        assert row[name].startswith("'"), name
    for name in row:
        assert not name.lstrip().startswith(("=", "+", "-", "@"))


def test_numbers_stay_numbers_in_sheets(tmp_path: Path) -> None:
    hits = (hit(1, -1.5, metadata={"year": -44, "share": -0.25}),)
    (row,) = of_sheet(write_csv([answer(proponents=(), opponents=hits)], tmp_path / "hits.csv"))
    assert (row["score"], row["metadata.year"], row["metadata.share"]) == ("-1.5", "-44", "-0.25")
    assert row["log_likelihood"] == "-3.25"


def test_missing_and_empty_differ_in_sheets(tmp_path: Path) -> None:
    hits = (hit(1, 1.0, metadata={"a": "", "b": None}),)
    path = write_csv([answer(proponents=hits, opponents=())], tmp_path / "hits.csv")
    assert path.read_text("utf-8").endswith(',"",\n')


@given(st.text(st.characters(), max_size=40))
def test_text_comes_back_from_sheets(text: str) -> None:
    cell = export._harmless(text)
    assert not cell.lstrip().startswith(("=", "+", "-", "@", "\t", "\r"))
    back = cell[1:] if cell.startswith("'") else cell
    assert back == export.printable_lines(text)


def test_texts_that_mean_harm_are_whole_in_tables_and_tame_in_sheets(tmp_path: Path) -> None:
    one = answer(query=Query(HOSTILE, HOSTILE), proponents=(hit(1, 1.0, text=HOSTILE),))
    (first, *_) = hits_table([one]).to_pylist()
    assert first["text"] == HOSTILE.replace("\ud800", "\ufffd")
    sheet = one.to_csv(tmp_path / "hits.csv").read_bytes()
    for harm in (b"\x1b", b"\x00", "\u202e".encode(), "\x9b".encode()):
        assert harm not in sheet
    assert b"<script>" in sheet, "it is text there"
    lines = one.to_jsonl(tmp_path / "hits.jsonl").read_bytes()
    for harm in (b"\x1b", b"\x00", "\u202e".encode(), "\x9b".encode()):
        assert harm not in lines


@given(st.text(st.characters(), max_size=60))
def test_json_loses_nothing_and_can_always_be_written(text: str) -> None:
    written = json_text({"it": [text, 0.1]})
    joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    assert json.loads(written) == {"it": [joined, 0.1]}
    assert written.encode("utf-8")
    assert "\n" not in written


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_files_are_written_whole_or_not_at_all(
    tmp_path: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "hits"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match="no directory"):
        write([answer()], tmp_path / "missing" / "hits")
    with pytest.raises(StorageError, match="not a file"):
        write([answer()], tmp_path)

    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", refuse)
        with pytest.raises(StorageError, match="free some space"):
            write([answer()], path)
    assert path.read_bytes() == b"old"
    assert write([answer()], path) == path
    assert path.read_bytes() != b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["hits"]


@pytest.mark.parametrize("write", [write_csv, write_jsonl, write_parquet])
def test_same_answers_give_the_same_bytes(tmp_path: Path, write: Any) -> None:
    first = write(ANSWERS, tmp_path / "first").read_bytes()
    again = [replace(one, seconds=9.0) for one in ANSWERS]
    assert write(again, tmp_path / "second").read_bytes() == first


def test_no_answers_make_an_empty_table(tmp_path: Path) -> None:
    assert hits_table([]).num_rows == 0
    assert write_jsonl([], tmp_path / "hits.jsonl").read_bytes() == b""
    assert of_sheet(write_csv([], tmp_path / "hits.csv")) == []
    assert parquet.read_table(write_parquet([], tmp_path / "hits.parquet")).num_rows == 0
