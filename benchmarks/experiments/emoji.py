"""Emoji as small captioned pictures, and the styles that they are redrawn in.

From the pictures of Noto Emoji that the npm package ``emoji-datasource-google`` carries.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.packages import EMOJI

__all__ = ["STYLES", "Pictures", "StyledPictures", "Subjects", "emoji_pictures"]

_FOLDER = "img/google/64/"
_MOST_WORDS = 4
_GREY = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True)
class Pictures:
    """Captioned pictures.

    Attributes:
        pixels: float64 ``[picture, row, column, colour]`` from 0 to 1, on white.
        captions: Words of each.
    """

    pixels: NDArray[np.float64]
    captions: tuple[tuple[str, ...], ...]

    def __len__(self) -> int:
        return len(self.captions)


def emoji_pictures(subcategories: Collection[str], size: int) -> Pictures:
    """The emoji of some subcategories, in the order of the Unicode list.

    Those with longer names than four words and with a name that another one has are left out.

    Args:
        subcategories: As the package names them.
        size: Rows and columns.

    Raises:
        MissingPackageError: The package's archive is not in the cache folder.
    """
    index = json.loads(EMOJI.files(lambda name: name == "emoji.json")["emoji.json"])
    chosen: dict[tuple[str, ...], str] = {}
    for entry in sorted(index, key=lambda entry: int(entry["sort_order"])):
        words = tuple(entry["name"].lower().replace("-", " ").split())
        named = len(words) <= _MOST_WORDS and entry["has_img_google"]
        if named and entry["subcategory"] in subcategories:
            chosen.setdefault(words, _FOLDER + entry["image"])
    files = EMOJI.files(set(chosen.values()).__contains__)
    return Pictures(
        np.stack([_drawn(files[name], size) for name in chosen.values()]), tuple(chosen)
    )


def _drawn(png: bytes, size: int) -> NDArray[np.float64]:
    """A picture on white, made smaller."""
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    ground = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(ground, picture).convert("RGB")
    return np.asarray(flat.resize((size, size), Image.Resampling.BOX), np.float64) / 255


def _blueprint(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Dark is white on blue, bright is blue."""
    grey = _grey(pixels)
    return np.array([0.05, 0.15, 0.55]) * grey + (1 - grey)


def _sepia(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brown instead of grey."""
    grey = _grey(pixels)
    return np.array([0.35, 0.2, 0.05]) * (1 - grey) + np.array([1.0, 0.9, 0.7]) * grey


def _negative(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every colour its opposite."""
    return 1 - pixels


def _mosaic(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squares of 4 x 4 pixels of one colour each."""
    rows, columns, colours = pixels.shape
    squares = pixels.reshape(rows // 4, 4, columns // 4, 4, colours).mean((1, 3))
    mosaic: NDArray[np.float64] = squares.repeat(4, 0).repeat(4, 1)
    return mosaic


def _grey(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Brightness ``[row, column, 1]``."""
    grey: NDArray[np.float64] = (pixels @ _GREY)[..., None]
    return grey


STYLES: Mapping[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "blueprint": _blueprint,
    "sepia": _sepia,
    "negative": _negative,
    "mosaic": _mosaic,
}
"""Ways to redraw a picture ``[row, column, colour]``, by the word that captions call them by."""


@dataclass(frozen=True, slots=True)
class StyledPictures(Pictures):
    """Emoji redrawn; captions begin with the style.

    Attributes:
        subjects: Position of each emoji.
        styles: Position of each style in ``STYLES``.
    """

    subjects: NDArray[np.int64]
    styles: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Subjects:
    """Emoji in two halves: those an adapter is trained on, and others.

    Attributes:
        pictures: All.
        tuned: Positions of the adapter's.
        others: Of the others.
    """

    pictures: Pictures
    tuned: NDArray[np.int64]
    others: NDArray[np.int64]

    def unchanged(self) -> Pictures:
        """Both halves as they are."""
        chosen = np.concatenate([self.tuned, self.others])
        captions = tuple(self.pictures.captions[i] for i in chosen.tolist())
        return Pictures(self.pictures.pixels[chosen], captions)

    def others_redrawn(self) -> StyledPictures:
        """The others in every style."""
        return self._redrawn([(i, s) for i in self.others.tolist() for s in range(len(STYLES))])

    def split(self, seed: int) -> tuple[StyledPictures, StyledPictures]:
        """The adapter's in every style but one, and in that one.

        Args:
            seed: Decides which style is held out of the first; the next follow in turn.
        """
        pairs = [(n, i, s) for n, i in enumerate(self.tuned.tolist()) for s in range(len(STYLES))]
        held = [(i, s) for n, i, s in pairs if (n + seed) % len(STYLES) == s]
        rest = [(i, s) for n, i, s in pairs if (n + seed) % len(STYLES) != s]
        return self._redrawn(rest), self._redrawn(held)

    def _redrawn(self, pairs: Sequence[tuple[int, int]]) -> StyledPictures:
        """From positions of emoji and styles."""
        names = list(STYLES)
        return StyledPictures(
            np.stack([STYLES[names[s]](self.pictures.pixels[i]) for i, s in pairs]),
            tuple((names[s], *self.pictures.captions[i]) for i, s in pairs),
            np.array([i for i, _ in pairs]),
            np.array([s for _, s in pairs]),
        )
