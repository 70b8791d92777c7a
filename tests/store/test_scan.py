"""The scan copy and the rounding of rows: bounds that hold, files that are what they claim."""

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
from wherefrom.store import DocumentTable, ScanCopy
from wherefrom.store.quantise import quantise
from wherefrom.store.scan import encode_rows

Build = Callable[..., Any]

vectors_of_all_sizes = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def squared_distance(exact: list[Fraction], scale: float, codes: NDArray[Any]) -> Fraction:
    """‖x - scale * codes‖² without any rounding."""
    pairs = zip(exact, codes.tolist(), strict=True)
    return sum(((x - Fraction(scale) * Fraction(c)) ** 2 for x, c in pairs), Fraction(0))


def exactly(row: NDArray[Any]) -> list[Fraction]:
    return [Fraction(x) for x in row.tolist()]


@given(vectors=vectors_of_all_sizes)
def test_fp16_rows_neither_overflow_nor_lose_small_entries(vectors: NDArray[np.float32]) -> None:
    stored = quantise(vectors, "float16")
    assert np.isfinite(stored.codes).all()
    mantissa, _ = np.frexp(stored.scales)
    assert (mantissa == 0.5).all()
    largest = np.abs(stored.codes.astype(np.float64)).max(axis=1)
    zero = ~vectors.any(axis=1)
    assert ((largest >= 2**14) & (largest <= 2**15) | zero).all()
    assert (stored.scales[zero] == 1).all()
    exact = stored.codes.astype(np.float64) * stored.scales[:, None]
    # Half a unit in the last place: 2**-11 of the entry, or 2**-25 below fp16's normal range.
    allowed = np.maximum(
        np.abs(vectors.astype(np.float64)) * 2**-11, stored.scales[:, None] / 2**25
    )
    assert (np.abs(vectors - exact) <= allowed).all()
    for row, scale, codes, residual in zip(
        vectors, stored.scales, stored.codes, stored.residual_norms, strict=True
    ):
        squared = squared_distance(exactly(row), scale, codes)
        assert abs(Fraction(residual) ** 2 - squared) <= squared * Fraction(1, 10**12)


def test_fp16_keeps_what_lies_far_out() -> None:
    rows = np.array([[1e30, 1e24], [1e-30, 3e-36], [0, 0], [3e38, -3.4028235e38], [1e-45, 0]])
    stored = quantise(rows.astype(np.float32), "float16")
    exact = stored.codes.astype(np.float64) * stored.scales[:, None]
    np.testing.assert_allclose(exact, rows.astype(np.float32), rtol=2**-11)
    assert stored.scales[2] == 1


@given(vectors=vectors_of_all_sizes)
def test_the_residual_bounds_what_int8_leaves_out(vectors: NDArray[np.float32]) -> None:
    encoded = encode_rows(vectors.astype(np.float64), 64)
    assert np.abs(encoded["codes"].astype(int)).max() <= 127
    assert not encoded["codes"][:, vectors.shape[1] :].any()
    for i, row in enumerate(vectors):
        codes = encoded["codes"][i, : vectors.shape[1]]
        squared = squared_distance(exactly(row), float(encoded["scale"][i]), codes)
        residual = Fraction(float(encoded["residual"][i])) ** 2
        assert squared <= residual
        assert residual <= squared * (1 + Fraction(1, 10**11))


def test_the_scan_copy_bounds_true_inner_products(build_index: Build) -> None:
    index = build_index(40, dimension=100)
    scan = ScanCopy.open(index.path / "scan", index.manifest.scan)
    assert (len(scan), scan.codes.shape) == (40, (40, 128))
    stored = index.open().rows(np.arange(40)).codes
    np.testing.assert_allclose(scan.norm, np.linalg.norm(stored, axis=1), rtol=1e-14)
    decoded = scan.codes[:, :100].astype(np.float64) * scan.scale[:, None]
    missed = stored - decoded
    assert (scan.residual < 0.02 * scan.norm).all()
    # The worst query for a row is its own residual; there the bound is met with equality.
    for i in range(40):
        query = missed[i]
        bound = np.linalg.norm(query) * scan.residual
        assert (np.abs(missed @ query) <= bound).all()
        assert abs(missed[i] @ query) == pytest.approx(bound[i], rel=1e-9)


def test_arrays_cannot_be_written_to(build_index: Build) -> None:
    index = build_index(3)
    scan = ScanCopy.open(index.path / "scan", index.manifest.scan)
    with pytest.raises(ValueError, match="read-only"):
        scan.codes[0, 0] = 1
    chunk = next(scan.chunks(2))
    assert np.shares_memory(chunk.codes, scan.codes)


def test_chunks_visit_the_rows_asked_for(build_index: Build) -> None:
    index = build_index(12)
    scan = ScanCopy.open(index.path / "scan", index.manifest.scan)
    whole = list(scan.chunks(5))
    assert [len(chunk.codes) for chunk in whole] == [5, 5, 2]
    assert np.array_equal(np.concatenate([chunk.codes for chunk in whole]), scan.codes)
    asked = np.array([9, 2, 4])
    some = list(scan.chunks(2, asked))
    for name in ("codes", "scale", "residual", "norm"):
        read = np.concatenate([getattr(chunk, name) for chunk in some])
        assert np.array_equal(read, getattr(scan, name)[asked])
    assert np.concatenate([chunk.ordinals for chunk in some]).tolist() == [9, 2, 4]


def test_rebuilding_gives_the_same_files(build_index: Build) -> None:
    index = build_index(12)
    reader = ScanCopy.open(index.path / "scan", index.manifest.scan)
    before = reader.codes.copy()
    for file in (index.path / "scan").iterdir():
        file.unlink()
    assert ScanCopy.build(index.open(), index.path / "scan") == index.manifest.scan
    assert ScanCopy.build(index.open(), index.path / "scan") == index.manifest.scan
    assert np.array_equal(reader.codes, before)
    names = sorted(file.name for file in (index.path / "scan").iterdir())
    assert names == ["codes.npy", "norm.npy", "residual.npy", "scale.npy"]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def other_shape(file: Path) -> None:
    np.save(file, np.zeros((3, 2)))


@pytest.mark.parametrize("name", ["codes", "scale", "residual", "norm"])
@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, Path.unlink, other_shape, lambda file: file.write_bytes(file.read_bytes()[:-1])],
    ids=["bit", "missing", "shape", "short"],
)
def test_damaged_files_are_named(
    build_index: Build, name: str, damage: Callable[[Path], Any]
) -> None:
    index = build_index(3)
    file = index.path / "scan" / f"{name}.npy"
    damage(file)
    with pytest.raises(IntegrityError, match="rebuild the scan copy") as caught:
        ScanCopy.open(index.path / "scan", index.manifest.scan)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickles_are_refused(build_index: Build) -> None:
    index = build_index(3)
    np.save(index.path / "scan" / "scale.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(IntegrityError, match=r"scale\.npy"):
        ScanCopy.open(index.path / "scan", index.manifest.scan, verify=False)


def test_a_damaged_row_is_not_copied(tmp_path: Path) -> None:
    table = DocumentTable.create(tmp_path, metadata={}, dimension=2, dtype="float32")
    table.append(
        [Document("a")], np.ones((1, 2), np.float32), norms=np.ones(1), tokens=np.ones(1, int)
    )
    table._table.update(values={"scale": 2.0})
    with pytest.raises(IntegrityError, match="'a'"):
        ScanCopy.build(table, tmp_path / "scan")
    assert list((tmp_path / "scan").iterdir()) == []
