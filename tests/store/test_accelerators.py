"""Accelerators: bounds that hold for every row, files that are read only when they are known."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import faiss
import lancedb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError, MissingExtraError, QueryError, StorageError
from wherefrom.records import Document
from wherefrom.store import (
    AcceleratorKind,
    AcceleratorRecord,
    DocumentTable,
    build_accelerator,
    find_accelerator,
    lance_index,
    open_accelerator,
)
from wherefrom.store.faiss_formats import FORMATS
from wherefrom.store.faiss_index import build_faiss, open_faiss

KINDS: tuple[AcceleratorKind, ...] = get_args(AcceleratorKind)
FAISS = KINDS[:3]
ROWS, DIMENSION = 203, 37


def heavy_tailed(rows: int, dimension: int, scale: float = 1.0) -> NDArray[np.float32]:
    """Norms over several orders of magnitude; a zero row, tiny ones and duplicates."""
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((rows, dimension)) * np.exp(rng.standard_normal((rows, 1)))
    vectors[3], vectors[4] = 0.0, vectors[5]
    vectors[6] *= 1e-9
    vectors[7] *= 1e-4
    return (vectors * scale).astype(np.float32)


def build_table(path: Path, vectors: NDArray[np.float32], bits: Any) -> DocumentTable:
    count = len(vectors)
    table = DocumentTable.create(path, metadata={}, dimension=vectors.shape[1], bits=bits)
    table.append(
        [Document(f"d{i}") for i in range(count)],
        vectors,
        norms=np.linalg.norm(vectors.astype(np.float64), axis=1),
        tokens=np.ones(count, np.int64),
    )
    return table


class Built(SimpleNamespace):
    """A table, the vectors that it stores, and one accelerator of each kind."""

    path: Path
    table: DocumentTable
    stored: NDArray[np.float64]
    records: dict[str, AcceleratorRecord]

    def open(self, kind: str, **options: Any) -> Any:
        return open_accelerator(self.records[kind], self.table, self.path, **options)


@pytest.fixture(scope="module")
def built_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Built]:
    made: dict[tuple[Any, ...], Built] = {}

    def build(bits: int, scale: float = 1.0) -> Built:
        if (bits, scale) not in made:
            path = tmp_path_factory.mktemp("index")
            table = build_table(path, heavy_tailed(ROWS, DIMENSION, scale), bits)
            made[bits, scale] = Built(
                path=path,
                table=table,
                stored=table.rows(np.arange(ROWS)).vectors,
                records={kind: build_accelerator(kind, table, path) for kind in KINDS},
            )
        return made[bits, scale]

    return build


@pytest.fixture
def built(built_with: Callable[..., Built], tmp_path: Path) -> Built:
    """A copy that a test may damage."""
    original = built_with(4)
    shutil.copytree(original.path, tmp_path / "copy")
    return Built(**{**vars(original), "path": tmp_path / "copy"})


def questions(stored: NDArray[np.float64], scale: float) -> Iterator[NDArray[np.float32]]:
    rng = np.random.default_rng(6)
    yield (rng.standard_normal(DIMENSION) * scale).astype(np.float32)
    yield (rng.standard_normal(DIMENSION) * np.exp(4 * rng.standard_normal(DIMENSION))).astype("f4")
    yield stored[10].astype(np.float32)
    yield np.full(DIMENSION, 1e-30, np.float32)
    yield np.eye(DIMENSION, dtype=np.float32)[5] * np.float32(1e30)
    yield np.zeros(DIMENSION, np.float32)


@pytest.mark.parametrize("scale", [1.0, 1e-15])
@pytest.mark.parametrize("bits", [1, 4, 32])
@pytest.mark.parametrize("kind", KINDS)
def test_no_inner_product_exceeds_its_bound(
    built_with: Callable[..., Built], kind: str, bits: int, scale: float
) -> None:
    built = built_with(bits, scale)
    accelerator = built.open(kind)
    for query in questions(built.stored, scale):
        exact = built.stored @ query.astype(np.float64)
        error = accelerator.error(query)
        for sign in (1, -1):
            ordinals, bounds = accelerator.search(query, ROWS + 5, sign)
            assert np.array_equal(np.sort(ordinals), np.arange(ROWS))
            assert (np.diff(bounds) <= 0).all()
            assert (sign * exact[ordinals] <= bounds + error).all()
            some, best = accelerator.search(query, 20, sign)
            left_out = np.setdiff1d(np.arange(ROWS), some)
            assert (sign * exact[left_out] <= best[-1] + error).all()


@pytest.mark.parametrize(
    ("kind", "bits", "share", "common"),
    [
        ("faiss-flat", 32, 1e-5, 2e-7),
        ("faiss-flat", 4, 1e-5, 2e-7),
        ("faiss-sq8", 4, 0.0, 0.05),
        ("faiss-rabitq", 1, 0.1, 1e-5),
        ("lance-ivf", 32, 1e-5, 2e-7),
        ("lance-ivf", 1, 1e-5, 2e-7),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-15])
def test_bounds_exceed_inner_products_by_little(
    built_with: Callable[..., Built],
    kind: str,
    bits: int,
    share: float,
    common: float,
    scale: float,
) -> None:
    """By a share of the product of norms, and by one of the longest vector's for all of them."""
    built = built_with(bits, scale)
    query = next(questions(built.stored, scale))
    accelerator = built.open(kind)
    ordinals, bounds = accelerator.search(query, ROWS, -1)
    norms = np.linalg.norm(built.stored, axis=1) * np.linalg.norm(query.astype(np.float64))
    excess = bounds + accelerator.error(query) + (built.stored @ query)[ordinals]
    assert (excess <= share * norms[ordinals] + common * norms.max()).all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_rows_asked_for_are_searched(built_with: Callable[..., Built], kind: str) -> None:
    built = built_with(1)
    accelerator = built.open(kind)
    query = next(questions(built.stored, 1.0))
    asked = np.arange(1, ROWS, 7)
    every, scores = accelerator.search(query, ROWS, 1)
    of_all = dict(zip(every.tolist(), scores.tolist(), strict=True))
    found, values = accelerator.search(query, 9, 1, asked[::-1].copy())
    assert values.tolist() == sorted((of_all[i] for i in asked.tolist()), reverse=True)[:9]
    assert set(found.tolist()) <= set(asked.tolist())
    assert len(accelerator.search(query, ROWS, -1, asked)[0]) == len(asked)
    assert len(accelerator.search(query, 5, 1, asked[:0])[0]) == 0
    assert accelerator.search(query, 5, 1, np.array([8, 8, 9]))[0].tolist() in ([8, 9], [9, 8])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_scores_come_in_the_order_of_rows(
    built_with: Callable[..., Built], kind: str
) -> None:
    built = built_with(32)
    ordinals, scores = built.open(kind).search(np.zeros(DIMENSION, np.float32), 5, 1)
    assert scores.tolist() == [0.0] * 5
    assert ordinals.tolist() == sorted(ordinals.tolist())


class Rows(SimpleNamespace):
    """Stands in for a table of any vectors, also such as no code holds."""

    def __init__(self, vectors: NDArray[np.float64]) -> None:
        super().__init__(layout=SimpleNamespace(dimension=vectors.shape[1]), version=7)
        self.vectors = vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def batches(self, size: int, fields: Any = None) -> Iterator[SimpleNamespace]:
        size = min(size, 3)
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield SimpleNamespace(vectors=self.vectors[rows], ordinals=np.arange(len(self))[rows])


any_float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("kind", FAISS)
@settings(max_examples=40, deadline=None)
@given(
    data=st.data(),
    vectors=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=any_float32
    ),
)
def test_the_bound_holds_for_any_vectors(
    tmp_path_factory: pytest.TempPathFactory,
    kind: AcceleratorKind,
    data: st.DataObject,
    vectors: NDArray[np.float32],
) -> None:
    query = data.draw(hnp.arrays(np.float32, vectors.shape[1], elements=any_float32))
    folder = tmp_path_factory.mktemp("any")
    exact = vectors.astype(np.float64)
    table: Any = Rows(exact)
    record = build_faiss(kind, table, folder, 7)
    accelerator = open_accelerator(record, table, folder)
    ordinals, bounds = accelerator.search(query, len(vectors), 1)
    assert np.array_equal(np.sort(ordinals), np.arange(len(vectors)))
    # Scores of float64 have an error of their own, next to nothing.
    rounding = 1e-14 * (np.abs(exact) @ np.abs(query.astype(np.float64)))
    allowed = bounds + accelerator.error(query) + rounding[ordinals]
    assert ((exact @ query.astype(np.float64))[ordinals] <= allowed).all()
    shutil.rmtree(folder)


@pytest.mark.parametrize("dimension", [1, 64, 1025])
@pytest.mark.parametrize("kind", FAISS)
def test_the_file_is_the_one_that_faiss_writes(
    tmp_path: Path, kind: AcceleratorKind, dimension: int
) -> None:
    vectors = heavy_tailed(70, dimension).astype(np.float64)
    table: Any = Rows(vectors)
    record = build_faiss(kind, table, tmp_path, 7)
    scaled = vectors * record.scale
    rounded = FORMATS[kind].extended(scaled, scaled.astype(np.float32))
    entries = rounded.shape[1]
    if kind == "faiss-flat":
        index = faiss.IndexFlatIP(entries)
    elif kind == "faiss-sq8":
        index = faiss.IndexScalarQuantizer(
            entries, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
        )
    else:
        index = faiss.IndexRaBitQ(entries, faiss.METRIC_INNER_PRODUCT)
        index.qb = 8
    index.train(np.zeros((1, entries), np.float32) if kind == "faiss-rabitq" else rounded)
    index.add(rounded)
    faiss.write_index(index, str(tmp_path / "theirs"))
    ours = tmp_path / "faiss" / f"{kind}.index"
    assert ours.read_bytes() == (tmp_path / "theirs").read_bytes()
    assert build_faiss(kind, table, tmp_path, 7) == record


@pytest.mark.parametrize("kind", FAISS)
def test_an_index_without_rows(tmp_path: Path, kind: AcceleratorKind) -> None:
    table: Any = Rows(np.empty((0, 5)))
    accelerator = open_accelerator(build_faiss(kind, table, tmp_path, 7), table, tmp_path)
    ordinals, scores = accelerator.search(np.ones(5, np.float32), 3, 1)
    assert (len(ordinals), len(scores)) == (0, 0)


def test_the_record_says_what_was_built(built_with: Callable[..., Built]) -> None:
    built = built_with(4)
    largest = np.linalg.norm(built.stored, axis=1).max()
    for kind, record in built.records.items():
        assert (record.kind, record.rows, record.dimension) == (kind, ROWS, DIMENSION)
        assert record.table_version == built.table.version
        assert record.largest == pytest.approx(largest, rel=1e-10)
        assert np.frexp(record.scale)[0] == 0.5
        assert AcceleratorRecord.model_validate_json(record.model_dump_json()) == record
    assert list(built.records["faiss-sq8"].files) == ["faiss/faiss-sq8.index"]
    assert all(name.startswith("vectors.lance/") for name in built.records["lance-ivf"].files)


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [flip_a_bit, Path.unlink], ids=["bit", "missing"])
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_never_opened(
    built: Built, kind: str, damage: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for library, name in ((faiss, "read_index"), (lancedb, "connect")):
        monkeypatch.setattr(library, name, lambda *_: pytest.fail("an unverified file was read"))
    for name in built.records[kind].files:
        kept = (built.path / name).read_bytes()
        damage(built.path / name)
        with pytest.raises(IntegrityError, match="build the accelerator again") as caught:
            built.open(kind)
        assert str(built.path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
        (built.path / name).write_bytes(kept)


def test_files_that_the_manifest_does_not_know_are_refused(built: Built) -> None:
    record = built.records["faiss-flat"]
    assert find_accelerator("faiss-flat", (record,), built.path) is record
    with pytest.raises(IntegrityError, match="not in the manifest"):
        find_accelerator("faiss-sq8", (record,), built.path)
    with pytest.raises(IntegrityError, match="not in the manifest"):
        find_accelerator("lance-ivf", (record,), built.path)
    (built.path / "faiss" / "faiss-sq8.index").unlink()
    with pytest.raises(QueryError, match="it has faiss-flat"):
        find_accelerator("faiss-sq8", (record,), built.path)
    with pytest.raises(QueryError, match="it has none"):
        find_accelerator("faiss-sq8", (), built.path)
    with pytest.raises(QueryError, match="there are faiss-flat, faiss-sq8"):
        find_accelerator("hnsw", (record,), built.path)
    with pytest.raises(QueryError, match="there are faiss-flat"):
        build_accelerator("hnsw", built.table, built.path)  # type: ignore[arg-type]
    unnamed = record.model_copy(update={"files": {"faiss/other.index": "00"}})
    with pytest.raises(IntegrityError, match="not in the manifest"):
        open_accelerator(unnamed, built.table, built.path)


@pytest.mark.parametrize(
    "change", [{"table_version": 1}, {"rows": ROWS + 1}, {"dimension": DIMENSION + 1}]
)
@pytest.mark.parametrize("kind", KINDS)
def test_stale_accelerators_are_refused(built: Built, kind: str, change: dict[str, int]) -> None:
    record = built.records[kind].model_copy(update=change)
    with pytest.raises(IntegrityError, match=r"is stale: made from .*; build the acc") as caught:
        open_accelerator(record, built.table, built.path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_queries_that_are_not_finite_are_refused(
    built_with: Callable[..., Built], kind: str, value: float
) -> None:
    accelerator = built_with(4).open(kind)
    query = np.ones(DIMENSION, np.float32)
    query[3] = value
    with pytest.raises(QueryError, match="NaN or infinity"):
        accelerator.search(query, 3, 1)
    with pytest.raises(QueryError, match="NaN or infinity"):
        accelerator.error(query)
    with pytest.raises(ValueError, match="expected float32 of shape"):
        accelerator.search(np.ones(DIMENSION), 3, 1)


def test_vectors_longer_than_faiss_reads_back_are_refused(tmp_path: Path) -> None:
    table: Any = Rows(np.zeros((1, 1 << 20)))
    with pytest.raises(StorageError, match=r"at most 1,048,575 entries .*, these have 1,048,576"):
        build_faiss("faiss-flat", table, tmp_path, 7)
    with pytest.raises(StorageError, match=r"at most 1,032,184 entries \(faiss-rabitq adds 16392"):
        build_faiss("faiss-rabitq", table, tmp_path, 7)
    assert list(tmp_path.iterdir()) == []


def test_without_faiss_the_pip_line_is_given(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[faiss\]'"):
        built.open("faiss-flat")
    with pytest.raises(MissingExtraError, match=r"pip install 'wherefrom\[faiss\]'"):
        build_accelerator("faiss-flat", built.table, built.path)


def test_faiss_is_loaded_only_when_it_is_used() -> None:
    code = "import sys, wherefrom, wherefrom.store; print('faiss' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert finished.stdout.strip() == b"False"


def test_a_file_that_faiss_cannot_read_is_an_error_in_one_line(built: Built) -> None:
    file = built.path / "faiss" / "faiss-flat.index"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(IntegrityError, match="faiss cannot use") as caught:
        open_faiss(built.records["faiss-flat"], file)
    assert "\n" not in str(caught.value)


def test_a_faiss_of_another_file_layout_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss, "serialize_index", lambda _: np.zeros(500, np.uint8))
    table: Any = Rows(np.ones((2, 5)))
    with pytest.raises(IntegrityError, match="lays its files out in a way that is not known"):
        build_faiss("faiss-flat", table, tmp_path, 7)


def test_a_build_that_fails_leaves_the_old_index(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    def torn(self: Rows, size: int, fields: Any = None) -> Iterator[SimpleNamespace]:
        if fields is None:
            raise IntegrityError("a row differs")
        yield SimpleNamespace(vectors=self.vectors)

    monkeypatch.setattr(Rows, "batches", torn)
    table: Any = Rows(built.stored)
    with pytest.raises(IntegrityError, match="a row differs"):
        build_faiss("faiss-flat", table, built.path, 7)
    assert len(built.open("faiss-flat").search(np.ones(DIMENSION, np.float32), 3, 1)[0]) == 3
    assert len(list((built.path / "faiss").iterdir())) == len(FAISS)


def test_probing_some_partitions_claims_nothing_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lance_index, "_ROWS_PER_PARTITION", 50)
    table = build_table(tmp_path, heavy_tailed(400, 16), 32)
    record = build_accelerator("lance-ivf", table, tmp_path)
    query = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    whole = open_accelerator(record, table, tmp_path)
    assert whole.exhaustive
    some = open_accelerator(record, table, tmp_path, probes=1)
    assert not some.exhaustive
    assert some.error(query) == np.inf
    found, scores = some.search(query, 400, 1)
    assert 0 < len(found) < len(whole.search(query, 400, 1)[0]) == 400
    exact = table.rows(found).vectors @ query.astype(np.float64)
    assert (exact <= scores + whole.error(query)).all()
    for probes, kind in ((0, "lance-ivf"), (3, "faiss-flat")):
        with pytest.raises(ValueError, match="lance-ivf takes a positive number"):
            open_accelerator(
                record.model_copy(update={"kind": kind}), table, tmp_path, probes=probes
            )


def test_what_others_write_to_the_lance_table_is_not_searched(built: Built) -> None:
    query = np.ones(DIMENSION, np.float32)
    accelerator = built.open("lance-ivf")
    before = accelerator.search(query, ROWS, 1)
    other = lancedb.connect(str(built.path)).open_table("vectors")
    other.add([{"row": 0, "vector": [1e3] * (DIMENSION + 1)}])
    for one, another in zip(before, accelerator.search(query, ROWS, 1), strict=True):
        assert np.array_equal(one, another)
    with pytest.raises(IntegrityError, match=r"vectors\.lance.* is not in the manifest"):
        built.open("lance-ivf")
    renewed = build_accelerator("lance-ivf", built.table, built.path)
    again = open_accelerator(renewed, built.table, built.path).search(query, ROWS, 1)
    assert np.array_equal(before[1], again[1])


def test_a_gpu_is_used_where_it_can_be(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without one: which searches go there."""
    query = np.ones(DIMENSION, np.float32)
    monkeypatch.delattr(faiss, "StandardGpuResources", raising=False)
    assert not built.open("faiss-flat", device="cuda").on_gpu
    asked: list[int] = []

    class Copied:
        def __init__(self, index: Any) -> None:
            self.index = index

        def search(self, values: Any, count: int, params: Any = None) -> Any:
            asked.append(count)
            return self.index.search(values, count, params=params)

    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: None, raising=False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda _, number, index: Copied(index), raising=False
    )
    assert not built.open("faiss-flat").on_gpu
    assert not built.open("faiss-flat", device="cuda:1").on_gpu
    assert not built.open("faiss-sq8", device="cuda").on_gpu
    accelerator = built.open("faiss-flat", device="cuda")
    assert accelerator.on_gpu
    accelerator.search(query, 5, 1)
    accelerator.search(query, 5, 1, np.arange(9))
    assert asked == [5]


@pytest.mark.skipif(faiss.get_num_gpus() == 0, reason="needs the faiss-gpu extra and a GPU")
def test_the_bound_holds_on_a_gpu(built_with: Callable[..., Built]) -> None:
    built = built_with(32)
    accelerator = built.open("faiss-flat", device="cuda")
    assert accelerator.on_gpu
    query = next(questions(built.stored, 1.0))
    exact = built.stored @ query.astype(np.float64)
    ordinals, scores = accelerator.search(query, ROWS, -1)
    assert (-exact[ordinals] <= scores + accelerator.error(query)).all()
