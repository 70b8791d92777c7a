"""What goes wrong is said in one line, and nothing half-built is left that looks like an index."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import wherefrom as wf
from small_models import mlp
from tiny_lm import save_tiny_lm, text_documents, tiny_llama, tiny_tokenizer
from wherefrom.errors import (
    CorpusError,
    CurvatureError,
    IndexExistsError,
    IntegrityError,
    ModelError,
    NotAnIndexError,
    StorageError,
    UnfinishedIndexError,
    WherefromError,
)
from wherefrom.indexer import workplace
from wherefrom.store import DocumentTable, state

TOKENIZER = tiny_tokenizer()
QUESTIONS = [wf.Query("gold", " silver trade")]
GOOD_ROW = '{"doc_id": "a", "text": "the union of states"}\n'


def build(path: Path, documents: Any = None, **options: Any) -> wf.Index:
    given: dict[str, Any] = {
        "model": tiny_llama(),
        "objective": wf.CausalLM(TOKENIZER),
        "encoder": "none",
        **options,
    }
    model = given.pop("model")
    return wf.build(model, text_documents(8) if documents is None else documents, path, **given)


def tensors(count: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, dtype=torch.float64, generator=generator)
    return x, torch.arange(count) % 3


def assert_refused(
    folder: Path, kind: type[WherefromError], message: str, attempt: Callable[[Path], object]
) -> None:
    """One line, of that kind; and where the index was to be, nothing."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(kind, match=message) as caught:
        attempt(folder / "my.index")
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


def corpus(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", "", "holds no documents"),
        ("blank.jsonl", "\n\n", "holds no documents"),
        ("empty.txt", "", "holds no documents"),
        ("binary.jsonl", b"\x00\x01\x02\xff" * 40, "binary file"),
        ("latin.jsonl", GOOD_ROW.encode() + b'{"text": "caf\xe9"}\n', "line 2: not UTF-8"),
        ("cut.jsonl", GOOD_ROW + "\n" + '{"text": "b"', "line 3: malformed JSON"),
        ("list.jsonl", GOOD_ROW + "[1]\n", "line 2"),
        ("number.jsonl", GOOD_ROW + '{"doc_id": "b", "text": 5}\n', "line 2: 'text' must be text"),
        ("twice.jsonl", GOOD_ROW * 2, "'a'"),
        ("mixed.jsonl", '{"text": "a b", "y": 1}\n{"text": "c d", "y": "z"}\n', "'y'"),
        ("tokens.jsonl", '{"text": "a"}\n{"text": ""}\n', "none of the 2 documents"),
        ("corpus.docx", "x", "files of kind '.docx'"),
    ],
)
def test_a_bad_corpus_is_refused(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = corpus(tmp_path, name, content)
    assert_refused(tmp_path, CorpusError, message, lambda index: build(index, path))


def test_a_missing_corpus_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.jsonl"
    assert_refused(tmp_path, CorpusError, "does not exist", lambda index: build(index, missing))


DOCUMENTS: list[tuple[Any, str]] = [
    ([], "no documents"),
    ([wf.Document("a", "gold and silver")] * 2, "'a'"),
    ([wf.Document("", "gold and silver")], "the id ''"),
    ([wf.Document("a", "gold \udc80 silver")], "not valid Unicode"),
    ([wf.Document("a", "gold", {"x": [1]})], "'x'"),
    (["gold and silver"], "wherefrom.Document"),
    (7, "type int"),
    ([wf.Document.chat("a", [wf.Message("user", "gold")])], "'assistant'"),
]


@pytest.mark.parametrize(("documents", "message"), DOCUMENTS)
def test_bad_documents_are_refused(tmp_path: Path, documents: Any, message: str) -> None:
    assert_refused(tmp_path, CorpusError, message, lambda index: build(index, documents))


def test_a_duplicate_far_behind_its_twin_is_found(tmp_path: Path) -> None:
    stream = (wf.Document(f"{i % 299}", "gold and silver") for i in range(300))
    assert_refused(tmp_path, CorpusError, "'0'", lambda index: build(index, stream))


def test_an_error_of_the_users_generator_comes_through(tmp_path: Path) -> None:
    def broken() -> Iterator[wf.Document]:
        yield wf.Document("a", "gold and silver")
        raise LookupError("the user's own")

    with pytest.raises(LookupError, match="the user's own"):
        build(tmp_path / "i", broken())
    assert not (tmp_path / "i").exists()


TENSORS: list[tuple[Any, str]] = [
    ((torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)), "at least one"),
    ((torch.zeros(3, 5), torch.zeros(2, dtype=torch.long)), "one target each"),
    ((torch.zeros(3), torch.zeros(3, dtype=torch.long)), "inputs"),
    ((torch.full((3, 5), float("nan")), torch.zeros(3, dtype=torch.long)), "'0' holds NaN"),
    ((np.zeros((3, 5)), np.zeros(3)), "tensors"),
    ((torch.zeros(3, 5),), r"\(inputs, targets\)"),
    ((torch.randn(3, 5).double(), torch.tensor([0, 1, 3])), "target"),
    ((torch.randn(3, 5).double(), torch.tensor([0, -100, 1])), "target"),
    ((torch.randn(3, 5).double(), torch.tensor([0.0, 1.0, 2.0])), "target"),
    ((torch.randn(3, 4).double(), torch.tensor([0, 1, 2])), "input"),
]


@pytest.mark.parametrize(("documents", "message"), TENSORS)
def test_bad_tensors_are_refused(tmp_path: Path, documents: Any, message: str) -> None:
    assert_refused(
        tmp_path, WherefromError, message, lambda index: wf.build(mlp(), documents, index)
    )


def test_documents_without_a_scored_token_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    documents = text_documents(8)
    unscored = wf.Document("unscored", "gold and war", scored=())
    blank = [wf.Document("one", "a"), wf.Document("none", ""), unscored]
    index = build(tmp_path / "i", [blank[0], *documents[:4], blank[1], *documents[4:], blank[2]])
    assert index.doc_ids() == [d.doc_id for d in documents]
    record = index.manifest.corpus
    assert record.skipped == ("one", "none", "unscored")
    assert (record.skipped_count, record.documents, record.parents) == (3, 8, 11)
    assert index.manifest.scale == 1 / 8
    without = build(tmp_path / "j", documents)
    assert index.scores(QUESTIONS).tobytes() == without.scores(QUESTIONS).tobytes()


def test_skipped_documents_are_listed_up_to_a_thousand(tmp_path: Path) -> None:
    blank = [wf.Document(f"blank {i}", "a") for i in range(1100)]
    record = build(tmp_path / "i", [*blank, *text_documents(8)]).manifest.corpus
    assert (record.skipped_count, len(record.skipped)) == (1100, 1000)


def test_any_iterable_of_documents_will_do(tmp_path: Path) -> None:
    documents = text_documents(8)
    wanted = build(tmp_path / "list", documents).doc_ids()
    given = {"tuple": tuple(documents), "pair": tuple(documents[:2]), "iterator": iter(documents)}
    for name, iterable in given.items():
        found = build(tmp_path / name, iterable).doc_ids()
        assert found == (wanted[:2] if name == "pair" else wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "model.*.nothing"}, "matches no module"),
        ({"layers": ["*.gate_proj", "nope"]}, "'nope' matches no module"),
        ({"layers": "model.embed_tokens"}, "Embedding"),
        ({"layers": []}, "selects nothing"),
        ({"curvature": "hessian"}, "'ekfac'"),
        ({"damping": 0.0}, "number > 0"),
        ({"damping": -1.0}, "from 0 to 1e"),
        ({"damping": 1e16}, "from 0 to 1e"),
        ({"damping": "0.1"}, "from 0 to 1e"),
        ({"damping": float("nan")}, "from 0 to 1e"),
        ({"damping": float("inf")}, "from 0 to 1e"),
        ({"fisher": "true"}, "'sampled', 'expected' or 'empirical'"),
        ({"fisher": "expected"}, "'sampled'"),
        ({"encoder": "pca"}, "'auto', 'sketch', 'energy', 'random', 'none'"),
        ({"bytes_per_document": 63}, "at least 64"),
        ({"fit_documents": 0}, "count >= 1"),
        ({"fit_documents": 0.0}, "share in"),
        ({"fit_documents": 1.5}, "share in"),
        ({"fit_documents": -3}, "count >= 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"device": "tpu"}, "'auto', 'cpu' or 'cuda'"),
        ({"model": 3}, "torch.nn.Module or the path"),
        ({"model": "/nowhere/at/all"}, "cannot load"),
        ({"objective": None}, "needs a tokenizer"),
        ({"objective": wf.CausalLM(TOKENIZER, context=97)}, "at most 96"),
        ({"objective": wf.CausalLM(TOKENIZER, context=1)}, "at least 2"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    assert_refused(tmp_path, WherefromError, message, lambda index: build(index, **options))


class Whole(wf.Classification):
    """One number for the whole batch."""

    def log_likelihood(self, outputs: Tensor, targets: Tensor, batch: Any) -> Tensor:
        return super().log_likelihood(outputs, targets, batch).sum()

    def differentiate(self, outputs: Tensor, targets: Tensor, batch: Any) -> Any:
        return wf.Objective.differentiate(self, outputs, targets, batch)


class Mixed(wf.Classification):
    """Outputs of all documents added up."""

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        return super().outputs(model, batch).sum(0, keepdim=True)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (Whole(), "one number a document"),
        (Mixed(), "first dimension must be the document"),
        (Whole, "give an object"),
    ],
)
def test_objectives_that_mix_documents_are_refused(
    tmp_path: Path, objective: Any, message: str
) -> None:
    assert_refused(
        tmp_path,
        ModelError,
        message,
        lambda path: wf.build(mlp(), tensors(), path, objective=objective, fisher="empirical"),
    )


def test_an_objective_that_the_model_was_not_made_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="objective masked_lm does not fit LlamaForCausalLM"):
        wf.build(
            tiny_llama(), text_documents(), tmp_path / "i", objective=wf.MaskedLM(tiny_tokenizer())
        )
    assert not (tmp_path / "i").exists()


class Logarithm(nn.Module):
    """NaN for documents with a negative input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.log(x))


@pytest.mark.parametrize("fisher", ["expected", "sampled", "empirical"])
def test_a_loss_that_is_not_finite_names_the_document(tmp_path: Path, fisher: Any) -> None:
    x, y = tensors()
    x = x.abs() + 0.1
    x[6, 2] = -1.0
    assert_refused(
        tmp_path,
        ModelError,
        "document '6' is not finite",
        lambda index: wf.build(Logarithm(), (x, y), index, fisher=fisher),
    )


def test_a_token_with_a_broken_embedding_names_the_document(tmp_path: Path) -> None:
    model, documents = tiny_llama(), text_documents(8)
    documents.insert(3, wf.Document("bad", "gold ~ silver"))
    (token,) = TOKENIZER("~")["input_ids"]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("nan")
    assert_refused(
        tmp_path,
        ModelError,
        "document 'bad' is not finite",
        lambda index: build(index, documents, model=model),
    )


def test_a_layer_that_no_gradient_reaches_is_named(tmp_path: Path) -> None:
    model = mlp()
    with torch.no_grad():
        model[4].weight.zero_()
    assert_refused(tmp_path, CurvatureError, "'0'", lambda index: wf.build(model, tensors(), index))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    return build(tmp_path / "my.index").path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_an_index_is_replaced_only_when_asked(finished: Path) -> None:
    before = contents(finished)
    with pytest.raises(IndexExistsError, match="--overwrite"):
        build(finished, text_documents(10))
    assert contents(finished) == before
    assert len(build(finished, text_documents(10), overwrite=True)) == 10
    assert len(wf.open(finished, model=tiny_llama(), objective=wf.CausalLM(TOKENIZER))) == 10
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_index_is_never_touched(tmp_path: Path, overwrite: bool) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    file = tmp_path / "notes"
    file.write_text("more work")
    before = contents(tmp_path)
    for path in (folder, file):
        with pytest.raises(IndexExistsError, match="left alone"):
            build(path, overwrite=overwrite)
        with pytest.raises(NotAnIndexError, match="index"):
            wf.open(path)
    assert contents(tmp_path) == before
    with pytest.raises(NotAnIndexError, match="does not exist"):
        wf.open(tmp_path / "nowhere")


@pytest.mark.parametrize("documents", [[wf.Document("a", "a")], [wf.Document("a", "a b")] * 2])
def test_a_failed_replacement_keeps_the_old_index(finished: Path, documents: Any) -> None:
    before = contents(finished)
    with pytest.raises(CorpusError):
        build(finished, documents, overwrite=True)
    assert contents(finished) == before
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]


@pytest.mark.parametrize("fails", [1, 2])
def test_a_replacement_that_cannot_be_moved_keeps_the_old_index(
    finished: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    before, replace, calls = contents(finished), os.replace, []

    def refuse(source: Any, target: Any) -> None:
        if Path(target).suffix == ".index" or Path(source) == finished:
            calls.append(source)
            if len(calls) == fails:
                raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(workplace, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError):
        build(finished, text_documents(10), overwrite=True)
    assert len(calls) >= fails
    assert contents(finished) == before
    monkeypatch.setattr(os, "replace", replace)
    assert len(build(finished, text_documents(10), overwrite=True)) == 10
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """LanceDB wraps what the operating system says in a RuntimeError of several lines."""
    create = DocumentTable.create.__func__

    def made(*args: Any, **options: Any) -> DocumentTable:
        table = create(DocumentTable, *args, **options)

        def add(*_: object) -> None:
            raise RuntimeError("lance error: LanceError(IO)\nNo space left on device (os error 28)")

        monkeypatch.setattr(table._table, "add", add)
        return table

    monkeypatch.setattr(DocumentTable, "create", made)


def full_when_writing(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """The file of that name cannot be made durable."""

    def plant(monkeypatch: pytest.MonkeyPatch) -> None:
        fsync = os.fsync

        def refuse(handle: int) -> None:
            if name in os.readlink(f"/proc/self/fd/{handle}"):
                full_disk()
            fsync(handle)

        monkeypatch.setattr(os, "fsync", refuse)

    return plant


FULL_DISKS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "marker": full_when_writing("build.json"),
    "encoder": full_when_writing("encoder.safetensors"),
    "append": full_table,
    "sealing": full_when_writing("documents.lance"),
    "scan": full_when_writing("codes.npy"),
    "manifest": full_when_writing("manifest.json"),
}


@pytest.mark.parametrize("stage", FULL_DISKS)
@pytest.mark.parametrize("replacing", [False, True])
def test_a_full_disk_is_said_and_costs_nothing_that_was_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, replacing: bool
) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("files cannot be told by their handles here")
    path = tmp_path / "my.index"
    if replacing:
        build(path)
    before = contents(path)
    with monkeypatch.context() as patch:
        FULL_DISKS[stage](patch)
        with pytest.raises(StorageError, match="free some space") as caught:
            build(path, text_documents(10), overwrite=replacing)
    assert "\n" not in str(caught.value)
    left = [entry.name for entry in tmp_path.iterdir()]
    if stage == "marker":
        assert left == (["my.index"] if replacing else [])
    else:
        assert "run the same command again" in str(caught.value)
        assert len(left) == 1 + replacing
    if replacing:
        assert contents(path) == before
    assert len(build(path, text_documents(10), overwrite=replacing)) == 10
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.index"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_really_is_full(small_disk: Path) -> None:
    with pytest.raises(StorageError, match="free some space"):
        build(small_disk / "my.index", text_documents(80))
    index = build(small_disk / "my.index", text_documents(8), overwrite=True)
    assert len(index) == 8


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="directories"):
        build(tmp_path / "file" / "my.index")


def interrupt_at(phase: str) -> Callable[[str, int, int], None]:
    def progress(name: str, done: int, total: int) -> None:
        if name.startswith(phase):
            raise KeyboardInterrupt

    return progress


PHASES = ["reading the corpus", "fitting the curvature", "encoding the documents", "measuring"]


@pytest.mark.parametrize("phase", PHASES)
def test_an_interrupted_build_says_that_it_is_unfinished_and_goes_on(
    tmp_path: Path, phase: str
) -> None:
    path = tmp_path / "my.index"
    with pytest.raises(KeyboardInterrupt):
        build(path, progress=interrupt_at(phase))
    assert state(path) == "unfinished"
    with pytest.raises(UnfinishedIndexError, match="run the command that began it") as caught:
        wf.open(path)
    assert "\n" not in str(caught.value)
    if phase != "reading the corpus":
        with pytest.raises(IndexExistsError, match=r'something else .*"none" and is "sketch" now'):
            build(path, encoder="sketch")
        with pytest.raises(IndexExistsError, match="the documents are not the 8"):
            build(path, text_documents(7))
        assert state(path) == "unfinished"
    assert len(build(path)) == 8
    assert state(path) == "finished"
    assert [entry.name for entry in tmp_path.iterdir()] == ["my.index"]


@pytest.mark.parametrize("given", [{"overwrite": True, "encoder": "sketch"}, {"resume": False}])
def test_an_interrupted_build_is_replaced_only_when_asked(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    path = tmp_path / "my.index"
    with pytest.raises(KeyboardInterrupt):
        build(path, progress=interrupt_at("encoding"))
    phases = []
    index = build(path, progress=lambda phase, done, total: phases.append(phase), **given)
    assert len(index) == 8
    assert any(phase.startswith("fitting") for phase in phases)


@pytest.mark.parametrize("phase", ["fitting the curvature", "encoding the documents"])
def test_an_interrupted_replacement_keeps_the_old_index(finished: Path, phase: str) -> None:
    before = contents(finished)
    with pytest.raises(KeyboardInterrupt):
        build(finished, text_documents(10), overwrite=True, progress=interrupt_at(phase))
    assert contents(finished) == before
    assert len(build(finished, text_documents(10), overwrite=True)) == 10
    assert [entry.name for entry in finished.parent.iterdir()] == ["my.index"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index over a saved model, by a sketch."""
    folder = tmp_path_factory.mktemp("whole")
    model = save_tiny_lm(folder / "model")
    wf.build(model, text_documents(8), folder / "i", encoder="sketch", bytes_per_document=512)
    return folder / "i"


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def flip(file: Path, position: int) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= 1
    file.write_bytes(data)


ARRAYS = ("codes", "scale", "residual", "norm")
FILES = ["encoder.safetensors", *(f"scan/1/{name}.npy" for name in ARRAYS)]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["first", "middle", "last", "short", "missing"])
def test_a_damaged_file_is_found_when_the_index_is_opened(
    copied: Path, name: str, damage: str
) -> None:
    file = copied / name
    size = file.stat().st_size
    if damage == "short":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    else:
        flip(file, {"first": 0, "middle": size // 2, "last": size - 1}[damage])
    with pytest.raises(IntegrityError, match=Path(name).name) as caught:
        wf.open(copied)
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_found(copied: Path) -> None:
    shutil.rmtree(copied / "documents.lance")
    with pytest.raises(IntegrityError, match=r"documents\.lance") as caught:
        wf.open(copied)
    assert "\n" not in str(caught.value)


def answer_or_refusal(path: Path) -> wf.Answer | IntegrityError:
    try:
        return wf.open(path).query(prompt="gold", completion=" silver trade", k=8)
    except IntegrityError as error:
        return error


def test_a_flipped_bit_in_the_documents_changes_no_answer(copied: Path) -> None:
    """Lance itself reads most of them back without a word."""
    (data,) = (copied / "documents.lance" / "data").iterdir()
    original = data.read_bytes()
    expected = answer_or_refusal(copied)
    assert isinstance(expected, wf.Answer)
    refused = 0
    for position in range(0, len(original), len(original) // 40):
        flip(data, position)
        found = answer_or_refusal(copied)
        data.write_bytes(original)
        if isinstance(found, IntegrityError):
            refused += 1
            assert "\n" not in str(found)
        else:
            assert (found.proponents, found.opponents) == (expected.proponents, expected.opponents)
    assert refused > 10


def test_a_manifest_that_cannot_be_read_is_said(copied: Path) -> None:
    file = copied / "manifest.json"
    text = file.read_text()
    changes = {
        text[:-4]: NotAnIndexError,
        text.replace('"format_version": 1', '"format_version": 2'): NotAnIndexError,
        text.replace('"damping"', '"dampinh"'): NotAnIndexError,
        text.replace('"rows": 8', '"rows": 9'): IntegrityError,
        "": NotAnIndexError,
        "[]": NotAnIndexError,
    }
    for changed, kind in changes.items():
        file.write_text(changed)
        with pytest.raises(kind) as caught:
            wf.open(copied)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "was", "becomes"),
    [
        ("scale", "0.125", "0.525"),
        ("damping", "0.1", "0.3"),
        ("reduce", '"sketch"', '"sketbh"'),
        ("rotate", "true", "false"),
        ("weights_sha256", None, None),
        ("file_sha256", None, None),
        ("seed", "0", "1"),
        ("fisher", '"sampled"', '"sameled"'),
    ],
)
def test_a_changed_value_in_the_manifest_is_found(
    copied: Path, field: str, was: str | None, becomes: str | None
) -> None:
    """Another scale, damping or seed would give other scores without a word."""
    file = copied / "manifest.json"
    lines = file.read_text().splitlines(keepends=True)
    changed = 0
    for i, line in enumerate(lines):
        if not line.strip().startswith(f'"{field}"'):
            continue
        if was is None:
            digit = line[-8]
            lines[i] = line[:-8] + ("0" if digit != "0" else "1") + line[-7:]
        else:
            lines[i] = line.replace(f": {was}", f": {becomes}")
        changed += lines[i] != line
    assert changed
    file.write_text("".join(lines))
    with pytest.raises(WherefromError) as caught:
        wf.open(copied)
    assert "\n" not in str(caught.value)


def test_there_is_no_pickle_in_an_index(whole: Path) -> None:
    suffixes = {file.suffix for file in whole.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors", ".npy", ".arrow", ".lance", ".manifest", ".txn"}
    for file in whole.rglob("*"):
        if not file.is_file():
            continue
        data = file.read_bytes()
        # The header of a pickle of protocol 2 to 5, and of a zip archive, as torch.save writes.
        assert not (data[:1] == b"\x80" and data[1:2] in b"\x02\x03\x04\x05"), file
        assert data[:4] != b"PK\x03\x04", file
        if file.suffix == ".npy":
            assert not np.load(file, allow_pickle=False).dtype.hasobject


def test_the_marker_of_a_build_is_gone_when_it_is_finished(whole: Path) -> None:
    names = sorted(entry.name for entry in whole.iterdir())
    assert names == ["documents.lance", "encoder.safetensors", "manifest.json", "scan"]
