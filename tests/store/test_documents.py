"""The documents table: what goes in comes out, in the order asked for, or an error says why not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pytest

from wherefrom.errors import CorpusError, IndexExistsError, IntegrityError
from wherefrom.records import Document, Message
from wherefrom.store import Bits, DocumentTable, InputRecord, Manifest, StoredRows
from wherefrom.store.quantise import quantise

Build = Callable[..., Any]

EXAMPLES = InputRecord(dtype="float32", shape=(2, 3), target_dtype="int64", target_shape=())


def new_table(path: Path, **changes: Any) -> DocumentTable:
    settings: dict[str, Any] = {"metadata": {"year": "int64"}, "dimension": 2, "bits": 16}
    return DocumentTable.create(path, **(settings | changes))


def append(table: DocumentTable, *documents: Document, fill: float = 1.0) -> None:
    count = len(documents)
    vectors = np.full((count, table.layout.dimension), fill, np.float32)
    table.append(documents, vectors, norms=np.ones(count), tokens=np.ones(count, np.int64))


def tampered(index: Any, **update: Any) -> DocumentTable:
    """The index after another program changed it, with a manifest that knows no better."""
    table = lancedb.connect(index.path).open_table("documents")
    table.update(**update)
    store = index.manifest.store.model_copy(
        update={"table_version": table.version, "rows": table.count_rows()}
    )
    return DocumentTable.open(index.path, index.manifest.model_copy(update={"store": store}))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32])
def test_rows_come_back_as_they_went_in(build_index: Build, bits: Bits) -> None:
    index = build_index(12, dimension=11, bits=bits)
    rows = index.open().rows(np.arange(12))
    assert rows.documents() == index.documents
    assert list(rows.metadata[0]) == list(index.manifest.metadata)
    assert rows.tokens.tolist() == list(range(12))
    stored = quantise(index.vectors, bits)
    for name in ("codes", "scales", "residual_norms", "vectors"):
        assert np.array_equal(getattr(rows.stored, name), getattr(stored, name))
    assert np.array_equal(rows.vectors, stored.vectors)
    assert rows.vectors.dtype == np.float64
    vectors = index.vectors.astype(np.float64)
    assert np.array_equal(rows.norms, np.linalg.norm(vectors, axis=1))
    residuals = np.linalg.norm(vectors - rows.vectors, axis=1)
    np.testing.assert_allclose(rows.residual_norms, residuals, rtol=1e-11)
    assert (residuals > 0).all() or bits == 32


def test_rows_keep_the_order_of_the_request(build_index: Build) -> None:
    index = build_index(12)
    table = index.open()
    asked = [7, 0, 11, 7, 3]
    rows = table.rows(asked)
    assert rows.ordinals.tolist() == asked
    assert rows.doc_ids == [f"speech {i}" for i in asked]
    assert np.array_equal(rows.vectors, table.rows(np.arange(12)).vectors[asked])
    assert rows.documents() == [index.documents[i] for i in asked]
    assert table.rows([]).vectors.shape == (0, 5)


@pytest.mark.parametrize("bits", [4, 16])
def test_a_part_of_rows_read_keeps_their_values(build_index: Build, bits: Bits) -> None:
    inputs = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    documents = [Document(str(i)) for i in range(7)]
    index = build_index(
        bits=bits,
        documents=documents,
        columns={},
        examples=EXAMPLES,
        inputs=inputs,
        targets=np.arange(7),
    )
    rows = index.open().rows(np.arange(7))
    part = StoredRows(rows.batch.slice(2, 3), rows.layout, np.arange(2, 5))
    assert np.array_equal(part.vectors, rows.vectors[2:5])
    assert np.array_equal(part.stored.codes, rows.stored.codes[2:5])
    assert np.array_equal(part.inputs, inputs[2:5])


def test_ordinals_out_of_range_are_refused(build_index: Build) -> None:
    table = build_index(3).open()
    for ordinals in ([3], [-1]):
        with pytest.raises(IndexError):
            table.rows(ordinals)


def test_tensor_examples_come_back_bit_for_bit(build_index: Build) -> None:
    inputs = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    documents = [Document(str(i)) for i in range(7)]
    index = build_index(
        documents=documents, columns={}, examples=EXAMPLES, inputs=inputs, targets=np.arange(7)
    )
    rows = index.open().rows([6, 1, 0])
    assert rows.inputs.dtype == np.float32
    assert np.array_equal(rows.inputs, inputs[[6, 1, 0]])
    assert rows.targets.tolist() == [6, 1, 0]
    assert rows.metadata == [{}, {}, {}]
    assert len(set(rows.content_hashes)) == 3


def test_batches_cover_all_rows_in_order(build_index: Build) -> None:
    index = build_index(12)
    table = index.open()
    batches = list(table.batches(5))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert [d for batch in batches for d in batch.documents()] == index.documents
    assert table.facts.doc_ids() == [d.doc_id for d in index.documents]


def test_duplicates_share_their_content_hash(tmp_path: Path) -> None:
    table = new_table(tmp_path)
    same = [Document("a", "text", {"year": 1}), Document("b", "text", char_start=3)]
    others = [Document("c", "text", scored=((0, 4),)), Document("d", "text", special_tokens=False)]
    append(table, *same, *others, Document("e", "Text"))
    hashes = table.rows(range(5)).content_hashes
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    "values",
    [
        {"text": "Fellow citizens"},
        {"norm": 1.0},
        {"tokens": 12},
        {"special_tokens": True},
        {"parent_id": "speech 3"},
        {"meta_year": 1},
        {"meta_party": None},
        {"code": [1.0, 2.0, 3.0, 4.0, 5.0]},
    ],
    ids=lambda values: next(iter(values)),
)
def test_a_changed_value_is_noticed(build_index: Build, values: dict[str, Any]) -> None:
    # The last row: LanceDB moves what it updates to the end, where this one is already.
    table = tampered(build_index(12), where="row = 11", values=values)
    with pytest.raises(IntegrityError, match="'speech 11'"):
        table.rows([2, 11])
    with pytest.raises(IntegrityError, match="'speech 11'"):
        list(table.batches(12))
    assert table.rows([2]).doc_ids == ["speech 2"]


def test_a_null_is_not_an_empty_string(build_index: Build) -> None:
    documents = [Document("a", metadata={"party": ""}), Document("b", metadata={"party": None})]
    index = build_index(documents=documents, columns={"party": "string"})
    assert [row["party"] for row in index.open().rows([0, 1]).metadata] == ["", None]
    table = tampered(index, where="row = 1", values={"meta_party": ""})
    with pytest.raises(IntegrityError, match="'b'"):
        table.rows([1])


def test_rows_out_of_place_are_noticed(build_index: Build) -> None:
    table = tampered(build_index(12), where="row = 3", values={"text": "moved to the end"})
    with pytest.raises(IntegrityError, match="in order"):
        table.rows([3])


def test_a_reader_stays_at_the_version_of_its_manifest(build_index: Build) -> None:
    index = build_index(6)
    reader = index.open()
    later = lancedb.connect(index.path).open_table("documents")
    later.add(later.to_arrow().slice(0, 2))
    later.update(where="row = 0", values={"text": "changed"})
    for table in (reader, index.open()):
        assert len(table) == 6
        assert table.rows(range(6)).documents() == index.documents
        assert table.facts.where({"year": 1790}).tolist() == [0]


def test_a_reader_cannot_append(build_index: Build) -> None:
    with pytest.raises(ValueError, match="opened to be read"):
        append(build_index(2).open(), Document("late"))


def with_store(manifest: Manifest, **changes: int) -> Manifest:
    return manifest.model_copy(update={"store": manifest.store.model_copy(update=changes)})


def test_a_missing_version_rows_or_files_are_integrity_errors(build_index: Build) -> None:
    index = build_index(6)
    for changes in ({"table_version": 99}, {"rows": 7}):
        with pytest.raises(IntegrityError, match=r"documents\.lance"):
            DocumentTable.open(index.path, with_store(index.manifest, **changes))
    table = index.open()
    for file in (index.path / "documents.lance" / "data").iterdir():
        file.unlink()
    with pytest.raises(IntegrityError, match="cannot be read"):
        table.rows([0])
    (index.path / "documents.lance").rename(index.path / "elsewhere")
    with pytest.raises(IntegrityError, match="cannot be read") as caught:
        index.open()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a b", "%20", "a#b?c=d", "é年", "a+b&c", "s3", "a'b`c", "[x]*"])
def test_any_directory_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    folder = tmp_path / name
    table = new_table(folder)
    append(table, Document("a"))
    assert table.seal().rows == 1
    assert [entry.name for entry in folder.iterdir()] == ["documents.lance"]
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    monkeypatch.chdir(tmp_path)
    relative = new_table(Path(name) / "deeper")
    monkeypatch.chdir("/")
    append(relative, Document("b"))
    assert relative.rows([0]).doc_ids == ["b"]
    assert (folder / "deeper" / "documents.lance").is_dir()


def test_a_table_is_not_made_twice(tmp_path: Path) -> None:
    new_table(tmp_path)
    with pytest.raises(IndexExistsError):
        new_table(tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    table = new_table(tmp_path)
    vectors = np.ones((3, 2), np.float32)
    vectors[1, 0] = value
    documents = [Document("a"), Document("b"), Document("c")]
    with pytest.raises(IntegrityError, match="'b'"):
        table.append(documents, vectors, norms=np.ones(3), tokens=np.ones(3, int))
    with pytest.raises(IntegrityError, match="'c'"):
        table.append(documents, np.ones((3, 2), np.float32), norms=[1, 1, value], tokens=[1, 1, 1])
    assert len(table) == 0
    append(table, *documents)
    assert table.rows([1]).ordinals.tolist() == [1]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (Document("a", metadata={"month": 1}), "month"),
        (Document("a", metadata={"year": "1861"}), "int64"),
        (Document("a", metadata={"year": True}), "int64"),
        (Document("a", metadata={"year": 2**63}), "int64"),
        (Document("a", metadata={"share": float("nan")}), "float64"),
        (Document("a", metadata={"share": 10**400}), "float64"),
        (Document("a", metadata={"party": "\ud800"}), "surrogate"),
        (Document("a", "half \udc00"), "surrogate"),
        (Document("a\ud800"), "surrogate"),
        (Document.chat("a", [Message("user", "hello")]), "chat"),
    ],
)
def test_documents_that_do_not_fit_are_named(
    tmp_path: Path, document: Document, message: str
) -> None:
    metadata = {"year": "int64", "share": "float64", "party": "string"}
    table = new_table(tmp_path, metadata=metadata)
    with pytest.raises(CorpusError, match=message) as caught:
        append(table, Document("fits"), document)
    assert repr(document.doc_id) in str(caught.value)
    assert len(table) == 0


def test_arrays_of_other_shapes_are_refused(tmp_path: Path) -> None:
    table = new_table(tmp_path)
    one = np.ones((1, 2), np.float32)
    wrong: list[Any] = [one[:, :1], one.astype(np.float64), np.ones((2, 2), np.float32)]
    for vectors in wrong:
        with pytest.raises(ValueError, match="vectors"):
            table.append([Document("a")], vectors, norms=[1], tokens=[1])
    with pytest.raises(ValueError, match="norms and tokens"):
        table.append([Document("a")], one, norms=[1, 2], tokens=[1])
    with pytest.raises(ValueError, match="tensors"):
        table.append([Document("a")], one, norms=[1], tokens=[1], inputs=one)
    examples = new_table(tmp_path / "examples", inputs=EXAMPLES)
    with pytest.raises(ValueError, match="inputs: got"):
        examples.append(
            [Document("a")], one, norms=[1], tokens=[1], inputs=one, targets=np.ones(1, int)
        )


@pytest.mark.parametrize(
    "changes",
    [{"dimension": 0}, {"bits": 3}, {"metadata": {"day": "date"}}],
    ids=["dimension", "bits", "metadata"],
)
def test_impossible_tables_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="; use"):
        new_table(tmp_path, **changes)


def test_any_name_serves_as_metadata_column(build_index: Build) -> None:
    names = ["a b", "a`b", "a'b", 'a"b', "a.b", "a_b", "A", "a", "", "é", "年", "_5f_", "_", "%s"]
    names += ["text", "row", "digest", "meta_a", "a\nb", "x" * 200]
    values = {name: i for i, name in enumerate(names)}
    documents = [Document("one", metadata=values), Document("none")]
    table = build_index(documents=documents, columns=dict.fromkeys(names, "int64")).open()
    assert table.rows([0, 1]).metadata == [values, dict.fromkeys(names)]
    for name, value in values.items():
        assert table.facts.where({name: value}).tolist() == [0]
        assert table.facts.where({name: ("!=", value)}).tolist() == []


def run_python(source: str, *arguments: str) -> str:
    """What a fresh interpreter prints."""
    finished = subprocess.run(
        [sys.executable, "-c", source, *arguments],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return finished.stdout.strip()


def test_lancedb_is_imported_only_when_a_table_is_touched() -> None:
    assert run_python("import sys, wherefrom.store; print('lancedb' in sys.modules)") == "False"


MEMORY_RUN = """
import resource, sys
import numpy as np
from wherefrom.records import Document
from wherefrom.store import DocumentTable, ScanCopy

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

tables = {
    bits: DocumentTable.create(f"{sys.argv[1]}/{bits}", metadata={}, dimension=4096, bits=bits)
    for bits in (4, 16)
}
vectors = np.random.default_rng(0).standard_normal((500, 4096)).astype(np.float32)
for shard in range(1, 13):
    documents = [Document(f"{shard}.{i}", "x" * 1000) for i in range(500)]
    for bits, table in tables.items():
        table.append(documents, vectors, norms=np.ones(500), tokens=np.ones(500, int))
        if shard in (4, 12):
            ScanCopy.build(table, f"{sys.argv[1]}/{bits}/scan")
    if shard == 4:
        early = peak_mb()
print(peak_mb() - early)
"""


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """Three times the documents, 49 MB more on disk, are written and read in the same memory."""
    assert float(run_python(MEMORY_RUN, str(tmp_path))) < 15
