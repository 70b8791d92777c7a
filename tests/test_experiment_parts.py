"""Parts that experiments are made of: data read, pictures redrawn and split, arrays kept."""

from __future__ import annotations

import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.experiments.digits import Digits, label_share, log_likelihoods, read_idx
from benchmarks.experiments.emoji import STYLES, Pictures, Subjects
from benchmarks.experiments.image_model import (
    SIZE,
    caption_vectors,
    folded,
    noise_schedule,
    unfolded,
)
from benchmarks.experiments.kept import kept
from benchmarks.experiments.picture_grid import Cell, Column, draw_grid
from benchmarks.experiments.shared_draws import SharedDraws
from benchmarks.experiments.small_gradients import influences
from benchmarks.packages import MissingPackageError, NpmPackage
from wherefrom.evaluation.baselines import baselines
from wherefrom.evaluation.scores import fit, influence
from wherefrom.evaluation.subject import Subject
from wherefrom.gradients.batches import stack_examples


def _archive(folder: Path, files: dict[str, bytes]) -> str:
    """Write an archive as npm packs them; its digest."""
    path = folder / "wherefrom-benchmarks" / "toy-1.0.0.tgz"
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class TestPackages:
    def test_only_wanted_files_are_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        digest = _archive(tmp_path, {"a": b"1", "data/b": b"2", "c": b"3"})
        files = NpmPackage("toy", "1.0.0", digest).files(lambda name: name in ("data/b", "c", "d"))
        assert files == {"data/b": b"2", "c": b"3"}

    def test_a_missing_archive_says_its_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(MissingPackageError, match=r"^npm pack .* toy@1\.0\.0$"):
            NpmPackage("toy", "1.0.0", "0").files(bool)

    def test_another_archive_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        _archive(tmp_path, {"a": b"1"})
        with pytest.raises(MissingPackageError, match="another or damaged"):
            NpmPackage("toy", "1.0.0", "0").files(bool)


class TestDigits:
    def test_idx(self) -> None:
        wanted = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        content = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 3, 4) + wanted.tobytes()
        np.testing.assert_array_equal(read_idx(content), wanted)

    @pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08\x00", bytes([0, 0, 13, 1])])
    def test_something_else_is_refused(self, content: bytes) -> None:
        with pytest.raises(ValueError, match="no IDX file"):
            read_idx(content)

    def test_tensors(self) -> None:
        digits = Digits(np.full((3, 2, 2), [[[0]], [[51]], [[255]]], np.uint8), np.array([7, 8, 9]))
        inputs, labels = digits.tensors(np.array([2, 1]))
        torch.testing.assert_close(inputs, torch.tensor([[1.0] * 4, [0.2] * 4]))
        assert labels.tolist() == [9, 8]

    def test_log_likelihoods(self) -> None:
        model = torch.nn.Linear(2, 3)
        inputs = torch.eye(2)
        found = log_likelihoods(model, inputs)
        torch.testing.assert_close(found.exp().sum(1), torch.ones(2, dtype=torch.float64))
        assert found.argmax(1).tolist() == model(inputs).argmax(1).tolist()

    def test_label_share(self) -> None:
        share = label_share(np.array([[1, 1, 2, 3], [1, 1, 2, 3]]), np.array([1, 3]))
        assert share.tolist() == [0.5, 0.25]


@pytest.fixture
def subjects() -> Subjects:
    pixels = np.random.default_rng(0).random((6, SIZE, SIZE, 3))
    pictures = Pictures(pixels, tuple(("emoji", str(i)) for i in range(6)))
    return Subjects(pictures, np.array([5, 0, 2, 4]), np.array([1, 3]))


class TestEmoji:
    @pytest.mark.parametrize("style", STYLES)
    def test_styles_are_pictures_of_their_own(self, style: str, subjects: Subjects) -> None:
        picture = subjects.pictures.pixels[0]
        redrawn = STYLES[style](picture)
        assert redrawn.shape == picture.shape
        assert redrawn.min() >= 0.0
        assert redrawn.max() <= 1.0
        assert np.abs(redrawn - picture).max() > 0.1

    @pytest.mark.parametrize("seed", [0, 1])
    def test_split_holds_out_one_style_of_each(self, subjects: Subjects, seed: int) -> None:
        documents, held = subjects.split(seed)
        pairs = [
            set(zip(part.subjects.tolist(), part.styles.tolist(), strict=True))
            for part in (documents, held)
        ]
        assert not pairs[0] & pairs[1]
        assert len(pairs[0]) == len(documents) == 12
        assert sorted(held.subjects.tolist()) == [0, 2, 4, 5]
        assert sorted(held.styles.tolist()) == [0, 1, 2, 3]

    def test_captions_and_pixels_go_together(self, subjects: Subjects) -> None:
        documents, _ = subjects.split(0)
        names = list(STYLES)
        rows = zip(
            documents.pixels, documents.captions, documents.subjects, documents.styles, strict=True
        )
        for pixels, caption, subject, style in rows:
            assert caption == (names[style], "emoji", str(subject))
            wanted = STYLES[names[style]](subjects.pictures.pixels[subject])
            np.testing.assert_array_equal(pixels, wanted)

    def test_the_other_half_is_no_documents(self, subjects: Subjects) -> None:
        assert set(subjects.others_redrawn().subjects.tolist()) == {1, 3}
        assert len(subjects.unchanged()) == 6


class TestImageModel:
    def test_folding_is_undone(self, subjects: Subjects) -> None:
        pixels = subjects.pictures.pixels
        pictures = folded(pixels)
        assert pictures.shape == (6, 12, 8, 8)
        np.testing.assert_allclose(unfolded(pictures), pixels, atol=1e-6)
        torch.testing.assert_close(
            pictures[0, 0, 0, 0], torch.tensor(pixels[0, 0, 0, 0] * 2 - 1).float()
        )

    def test_a_word_has_one_vector(self) -> None:
        first, second = caption_vectors([("red", "apple"), ("apple",)])
        torch.testing.assert_close(first[1], second[0])
        assert not second[1:].any()
        assert torch.cosine_similarity(first[0], first[1], dim=0).abs() < 0.6


class TestKept:
    def test_kept_under_its_recipe_only(self, tmp_path: Path) -> None:
        calls = []

        def make() -> dict[str, np.ndarray]:
            calls.append(1)
            return {"a": np.arange(3.0) + len(calls)}

        path = tmp_path / "new" / "arrays.npz"
        for recipe, wanted in (("one", 1.0), ("one", 1.0), ("two", 2.0), ("two", 2.0)):
            found = kept(path, recipe, make)
            assert found["a"].tolist() == [wanted, wanted + 1, wanted + 2]
            assert list(found) == ["a"]
        assert len(calls) == 2
        assert [file.name for file in path.parent.iterdir()] == ["arrays.npz"]


def test_grid_is_drawn_the_same_twice(tmp_path: Path) -> None:
    cells = [[Cell(np.eye(4), "0", True), Cell(np.ones((4, 4, 3)), "1", False)]] * 2
    for name in ("a.png", "b.png"):
        draw_grid(tmp_path / name, [Column("first", cells), Column("", cells)], ["x", "y"])
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


class TestSmallGradients:
    def test_as_one_curvature_at_a_time(self) -> None:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
        x, y = torch.randn(12, 4), torch.arange(12) % 3
        subject = Subject.of_tensors("toy", model, (x, y), (x[:5] + 0.1, y[:5]))
        fitted = {name: fit(subject, name) for name in ("ekfac", "datainf", "identity")}
        found = influences(subject, fitted)
        for name, curvature in fitted.items():
            np.testing.assert_allclose(found[name], influence(subject, curvature), rtol=1e-9)
        simple = baselines(subject, ["dot", "cosine"])
        for name, scores in simple.items():
            np.testing.assert_allclose(found[name], scores, rtol=1e-9)


class TestSharedDraws:
    def test_all_pictures_have_the_same(self) -> None:
        objective = SharedDraws(noise_schedule(), draws=3, condition="encoder_hidden_states")
        images = torch.randn(4, 12, 8, 8)
        batch = stack_examples(images, caption_vectors([("a",)] * 4), list("abcd"))
        repeated, noise, times = objective._draws(batch)
        torch.testing.assert_close(repeated, images.repeat_interleave(3, 0))
        rows = noise.reshape(4, 3, *images.shape[1:])
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))
        assert (times.reshape(4, 3) == times[:3]).all()
        assert not torch.equal(rows[0, 0], rows[0, 1])
        # A third of the schedule each.
        steps = objective.scheduler.config.num_train_timesteps
        assert (times[:3] * 3 // steps).tolist() == [0, 1, 2]
