"""The scan copy: bounds that hold, files that are what they claim."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from wherefrom.errors import IntegrityError
from wherefrom.records import Document
from wherefrom.store import Bits, CodeFormat, DocumentTable, ScanCopy
from wherefrom.store.segments import encode_rows

Build = Callable[..., Any]

ARRAYS = ("codes", "scale", "residual", "norm", "lost", "whole")

vectors_of_all_sizes = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def opened(index: Any, *, verify: bool = True) -> ScanCopy:
    live = index.open().live
    return ScanCopy.open(index.path / "scan", index.manifest.scan, live, verify=verify)


def squared_distance(row: NDArray[Any], scale: float, levels: NDArray[Any]) -> Fraction:
    """‖row - scale * levels‖² without any rounding."""
    pairs = zip(row.tolist(), levels.tolist(), strict=True)
    return sum(((Fraction(x) - Fraction(scale) * int(c)) ** 2 for x, c in pairs), Fraction(0))


@given(vectors=vectors_of_all_sizes)
def test_the_residual_bounds_what_int8_leaves_out(vectors: NDArray[np.float32]) -> None:
    encoded = encode_rows(vectors.astype(np.float64))
    levels = encoded.format.unpack(encoded.codes, np.int64)
    assert np.abs(levels).max() <= 127
    for i, row in enumerate(vectors):
        squared = squared_distance(row, float(encoded.scales[i]), levels[i])
        residual = Fraction(float(encoded.residual_norms[i])) ** 2
        assert squared <= residual
        assert residual <= squared * (1 + Fraction(1, 10**11))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("dimension", [5, 512, 517])
def test_codes_of_few_bits_are_the_tables_own(
    build_index: Build, bits: Bits, dimension: int
) -> None:
    index = build_index(20, dimension=dimension, bits=bits)
    scan = opened(index)
    (segment,) = scan.segments
    rows = index.open().rows(np.arange(20))
    code = rows.layout.format
    assert (scan.format, index.manifest.scan.bits, index.manifest.scan.dimension) == (
        code,
        bits,
        dimension,
    )
    assert segment.codes.shape == (20, -(-code.bytes // 64) * 64)
    assert np.array_equal(segment.codes[:, : code.bytes], rows.stored.codes)
    assert not segment.codes[:, code.bytes :].any()
    assert np.array_equal(scan.format.decode(segment.codes, segment.scale), rows.vectors)
    assert not segment.residual.any()
    np.testing.assert_allclose(segment.norm, np.linalg.norm(rows.vectors, axis=1), rtol=1e-14)
    lost = np.linalg.norm(index.vectors - rows.vectors, axis=1)
    np.testing.assert_allclose(segment.lost, lost, rtol=1e-11)
    assert (segment.lost >= lost * (1 - 1e-14)).all()
    assert np.array_equal(segment.whole, rows.norms)


@pytest.mark.parametrize("bits", [16, 32])
def test_the_scan_copy_bounds_true_inner_products(build_index: Build, bits: Bits) -> None:
    index = build_index(40, dimension=100, bits=bits)
    scan = opened(index)
    (segment,) = scan.segments
    assert (len(scan), segment.codes.shape, scan.format) == (40, (40, 128), CodeFormat(8, 100))
    rows = index.open().rows(np.arange(40))
    stored = rows.vectors
    np.testing.assert_allclose(segment.norm, np.linalg.norm(stored, axis=1), rtol=1e-14)
    assert np.array_equal(segment.lost, rows.residual_norms)
    assert np.array_equal(segment.whole, rows.norms)
    missed = stored - scan.format.decode(segment.codes, segment.scale)
    assert (segment.residual < 0.02 * segment.norm).all()
    # The worst query for a row is its own residual; there the bound is met with equality.
    for i in range(40):
        query = missed[i]
        bound = np.linalg.norm(query) * segment.residual
        assert (np.abs(missed @ query) <= bound).all()
        assert abs(missed[i] @ query) == pytest.approx(bound[i], rel=1e-9)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16, 32])
def test_zero_rows_are_zero(tmp_path: Path, bits: Bits) -> None:
    table = DocumentTable.create(tmp_path, metadata={}, dimension=3, bits=bits)
    vectors = np.array([[1, 2, 3], [0, 0, 0]], np.float32)
    ones = np.ones(2, np.int64)
    table.append([Document("a"), Document("zero")], vectors, norms=ones, tokens=ones)
    scan = ScanCopy.open(tmp_path / "scan", ScanCopy.build(table, tmp_path / "scan"), table.live)
    (segment,) = scan.segments
    assert not scan.format.decode(segment.codes, segment.scale)[1].any()
    assert [segment.residual[1], segment.norm[1], segment.lost[1]] == [0, 0, 0]
    assert segment.norm[0] > 0


def test_an_index_of_no_documents_has_a_scan_copy(tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path, metadata={}, dimension=3, bits=2)
    scan = ScanCopy.open(tmp_path / "scan", ScanCopy.build(table, tmp_path / "scan"), table.live)
    assert len(scan) == 0
    assert list(scan.chunks(5)) == []


def test_arrays_cannot_be_written_to(build_index: Build) -> None:
    index = build_index(3)
    scan = opened(index)
    (segment,) = scan.segments
    with pytest.raises(ValueError, match="read-only"):
        segment.codes[0, 0] = 1
    chunk = next(scan.chunks(2))
    assert np.shares_memory(chunk.codes, segment.codes)


def test_chunks_visit_the_rows_asked_for(build_index: Build) -> None:
    index = build_index(12)
    scan = opened(index)
    (segment,) = scan.segments
    whole = list(scan.chunks(5))
    assert [len(chunk.codes) for chunk in whole] == [5, 5, 2]
    assert np.array_equal(np.concatenate([chunk.codes for chunk in whole]), segment.codes)
    asked = np.array([9, 2, 4])
    some = list(scan.chunks(2, asked))
    for name in ARRAYS:
        read = np.concatenate([getattr(chunk, name) for chunk in some])
        assert np.array_equal(read, getattr(segment, name)[asked])
    assert np.concatenate([chunk.ordinals for chunk in some]).tolist() == [9, 2, 4]


@pytest.mark.parametrize("bits", [1, 16])
def test_rebuilding_gives_the_same_files(build_index: Build, bits: Bits) -> None:
    index = build_index(12, bits=bits)
    (reader,) = opened(index).segments
    before = reader.codes.copy()
    for file in (index.path / "scan" / "1").iterdir():
        file.unlink()
    assert ScanCopy.build(index.open(), index.path / "scan") == index.manifest.scan
    assert ScanCopy.build(index.open(), index.path / "scan") == index.manifest.scan
    assert np.array_equal(reader.codes, before)
    names = sorted(file.name for file in (index.path / "scan" / "1").iterdir())
    assert names == sorted(["facts.arrow", *(f"{name}.npy" for name in ARRAYS)])


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def other_shape(file: Path) -> None:
    np.save(file, np.zeros((3, 2)))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, Path.unlink, other_shape, lambda file: file.write_bytes(file.read_bytes()[:-1])],
    ids=["bit", "missing", "shape", "short"],
)
def test_damaged_files_are_named(
    build_index: Build, name: str, damage: Callable[[Path], Any]
) -> None:
    index = build_index(3)
    file = index.path / "scan" / "1" / f"{name}.npy"
    damage(file)
    with pytest.raises(IntegrityError, match="verify --repair") as caught:
        opened(index)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(build_index: Build) -> None:
    index = build_index(3)
    np.save(index.path / "scan" / "1" / "scale.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(IntegrityError, match=r"scale\.npy"):
        opened(index, verify=False)


def test_a_damaged_row_is_not_copied(tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path, metadata={}, dimension=2, bits=32)
    table.append(
        [Document("a")], np.ones((1, 2), np.float32), norms=np.ones(1), tokens=np.ones(1, int)
    )
    table._table.update(values={"scale": 2.0})
    with pytest.raises(IntegrityError, match="'a'"):
        ScanCopy.build(table, tmp_path / "scan")
    assert list((tmp_path / "scan" / "1").iterdir()) == []
