"""Hostile corpora and filters: read in bounded memory and time, from where they are only."""

from __future__ import annotations

import gzip
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import harmless
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wherefrom.errors import CorpusError, FilterError
from wherefrom.indexer import limits, readers
from wherefrom.indexer.corpus import read_corpus
from wherefrom.store.filters import MOST_CONDITIONS, MOST_VALUES, comparisons, parse_where

COLUMNS: Any = {"year": "int64", "party": "string", "war": "bool", "share": "float64"}
PLAIN = ("a.jsonl", "a.csv", "a.txt")
PACKED = ("a.jsonl.gz", "a.csv.gz", "a.txt.gz")
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture]


def read(path: Path | str) -> list[str]:
    return [document.text for document in read_corpus(path)]


@pytest.fixture
def _small_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of at most a kilobyte, so that no test needs a quarter of a gigabyte."""
    for module in ("limits", "readers", "csv_rows", "arrow_rows"):
        monkeypatch.setattr(f"wherefrom.indexer.{module}.LARGEST_ROW", 1000)


@pytest.mark.usefixtures("_small_rows")
@pytest.mark.parametrize("name", [*PLAIN, *PACKED])
def test_rows_without_end_are_refused(tmp_path: Path, name: str) -> None:
    data = b'{"text": "' + b"x" * 1_000_000 if "json" in name else b'text\n"' + b"x" * 1_000_000
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "longer than" in str(harmless(lambda: read(tmp_path / name)))


@pytest.mark.usefixtures("_small_rows")
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_cells_that_stand_for_many_long_values_are_refused(tmp_path: Path, kind: str) -> None:
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), ["x" * 100_000])
    if kind == "parquet":
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"text": long}), path, store_schema=False)
        assert path.stat().st_size < 100_000
    else:
        path = tmp_path / "saved"
        saved(path, pa.table({"text": ["x" * 100_000] * 3}))
    assert "longer than" in str(harmless(lambda: read(path)))


def saved(path: Path, table: pa.Table, name: str = "data.arrow") -> None:
    """A folder as ``datasets`` saves them."""
    path.mkdir(exist_ok=True)
    with (
        pa.OSFile(str(path / "data.arrow"), "wb") as out,
        pa.ipc.new_stream(out, table.schema) as w,
    ):
        w.write_table(table)
    (path / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))


@pytest.mark.parametrize("name", ["../outside.arrow", "/outside.arrow", "..", "", "a/b.arrow", 5])
def test_saved_datasets_cannot_name_files_elsewhere(tmp_path: Path, name: Any) -> None:
    saved(tmp_path / "saved", pa.table({"text": ["a"]}), name)
    (tmp_path / "saved" / "data.arrow").rename(tmp_path / "outside.arrow")
    assert "no name of a file in it" in str(harmless(lambda: read(tmp_path / "saved")))


@pytest.mark.parametrize("split", ["../outside", "/etc", ".", ""])
def test_splits_cannot_be_elsewhere(tmp_path: Path, split: str) -> None:
    saved(tmp_path / "outside", pa.table({"text": ["a"]}))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": [split]}))
    assert isinstance(harmless(lambda: read(f"{tmp_path}/saved#{split}")), CorpusError)


def test_links_that_lead_out_of_a_corpus_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for name in ("texts", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "texts" / "a.txt").symlink_to(tmp_path / "secret")
    saved(tmp_path / "saved", pa.table({"text": ["a"]}))
    (tmp_path / "saved" / "data.arrow").rename(tmp_path / "moved")
    (tmp_path / "saved" / "data.arrow").symlink_to(tmp_path / "moved")
    for name in ("texts", "saved"):
        error = harmless(lambda name=name: read(tmp_path / name))
        assert "leads out of" in str(error)
    (tmp_path / "texts" / "a.txt").unlink()
    (tmp_path / "texts" / "b.txt").write_text("b")
    (tmp_path / "texts" / "c.txt").symlink_to("b.txt")
    assert read(tmp_path / "texts") == ["b", "b"]


def test_pipes_in_a_corpus_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    assert "no plain file" in str(harmless(lambda: read(tmp_path)))


def test_images_are_neither_opened_nor_fetched(tmp_path: Path) -> None:
    """``datasets`` would open the path, or ask the network for the address."""
    images = pa.array([{"bytes": None, "path": "http://198.51.100.1/x.png"}])
    saved(tmp_path / "saved", pa.table({"text": ["a"], "image": images}))
    assert "'image'" in str(harmless(lambda: read(tmp_path / "saved")))


def test_arrow_offsets_beyond_the_data_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "saved", pa.table({"text": ["aaaa", "bbbb"]}))
    file = tmp_path / "saved" / "data.arrow"
    offsets = b"\0\0\0\0\4\0\0\0\x08\0\0\0"
    assert file.read_bytes().count(offsets) == 1
    file.write_bytes(file.read_bytes().replace(offsets, b"\0\0\0\0\4\0\0\0\xff\xff\xff\x7f"))
    assert "not a readable saved dataset" in str(harmless(lambda: read(tmp_path / "saved")))


def test_too_many_fields_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MOST_COLUMNS", 50)
    rows = (json.dumps({"text": "x", f"field {n}": 1}) for n in range(100))
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    assert "different fields" in str(harmless(lambda: read(tmp_path / "a.jsonl")))
    assert limits.MOST_COLUMNS > 10_000


def test_a_header_of_many_columns_takes_no_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",".join(f"c{n}" for n in range(50_000)) + "\n")
    begun = time.process_time()
    harmless(lambda: read(tmp_path / "a.csv"))
    assert time.process_time() - begun < 5.0


@pytest.mark.parametrize("text", ["[" * 10**5, '{"text": ' * 3000, '{"text": ' + "9" * 5000 + "}"])
def test_json_of_great_depth_or_length_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    assert isinstance(harmless(lambda: read(tmp_path / "a.jsonl")), CorpusError)


@settings(max_examples=200, suppress_health_check=SLOW_FIXTURES)
@given(
    data=st.binary(max_size=300) | st.text(max_size=300).map(lambda text: text.encode()),
    name=st.sampled_from(["a.jsonl", "a.csv", "a.parquet", "a.txt", "a.jsonl.gz", "a.csv.gz"]),
)
def test_any_file_is_refused_or_read(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    harmless(lambda: read(tmp_path / name))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(where=st.dictionaries(st.sampled_from([*COLUMNS, "x", "' OR 1=1"]), JSON, max_size=3))
def test_any_filter_is_refused_or_taken(where: dict[str, Any]) -> None:
    harmless(lambda: comparisons(where, COLUMNS))


@settings(max_examples=200)
@given(
    column=st.sampled_from([*COLUMNS, ""]),
    operator=st.sampled_from([" < ", " in ", " not in ", " contains ", " is missing", "=", "=="]),
    value=st.text(),
)
def test_any_clause_is_refused_or_taken(column: str, operator: str, value: str) -> None:
    harmless(lambda: parse_where(f"{column}{operator}{value}", COLUMNS))


@pytest.mark.parametrize(
    "where",
    [
        {"year": ("in", list(range(MOST_VALUES + 1)))},
        {"year": [(">", 1)] * (MOST_CONDITIONS + 1)},
        {"year": "x" * 10**6},
        {"year": [[[[[1]]]]]},
        {"party": "\ud800"},
        {"party": ("contains", b"x")},
        {"x" * 10**6: 1},
    ],
    ids=range(7),
)
def test_filters_beyond_all_bounds_are_refused(where: dict[str, Any]) -> None:
    assert isinstance(harmless(lambda: comparisons(where, COLUMNS)), FilterError)


@pytest.mark.parametrize("value", ["a\rb", '"' + "a" * 200_000, "9" * 5000])
def test_lists_that_cannot_be_read_are_refused(value: str) -> None:
    assert isinstance(harmless(lambda: parse_where(f"year in {value}", COLUMNS)), FilterError)
